"""One connection to PostgreSQL: many requests at once, and what becomes of them at its end."""

from __future__ import annotations

import select
from typing import Final

import psycopg
import pytest
import trio
from psycopg import pq
from trio.testing import wait_all_tasks_blocked

from repeater.postgres.address import connect
from repeater.postgres.errors import LostError, RefusedError
from repeater.postgres.pipe import Pipe
from tests.deadlines import PROCESS_STARTS
from tests.postgres_pipes import WAITING, failure_of, piping, wait_until_waiting, waiting

pytestmark = pytest.mark.timeout(60)

_LARGE: Final = b"x" * 30_000_000
_OWN_PID: Final = b"SELECT pg_backend_pid()"
_TERMINATED: Final = "terminating connection due to administrator command (57P01)"


@pytest.fixture
def url(postgresql: str) -> str:
    """libpq's URL of a real server."""
    return postgresql.replace("+psycopg", "")


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
    found: dict[bytes, object] = {}
    async with piping(url) as pipe:

        async def ask(statement: bytes) -> None:
            try:
                found[statement] = await pipe.ask(statement)
            except RefusedError as error:
                found[statement] = (error.state, str(error))

        async with trio.open_nursery() as nursery:
            for statement in (b"SELECT 1", b"SELECT 1/0", b"SELEC", b"SELECT 2"):
                nursery.start_soon(ask, statement)
                await wait_all_tasks_blocked()
    assert found == {
        b"SELECT 1": [(b"1",)],
        b"SELECT 1/0": ("22012", "division by zero (22012)"),
        b"SELEC": ("42601", 'syntax error at or near "SELEC" (42601)'),
        b"SELECT 2": [(b"2",)],
    }


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
    async with piping(url) as pipe:
        assert await pipe.ask(b"SELECT $1::text", _LARGE) == [(_LARGE,)]


async def test_what_libpq_reads_while_it_writes_is_taken(url: str) -> None:
    """An answer and a notification are told at once, though the socket is not readable any more."""
    heard: list[str] = []
    async with piping(url, heard) as pipe, piping(url) as admin:
        await pipe.ask(b'LISTEN "bell"')
        async with waiting(admin):
            small = pipe._send(b'NOTIFY "bell"', ())
            select.select([pipe._socket], [], [])  # The answer is there, and no task has read it.
            large = pipe._send(WAITING + b" WHERE $1 <> ''", (_LARGE,))
            await small.answered.wait()
            assert heard == ["bell"]
            assert not large.answered.is_set()
        await large.answered.wait()


