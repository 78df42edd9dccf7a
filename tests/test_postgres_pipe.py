"""One connection to PostgreSQL: many requests at once, and what becomes of them at its end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.postgres.address import connect
from repeater.postgres.errors import LostError, RefusedError
from repeater.postgres.pipe import Pipe
from tests.deadlines import PROCESS_STARTS

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def url(postgresql: str) -> str:
    """libpq's URL of a real server."""
    return postgresql.replace("+psycopg", "")


@asynccontextmanager
async def piping(url: str, heard: list[str] | None = None) -> AsyncIterator[Pipe]:
    """A connection that runs for the time of the block."""
    tell = (lambda _channel: None) if heard is None else heard.append
    pipe = await connect(url, "repeater/test", tell, timeout=PROCESS_STARTS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.run)
        with trio.fail_after(PROCESS_STARTS):
            yield pipe
        nursery.cancel_scope.cancel()


async def failure_of(pipe: Pipe, statement: bytes, failures: list[BaseException]) -> None:
    with pytest.raises((RefusedError, LostError)) as caught:
        await pipe.ask(statement)
    failures.append(caught.value)


async def test_values_are_texts(url: str) -> None:
    """Rows come as texts in bytes, NULL as None; a parameter may be NULL; no rows are none."""
    async with piping(url) as pipe:
        assert await pipe.ask(b"SELECT 1, NULL, 'a' UNION ALL SELECT 2, $1, 'b'", None) == [
            (b"1", None, b"a"),
            (b"2", None, b"b"),
        ]
        assert await pipe.ask(b"SELECT 1 WHERE false") == []
        assert await pipe.ask(b"SET jit = off") == []


async def test_it_is_named(url: str) -> None:
    """`pg_stat_activity` shows who has the connection."""
    own = b"SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    async with piping(url) as pipe:
        assert await pipe.ask(own) == [(b"repeater/test",)]


async def test_many_ask_at_once(url: str) -> None:
    """Each gets its own answer, whatever the others asked; none waits for another's round trip."""
    async with piping(url) as pipe:

        async def ask(number: int) -> None:
            assert await pipe.ask(b"SELECT $1::int + 1", b"%d" % number) == [
                (b"%d" % (number + 1),)
            ]

        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(ask, number)


async def test_a_refused_statement_fails_alone(url: str) -> None:
    """Those before and behind it in the pipeline are carried out; it says state and reason."""
    found: list[object] = []
    async with piping(url) as pipe:

        async def ask(statement: bytes) -> None:
            try:
                found.append(await pipe.ask(statement))
            except RefusedError as error:
                found.append((error.state, str(error)))

        async with trio.open_nursery() as nursery:
            for statement in (b"SELECT 1", b"SELECT 1/0", b"SELEC", b"SELECT 2"):
                nursery.start_soon(ask, statement)
                await wait_all_tasks_blocked(0.001)
    assert found[0] == [(b"1",)]
    assert found[1] == ("22012", "division by zero (22012)")
    assert found[2] == ("42601", 'syntax error at or near "SELEC" (42601)')
    assert found[3] == [(b"2",)]


async def test_each_request_is_a_transaction(url: str) -> None:
    """What one did is committed, though the next one in the pipeline fails."""
    async with piping(url) as pipe:
        await pipe.ask(b"CREATE TEMPORARY TABLE t(n int)")
        failures: list[BaseException] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.ask, b"INSERT INTO t VALUES(1)")
            nursery.start_soon(failure_of, pipe, b"SELECT 1/0", failures)
        assert len(failures) == 1
        assert await pipe.ask(b"SELECT count(*) FROM t") == [(b"1",)]


async def test_notifications_are_told(url: str) -> None:
    """By the name of their channel, whoever sends them; a notice of the server disturbs nothing."""
    heard: list[str] = []
    async with piping(url, heard) as pipe, piping(url) as other:
        await pipe.ask(b'LISTEN "bell"')
        await pipe.ask(b"DO $$ BEGIN RAISE WARNING 'something'; END $$")
        await other.ask(b"SELECT pg_notify('bell', '')")
        await other.ask(b"SELECT pg_notify('another', '')")
        while not heard:
            await pipe.ask(b"SELECT 1")
    assert heard == ["bell"]


async def test_large_values_go_both_ways(url: str) -> None:
    """30 MB are written and read in parts, while others can do something."""
    large = b"x" * 30_000_000
    async with piping(url) as pipe:
        assert await pipe.ask(b"SELECT $1::text", large) == [(large,)]


