"""One session with the database: what the server says to it, and what it says.

Each question has a deadline: a database that is there and does not answer is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import trio

from repeater.outgoing.bell import NAME, Bell
from repeater.outgoing.rows import OutgoingRow, row_of
from repeater.postgres.errors import NO_SCHEMA, LostError, RefusedError
from repeater.postgres.pipe import Pipe, Row
from repeater.postgres.schema import LOCK, VERSION

_LOCK: Final = (b"%d" % LOCK, b"3")  # the second number is the part of Repeater that it is for
ANSWER: Final = 4.0
"""Seconds for an answer, but for those of statements that may visit all dead rows of the table."""
# Seconds for these: 2,000,000 dead rows, which a snapshot keeps, take 0.1.
_LONG_ANSWER: Final = 35.0
_SHARE: Final = 20  # they take a twentieth of the time at most
_STATEMENT: Final = b"30s"  # for a statement; the server ends it
_GONE: Final = b"2s"  # until the server ends the statement of somebody who is not there any more
_ECHO: Final = 1.0  # seconds in which the bell must be heard when it was rung
# One who leads and is silent for so long is stopped or gone, and the database ends the session. It
# asks at least every 0.2 s.
_SILENCE: Final = b"1500ms"

_SETTINGS: Final = b"SELECT version, source FROM repeater.settings"
_LISTEN: Final = b'LISTEN "%s"' % NAME.encode()
_UNLISTEN: Final = b'UNLISTEN "%s"' % NAME.encode()
# Not `jit`: a look takes less than compiling would.
_SET: Final = (
    b"SELECT set_config('statement_timeout', '%s', false), set_config('jit', 'off', false),"
    b" set_config('default_transaction_isolation', 'read committed', false),"
    b" set_config('client_connection_check_interval', '%s', false)" % (_STATEMENT, _GONE)
)
_TRY: Final = b"SELECT pg_try_advisory_lock($1::int, $2::int)"
_LEADING: Final = b"SELECT set_config('idle_session_timeout', '%s', false)" % _SILENCE
_TERM: Final = b"SELECT repeater.next_term($1::bigint)"
_REMAINING: Final = b"SELECT unnest(repeater.remaining(string_to_array($1, ',')))"
_TAKE: Final = (
    b"SELECT id, at_us, channel, data, size, key, version, version_epoch, tags, missed, now_seen"
    b" FROM repeater.take($1::pg_snapshot, $2::bigint[], $3::int, $4::bigint, $5::int, $6::bool)"
)
# No reason has a line feed.
_DONE: Final = b"SELECT repeater.done($1::bigint[], $2::bigint[], string_to_array($3, E'\\n'))"
_STATE: Final = b"SELECT oldest_seconds, waiting, snapshot_seconds FROM repeater.state()"

_NO_SCHEMA: Final = ("3F000", "42P01", "42883")  # no such schema, no such table, no such function
_NO_RIGHT: Final = "42501"


class UnusableError(Exception):
    """The database is there and cannot be used so; the text says what to change."""


class Look(NamedTuple):
    """What was found in the table at one moment."""

    rows: list[OutgoingRow]
    seen: bytes | None
    """What was visible, for the next look; None if there was more than was asked for."""


class State(msgspec.Struct, frozen=True):
    """What waits in the database."""

    oldest: float = 0.0
    """Seconds since the oldest row was published; 0 without rows."""
    rows: int = 0
    """Counted to 10,000."""
    snapshot: float = 0.0
    """Seconds since the oldest snapshot that keeps dead rows alive, as far as it may be seen."""


class Refusal(NamedTuple):
    """A row that can never be published, and why: one line."""

    id: int
    reason: str


class Session:
    """One session. `pipe` is run by the caller, who also ends it.

    Each method raises `LostError` when the session has ended or the database does not answer, and
    `RefusedError` when it refuses a statement. Cancelled, a statement may be carried out or not.
    """

    def __init__(self, pipe: Pipe, bell: Bell) -> None:
        """Take a connection, and what it rings when it is notified."""
        self._pipe = pipe
        self.bell = bell

    async def begin(self, ring: Callable[[], Awaitable[None]]) -> str:
        """Look whether this database can be used, and set the session up; returns its name.

        The bell comes first: behind a pooler nothing may be set, since others get the session.

        Args:
            ring: Has the database ring the bell, by another session.

        Raises:
            UnusableError: there is no schema, one of another version, no right to use it, or no
                bell rings.
        """
        source = await self._checked_source()
        await self._ask(_LISTEN)
        await ring()
        with trio.move_on_after(_ECHO) as echo:
            await self.bell.wait()
        if echo.cancelled_caught:
            text = "no notification comes: this is a pooler; give the database's own address"
            raise UnusableError(text)
        await self._ask(_UNLISTEN)  # Who waits to lead is not to be woken for each publication.
        await self._ask(_SET)
        return source

    async def _checked_source(self) -> str:
        try:
            rows = await self._ask(_SETTINGS)
        except RefusedError as error:
            if error.state in _NO_SCHEMA:
                text = NO_SCHEMA
            elif error.state == _NO_RIGHT:
                text = f"{error}: run `repeater postgres grant --server`"
            else:
                raise
            raise UnusableError(text) from None
        version, source = rows[0] if rows else (None, None)
        if version != b"%d" % VERSION or source is None:
            found = "no version" if version is None else f"version {version.decode()}"
            text = f"its schema has {found}, and this server needs {VERSION}"
            raise UnusableError(f"{text}: run `repeater postgres migrate`")
        return source.decode()

    async def try_lead(self) -> bool:
        """Try to get the lock of the one that leads; it goes with the session."""
        return (await self._ask(_TRY, *_LOCK))[0][0] == b"t"

    async def lead(self) -> int:
        """Begin to lead, with the lock; returns the term. From now on the session is not silent."""
        await self._ask(_LEADING)
        await self._ask(_LISTEN)
        return await self.next_term(0)

    async def next_term(self, above: int) -> int:
        """A number higher than all before, and than `above`."""
        return _number((await self._ask(_TERM, b"%d" % above))[0])

    async def remaining(self, names: Sequence[str]) -> set[str]:
        """Which of the rows with these names are still in the table."""
        found = await self._ask(_REMAINING, ",".join(names).encode())
        return {name.decode() for (name,) in found if name is not None}

    async def take(
        self,
        seen: bytes | None,
        skip: Sequence[int],
        *,
        most: int,
        size: int,
        largest: int,
        again: bool = False,
    ) -> Look:
        """Rows that became visible since `seen`, in their order; see `repeater.take`.

        Args:
            seen: What an earlier look has seen; None for all rows but those of `skip`.
            skip: The numbers of rows that are under way; with `seen` they never come.
            most: Rows at most.
            size: Bytes after which no row more is given.
            largest: Bytes of one row, all its texts counted; a larger one comes without them.
            again: Give all rows but those of `skip`, and mark those that were visible in `seen`.
        """
        all_rows = seen is None or again
        rows = await self._ask(
            _TAKE,
            seen,
            _array(skip) if all_rows else b"{}",
            b"%d" % most,
            b"%d" % size,
            b"%d" % largest,
            b"t" if again else b"f",
            within=_LONG_ANSWER if all_rows else ANSWER,
        )
        whole = bool(rows) and rows[-1][0] is None
        now_seen = rows.pop()[-1] if whole else None
        return Look([row_of(one) for one in rows], now_seen)

    async def done(self, published: Sequence[int], refused: Sequence[Refusal]) -> int:
        """Remove rows, and keep those that were refused aside; returns how many were there."""
        answer = await self._ask(
            _DONE,
            _array(published),
            _array([one.id for one in refused]),
            "\n".join(one.reason for one in refused).encode(errors="replace"),
        )
        return _number(answer[0])

    async def say_something(self) -> None:
        """Ask for nothing: a session that leads must not be silent."""
        await self._ask(b"SELECT")

    async def state(self) -> State:
        """What waits."""
        oldest, rows, snapshot = (await self._ask(_STATE, within=_LONG_ANSWER))[0]
        return State(float(oldest or 0), int(rows or 0), float(snapshot or 0))

    async def _ask(
        self, statement: bytes, *parameters: bytes | None, within: float = ANSWER
    ) -> list[Row]:
        with trio.move_on_after(within):
            return await self._pipe.ask(statement, *parameters)
        raise LostError("the database does not answer")


def interval(least: float, took: float) -> float:
    """Seconds between two questions that may visit all dead rows, by how long the last one took."""
    return max(least, _SHARE * took)


def _array(numbers: Sequence[int]) -> bytes:
    return b"{%s}" % ",".join(map(str, numbers)).encode()


def _number(row: Row) -> int:
    assert row[0] is not None
    return int(row[0])
