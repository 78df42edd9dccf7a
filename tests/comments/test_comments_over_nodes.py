"""The application on two servers with one engine: a comment on one is there on the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from repeater.serving.extension import load_settings
from repeater.serving.server import Server, open_server
from tests.clusters import patient_members
from tests.comments.site import ANN
from tests.deadlines import LOOP_ANSWERS
from tests.serving import Peer
from tests.valkeys import ValkeyServer, valkey

Sites = tuple[Server, Server]


@asynccontextmanager
async def open_sites(engine: ValkeyServer, folder: Path) -> AsyncIterator[Sites]:
    """Two servers with one database, one secret and no other cache than their own."""
    servers: list[Server] = []
    async with AsyncExitStack() as stack:
        stack.enter_context(patient_members())
        for name in ("one", "other"):
            settings = load_settings(
                dev=True,
                port=0,
                node_name=name,
                engine="valkey",
                engine_url=engine.unix_url,
                comments=True,
                comments_secret_key="x" * 16,
                comments_database_url=f"sqlite:///{folder}/comments.sqlite3",
                data_dir=str(folder / name),
            )
            servers.append(await stack.enter_async_context(open_server(settings)))
        one, other = servers
        with trio.fail_after(LOOP_ANSWERS):
            while not _are_together(one, other):  # noqa: ASYNC110  # no event tells of it
                await trio.sleep(0.01)
        yield one, other


def _are_together(one: Server, other: Server) -> bool:
    """Whether both have reached the engine, and the first one knows the second."""
    outages = one.node.broker.outage(), other.node.broker.outage()
    return not any(outages) and len(one.node.control.members()) == 2


def browser() -> httpx.AsyncClient:
    """Cookies of `localhost` are for all of its ports."""
    return httpx.AsyncClient(headers={"Accept": "application/json"})


def page(server: Server, path: str) -> str:
    return f"http://localhost:{server.port}{path}"


async def texts(client: httpx.AsyncClient, server: Server) -> list[str]:
    found: list[dict[str, Any]] = (await client.get(page(server, "/api/comments"))).json()
    return [one["text"] for one in found]


async def test_a_comment_is_everywhere(tmp_path: Path) -> None:
    """Live on the pages of both, in the lists of both, by one account; requests count in all."""
    heard: list[str] = []

    async def listen(server: Server, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            client = Peer(stream)
            await stream.send_all(
                b"GET /events?channel=comments HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            await client.until(b"\r\n\r\n")
            task_status.started()
            await client.until(b'"text":"hello"')
            heard.append(server.node.control.me.name)

    with valkey() as engine, trio.fail_after(2 * LOOP_ANSWERS):
        async with open_sites(engine, tmp_path) as (one, other), browser() as client:
            await client.post(page(one, "/api/signup"), data=ANN)
            answer = await client.post(page(other, "/api/signin"), data=ANN)
            assert answer.headers["location"] == "/comments.html"
            assert await texts(client, one) == await texts(client, other) == []
            async with trio.open_nursery() as nursery:
                for server in (one, other):
                    await nursery.start(listen, server)
                await client.post(page(one, "/api/new_comment"), data={"text": "hello"})
            assert sorted(heard) == ["one", "other"]
            assert await texts(client, other) == ["hello"]
            counted = [
                int((await client.get(page(at, "/stats/counter"))).text) for at in (one, other)
            ]
            assert counted[1] == counted[0] + 1


async def test_a_comment_in_an_outage(tmp_path: Path) -> None:
    """It is stored, listed by both, and announced when the engine is back."""
    with valkey() as engine, trio.fail_after(2 * LOOP_ANSWERS):
        async with open_sites(engine, tmp_path) as (one, other), browser() as client:
            await client.post(page(one, "/api/signup"), data=ANN)
            await client.post(page(one, "/api/signin"), data=ANN)
            engine.kill()
            while not one.node.broker.outage():  # noqa: ASYNC110  # no event tells of it
                await trio.sleep(0.01)
            answer = await client.post(page(one, "/api/new_comment"), data={"text": "hello"})
            assert answer.headers["location"] == "/comments.html"
            assert await texts(client, one) == await texts(client, other) == ["hello"]
            engine.start()
            while (await _history(client, other)) != ["hello"]:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def _history(client: httpx.AsyncClient, server: Server) -> list[str]:
    body = {"channel": "comments", "limit": -1}
    answer = (await client.post(page(server, "/api/history"), json=body)).json()
    return [one["data"]["text"] for one in answer.get("result", {}).get("publications", [])]


pytestmark = pytest.mark.timeout(4 * LOOP_ANSWERS)