async def test_who_stops_waiting_disturbs_nobody(url: str) -> None:
    """The answer to a cancelled request is dropped, and the next one gets its own."""
    async with piping(url) as pipe:
        with trio.move_on_after(0.05) as scope:
            await pipe.ask(b"SELECT pg_sleep(0.2)")
        assert scope.cancelled_caught
        assert await pipe.ask(b"SELECT 2") == [(b"2",)]


async def test_a_statement_has_a_deadline_of_the_server(url: str) -> None:
    """`statement_timeout` refuses the statement, and the session goes on."""
    async with piping(url) as pipe:
        await pipe.ask(b"SET statement_timeout = '50ms'")
        with pytest.raises(RefusedError) as caught:
            await pipe.ask(b"SELECT pg_sleep(30)")
        assert caught.value.state == "57014"
        assert await pipe.ask(b"SELECT 1") == [(b"1",)]


async def test_the_end_of_the_session_is_told_to_all(url: str) -> None:
    """Whoever waits, and whoever asks later, is told in the words of the server."""
    failures: list[BaseException] = []
    async with piping(url) as pipe, piping(url) as admin:
        pid = (await pipe.ask(b"SELECT pg_backend_pid()"))[0][0]
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(failure_of, pipe, b"SELECT pg_sleep(30)", failures)
            await wait_all_tasks_blocked(0.05)
            await admin.ask(b"SELECT pg_terminate_backend($1::int)", pid)
        await failure_of(pipe, b"SELECT 1", failures)
    assert {str(one) for one in failures} == {
        "terminating connection due to administrator command (57P01)"
    }
    assert [type(one) for one in failures[1:]] == [LostError] * 3


async def test_a_silent_session_ends(url: str) -> None:
    """The database itself ends the session of somebody who asks nothing for too long."""
    async with piping(url) as pipe:
        await pipe.ask(b"SET idle_session_timeout = '50ms'")
        while pipe.lost is None:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)
        assert str(pipe.lost) == "terminating connection due to idle-session timeout (57P05)"


async def test_the_end_of_run_ends_the_connection(url: str) -> None:
    """Who waits is told, and the server has one session less. The fixture looks for the socket."""
    failures: list[BaseException] = []
    async with trio.open_nursery() as nursery, piping(url) as pipe:
        nursery.start_soon(failure_of, pipe, b"SELECT pg_sleep(30)", failures)
        await wait_all_tasks_blocked(0.05)
    assert [str(one) for one in failures] == ["the connection was ended here"]
    with pytest.raises(LostError, match="ended here"):
        await pipe.ask(b"SELECT 1")


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def failing(host: str) -> str:
    return f"postgresql://ann:secret@{host}/db?sslmode=disable"


async def test_what_cannot_be_reached_is_told() -> None:
    """In one line: nobody there, a name that nobody knows, no URL; never the password."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for where, why in (
        (failing(f"127.0.0.1:{port}"), "Connection refused"),
        (failing("nobody.invalid"), "nobody.invalid is not known"),
        ("postgresql://[", "the address is not one of PostgreSQL"),
    ):
        with pytest.raises(LostError, match=why) as caught:
            await connect(where, "x", lambda _: None, timeout=PROCESS_STARTS)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_a_server_that_says_nothing_has_a_deadline() -> None:
    """Each address has its own, and libpq's socket is closed after it."""
    async with silent_server() as port:
        with pytest.raises(LostError, match="the server does not answer"):
            await connect(failing(f"127.0.0.1:{port}"), "x", lambda _: None, timeout=0.1)


async def test_the_first_host_that_can_be_used_is_taken(url: str) -> None:
    """Behind one that nobody knows and one that refuses."""
    folder = url.partition("host=")[2]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    several = f"host=nobody.invalid,127.0.0.1,{folder} port={port},{port},5432 user=postgres"
    async with piping(f"{several} dbname=postgres target_session_attrs=read-write") as pipe:
        assert await pipe.ask(b"SELECT 1") == [(b"1",)]


async def test_only_a_primary_will_do(url: str) -> None:
    """A server of another kind than `target_session_attrs` is passed by."""
    with pytest.raises(LostError, match="not in hot standby"):
        await connect(f"{url}&target_session_attrs=standby", "x", lambda _: None, timeout=60)
