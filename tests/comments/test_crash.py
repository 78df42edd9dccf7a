"""The process is killed between storing and announcing, and between announcing and marking."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import msgspec
import psycopg
import pytest
import trio
from trio_websocket import open_websocket_url

from repeater.brokers.receipts import settled
from repeater.comments.comments import prepare
from repeater.comments.options import CommentsOptions
from repeater.config import Settings
from repeater.serving.extension import load_settings
from repeater.serving.server import Server, open_server
from tests.deadlines import PROCESS_STARTS
from tests.processes import starts_processes

ANN = {"email": "ann@example.com", "password": "hunter2hunter"}

pytestmark = starts_processes

# A server that kills itself, with the signal that nothing can handle, where it says.
KILLED = """
import os, signal, sys
import trio
from repeater.comments.store import Store
from repeater.serving.extension import load_settings
from repeater.node import Node
from repeater.outgoing.session import Session
from repeater.serving.process import serve

async def die(*given, **more):
    os.kill(os.getpid(), signal.SIGKILL)

take = Session.take

async def die_with_rows(*given, **more):
    look = await take(*given, **more)
    return await die() if look.rows else look

where = {
    "before publishing": (Node, "publish", die),
    "before marking": (Store, "mark_announced", die),
    "before publishing, PostgreSQL": (Session, "take", die_with_rows),
    "before removing, PostgreSQL": (Session, "done", die),
}
setattr(*where[sys.argv[1]])

async def main():
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, load_settings(dev=True, port=0, comments=True))
        print(port, flush=True)

trio.run(main)
"""


@asynccontextmanager
async def signed_in(port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A program with Ann's cookie, on a server of any process."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await client.post("/api/signup", data=ANN)
        assert (await client.post("/api/signin", data=ANN)).headers["Location"] == "/comments.html"
        yield client


def settings(options: CommentsOptions) -> Settings:
    return load_settings(
        dev=True,
        port=0,
        comments=True,
        data_dir=str(options.data_dir),
        comments_database_url=options.database_url or None,
    )


async def posted_and_killed(options: CommentsOptions, where: str) -> None:
    """Start a server, post a comment, and see the server die of it."""
    environment = {
        **os.environ,
        "REPEATER_DATA_DIR": str(options.data_dir),
        **(
            {"REPEATER_COMMENTS_DATABASE_URL": options.database_url} if options.database_url else {}
        ),
    }
    command = [sys.executable, "-c", KILLED, where]
    process = await trio.lowlevel.open_process(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        port = int(await process.stdout.receive_some())
        async with signed_in(port) as client:
            # The answer and the death race each other: both are right.
            with suppress(httpx.TransportError):
                await client.post("/api/new_comment", data={"text": "not lost"})
        assert await process.wait() == -signal.SIGKILL
    finally:
        if process.returncode is None:
            process.kill()
        await process.stdout.aclose()


async def announced(server: Server) -> list[str]:
    """The texts in the channel's history, which the data directory keeps over restarts."""
    channel = "comments"
    options = server.node.channels.options(channel)
    publications, _ = await settled(server.node.broker.history(channel, options))
    return [msgspec.json.decode(one.data)["text"] for one in publications]


async def until_announced(server: Server, *texts: str) -> None:
    """The channel's history is this, at last. No event tells of it."""
    while (found := await announced(server)) != [*texts]:
        assert found == [*texts][: len(found)]
        await trio.sleep(0.01)