async def test_what_fails_at_the_commit_is_refused(url: str) -> None:
    """A statement that was carried out may fail when its transaction ends: then it did not happen.

    That is so with constraints that are deferred, and with SERIALIZABLE.
    """
    async with piping(url) as pipe:
        await pipe.ask(b"CREATE TEMPORARY TABLE t(n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(RefusedError, match="duplicate key") as caught:
            await pipe.ask(b"INSERT INTO t VALUES (1), (1) RETURNING n")
        assert caught.value.state == "23505"
        assert await pipe.ask(b"SELECT count(*) FROM t") == [(b"0",)]


async def test_the_reason_is_one_line(url: str) -> None:
    """Of a message of several lines, the first."""
    async with piping(url) as pipe:
        with pytest.raises(RefusedError) as caught:
            await pipe.ask(b"DO $$ BEGIN RAISE EXCEPTION E'one\\ntwo'; END $$")
    assert str(caught.value) == "one (P0001)"


async def test_an_empty_statement_has_no_rows(url: str) -> None:
    """A comment, too; as with `psql`."""
    async with piping(url) as pipe:
        assert await pipe.ask(b"") == []
        assert await pipe.ask(b"-- nothing") == []


async def test_what_cannot_be_sent_is_refused(url: str) -> None:
    """A zero byte would be cut off without a word; the connection goes on."""
    async with piping(url) as pipe:
        for statement, parameters, why, state in (
            (b"SELECT 1\0, 2", (), "a zero byte in the statement", "22021"),
            (b"SELECT $1, $2", (None, b"a\0b"), "a zero byte in parameter 2", "22021"),
            (b"SELECT 1", (b"",) * 65_536, "more than 65,535 parameters", "54023"),
        ):
            with pytest.raises(RefusedError) as caught:
                await pipe.ask(statement, *parameters)
            assert str(caught.value) == f"{why} ({state})"
            assert caught.value.state == state
        assert await pipe.ask(b"SELECT 1") == [(b"1",)]


@pytest.mark.parametrize("statement", [b"COPY (SELECT 1) TO STDOUT", b"COPY t FROM STDIN"])
async def test_copy_ends_the_connection(url: str, statement: bytes) -> None:
    """Its data go by other ways than rows, which are not here."""
    async with piping(url) as pipe:
        await pipe.ask(b"CREATE TEMPORARY TABLE t(n int)")
        with pytest.raises(LostError, match="COPY is not possible here"):
            await pipe.ask(statement)


async def test_who_stops_waiting_disturbs_nobody(url: str) -> None:
    """The answer to a cancelled request is dropped, and the next one gets its own."""
    async with piping(url) as pipe, piping(url) as admin:
        async with waiting(admin), trio.open_nursery() as nursery:
            nursery.start_soon(pipe.ask, WAITING)
            await wait_until_waiting(admin)
            nursery.cancel_scope.cancel()
        assert await pipe.ask(b"SELECT 2") == [(b"2",)]


async def test_a_statement_has_a_deadline_of_the_server(url: str) -> None:
    """`statement_timeout` refuses the statement, and the session goes on."""
    async with piping(url) as pipe, piping(url) as admin, waiting(admin):
        await pipe.ask(b"SET statement_timeout = '50ms'")
        with pytest.raises(RefusedError) as caught:
            await pipe.ask(WAITING)
        assert caught.value.state == "57014"
        await pipe.ask(b"SET statement_timeout = 0")
        assert await pipe.ask(b"SELECT 1") == [(b"1",)]


async def test_the_end_of_the_session_is_told_to_all(url: str) -> None:
    """Whoever waits, and whoever asks later, is told in the words of the server.

    Each by an exception of its own, since raising one changes it.
    """
    failures: list[BaseException] = []
    async with piping(url) as pipe, piping(url) as admin, waiting(admin):
        pid = (await pipe.ask(_OWN_PID))[0][0]
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(failure_of, pipe, WAITING, failures)
            await wait_until_waiting(admin)
            await admin.ask(b"SELECT pg_terminate_backend($1::int)", pid)
        await failure_of(pipe, b"SELECT 1", failures)
    assert [(type(one), str(one)) for one in failures] == [(LostError, _TERMINATED)] * 4
    assert len(set(map(id, failures))) == 4


async def test_who_asks_first_after_the_end_is_told_why(url: str) -> None:
    """The server's words are in the kernel when a request cannot be written any more."""
    failures: list[BaseException] = []
    with psycopg.connect(url, autocommit=True) as admin:
        async with piping(url) as pipe:
            pid = (await pipe.ask(_OWN_PID))[0][0]
            assert pid is not None
            # Waits until it has ended, and no task runs meanwhile.
            admin.execute("SELECT pg_terminate_backend(%s, 60000)", [int(pid)])
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(failure_of, pipe, b"SELECT 1", failures)
    assert [(type(one), str(one)) for one in failures] == [(LostError, _TERMINATED)] * 3


class _Stumbling:
    """A connection whose libpq fails once, when half of a request is in its queue."""

    def __init__(self, connection: pq.abc.PGconn) -> None:
        self.__dict__["_real"] = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["_real"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["_real"], name, value)

    def pipeline_sync(self) -> None:
        self.__dict__["pipeline_sync"] = self.__dict__["_real"].pipeline_sync
        raise psycopg.OperationalError("no memory\nat all")


async def test_half_a_request_ends_the_connection(url: str) -> None:
    """Answers behind it would be those of others. Who waited before is told, too."""
    failures: list[BaseException] = []
    made = _Stumbling(pq.PGconn.connect(url.encode()))
    pipe = Pipe(made, lambda _channel: None)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failure_of, pipe, b"SELECT 1", failures)
        nursery.start_soon(failure_of, pipe, b"SELECT 2", failures)
        await wait_all_tasks_blocked()
        nursery.start_soon(pipe.run)
    assert [str(one) for one in failures] == ["no memory"] * 2
    assert pipe.lost is not None


async def test_a_silent_session_ends(url: str) -> None:
    """The database itself ends the session of somebody who asks nothing for too long."""
    pipe = await connect(url, "repeater/test", lambda _channel: None, timeout=PROCESS_STARTS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.ask, b"SET idle_session_timeout = '50ms'")
        await pipe.run()
    assert str(pipe.lost) == "terminating connection due to idle-session timeout (57P05)"


async def test_the_end_of_run_ends_the_connection(url: str) -> None:
    """Who waits is told, and the server has one session less. The fixture looks for the socket."""
    failures: list[BaseException] = []
    async with (
        piping(url) as admin,
        waiting(admin),
        trio.open_nursery() as nursery,
        piping(url) as pipe,
    ):
        nursery.start_soon(failure_of, pipe, WAITING, failures)
        await wait_until_waiting(admin)
    assert [str(one) for one in failures] == ["the connection was ended here"]
    with pytest.raises(LostError, match="ended here"):
        await pipe.ask(b"SELECT 1")