@pytest.mark.parametrize("where", ["before publishing", "before removing"])
async def test_a_crash_loses_and_repeats_no_publication(
    publishing_url: str, tmp_path: Path, where: str
) -> None:
    """The next start publishes what a transaction has, and what it had published already, not."""
    options = CommentsOptions(data_dir=tmp_path / "data", database_url=publishing_url)
    with trio.fail_after(2 * PROCESS_STARTS):
        await posted_and_killed(options, f"{where}, PostgreSQL")
        async with open_server(settings(options)) as server, signed_in(server.port) as client:
            await until_announced(server, "not lost")
            await client.post("/api/new_comment", data={"text": "next"})
            await until_announced(server, "not lost", "next")
            listed = (await client.get("/api/comments")).json()
            assert [one["text"] for one in listed] == ["not lost", "next"]
        async with open_server(settings(options)) as server, signed_in(server.port) as client:
            await client.post("/api/new_comment", data={"text": "last"})
            await until_announced(server, "not lost", "next", "last")


async def test_what_an_earlier_version_left_in_the_outbox_is_announced(
    publishing_url: str, tmp_path: Path
) -> None:
    """Before a PostgreSQL announced comments by itself, it had a row there for each."""
    options = CommentsOptions(data_dir=tmp_path / "data", database_url=publishing_url)
    await prepare(options)
    left = "INSERT INTO outbox (key, data) VALUES ('a key', '{\"text\": \"left\"}')"
    with psycopg.connect(publishing_url.replace("+psycopg", "")) as connection:
        connection.execute(left)
    with trio.fail_after(PROCESS_STARTS):
        async with open_server(settings(options)) as server:
            assert await announced(server) == ["left"]
        async with open_server(settings(options)) as server:
            assert await announced(server) == ["left"]


@pytest.mark.parametrize("where", ["before publishing", "before marking"])
async def test_a_crash_loses_and_repeats_no_announcement(
    sqlite_options: CommentsOptions, where: str
) -> None:
    """The next start announces what is owed before anybody is served, and what is not, not.

    So a client that heard it from the ended process does not hear it again; any other client
    finds it in the list and in the channel's history.
    """
    with trio.fail_after(2 * PROCESS_STARTS):
        await posted_and_killed(sqlite_options, where)
        async with open_server(settings(sqlite_options)) as server:
            assert await announced(server) == ["not lost"]
            url = f"ws://127.0.0.1:{server.port}/ws"
            async with open_websocket_url(url) as page, signed_in(server.port) as client:
                assert [one["text"] for one in (await client.get("/api/comments")).json()] == [
                    "not lost"
                ]
                await client.post("/api/new_comment", data={"text": "next"})
                assert msgspec.json.decode(await page.get_message())["text"] == "next"
            assert await announced(server) == ["not lost", "next"]
        async with open_server(settings(sqlite_options)) as server:
            assert await announced(server) == ["not lost", "next"]


async def test_what_is_posted_at_the_very_end_is_announced_at_the_next_start(
    options: CommentsOptions,
) -> None:
    """A comment stored while the node shuts down can't be published any more; it is not lost."""
    with trio.fail_after(2 * PROCESS_STARTS):
        async with open_server(settings(options)) as server, signed_in(server.port) as client:
            server.node._intake.close()  # as shutdown does, before the last requests end
            answer = await client.post("/api/new_comment", data={"text": "late"})
            assert answer.status_code == 302
        async with open_server(settings(options)) as server:
            await until_announced(server, "late")


async def test_outside_development_the_page_s_channel_is_open(
    sqlite_options: CommentsOptions,
) -> None:
    """Everybody hears comments, and nothing else, without credentials; with a ping in 20 s."""
    closed = load_settings(
        port=0, comments=True, comments_secret_key="x" * 16, data_dir=str(sqlite_options.data_dir)
    )
    with trio.fail_after(2 * PROCESS_STARTS):
        async with open_server(closed) as server, signed_in(server.port) as client:
            assert server.node.options.ping_interval == 20
            async with open_websocket_url(f"ws://127.0.0.1:{server.port}/ws") as page:
                await client.post("/api/new_comment", data={"text": "hello"})
                assert msgspec.json.decode(await page.get_message())["text"] == "hello"
            upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
            answer = await client.get("/ws?channel=news", headers=upgrade)
            assert answer.status_code >= 400
