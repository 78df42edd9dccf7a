"""One connection to PostgreSQL: libpq in pipeline mode, and Trio waits for its socket.

libpq brings the protocol, TLS, passwords and service files; here is only when to read and write.
Behind each request goes a Sync of its own, so that an error fails this request alone, and each
request is a transaction. Answers come in the order of the requests. Statements have no names:
nothing is left in a session.

libpq may read while it writes, and a layer below it (TLS) may have read more than libpq took. No
readable socket tells of either. So after each write and each read all that came is taken.

Requests that wait for their answers have no bound here. Whoever asks has one.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import psycopg
import trio
from psycopg import pq

from repeater.postgres.errors import LostError, RefusedError

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

Row = tuple[bytes | None, ...]
"""The values of a row as text; None is NULL."""

_GOOD: Final = (
    pq.ExecStatus.COMMAND_OK,
    pq.ExecStatus.TUPLES_OK,
    pq.ExecStatus.EMPTY_QUERY,
)
_COPY: Final = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)
_MOST_PARAMETERS: Final = 65_535  # of one statement, by the protocol
# Said as a warning by a server that stops at once: by command, or after a crash of a process of it.
_STOPPING: Final = (b"57P01", b"57P02")


class _Request:
    """What waits for its answer, and that."""

    __slots__ = ("answered", "outcome")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.outcome: PGresult | RefusedError | LostError | None = None

    def settle(self, outcome: PGresult | RefusedError | LostError) -> None:
        self.outcome = outcome
        self.answered.set()


class Pipe:
    """One connection. Made by `connect`; `run` owns the socket, and ends it."""

    def __init__(self, connection: PGconn, notified: Callable[[str], None]) -> None:
        """Talk by a connection that is made; `notified` is told the channel of each NOTIFY."""
        connection.nonblocking = 1
        connection.enter_pipeline_mode()
        connection.notice_handler = self._note
        self._connection = connection
        # libpq closes its socket by itself, and Trio must not wait for one that is closed.
        self._socket = os.dup(connection.socket)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._notified = notified
        self._asked: deque[_Request] = deque()
        self._came = trio.lowlevel.ParkingLot()
        self._unsent = False
        self._unusable: psycopg.Error | None = None  # why nothing more can be sent
        self._part: PGresult | None = None  # of the request whose Sync has not come yet
        self.lost: LostError | None = None
        """Why the connection has ended; None while it has not."""
        self._farewell = ""  # what the server said last without being asked

    async def ask(self, statement: bytes, *parameters: bytes | None) -> list[Row]:
        """Carry out a statement, as a transaction of its own; returns its rows.

        No deadline: `statement_timeout` is the server's, and the caller sets one for its network.
        Cancelled, the statement may be carried out or not, and the connection can be used on.
        `COPY` cannot be asked for: the connection ends.

        Raises:
            RefusedError: the server refuses the statement, also when it commits; or it cannot be
                sent: a zero byte in it or in a parameter, more than 65,535 parameters.
            LostError: the connection has ended; the statement may have been carried out.
        """
        if self.lost is not None:
            raise LostError(str(self.lost))
        _check(statement, parameters)
        request = self._send(statement, parameters)
        await request.answered.wait()
        outcome = request.outcome
        if isinstance(outcome, RefusedError):
            raise outcome
        if isinstance(outcome, LostError):
            raise LostError(str(outcome))  # Each who waits gets one: raising adds to its traceback.
        assert outcome is not None
        return _rows(outcome)

    def _send(self, statement: bytes, parameters: Sequence[bytes | None]) -> _Request:
        request = _Request()
        self._asked.append(request)
        if self._unusable is None:
            try:
                self._connection.send_query_params(statement, parameters)
                self._connection.pipeline_sync()
            except psycopg.Error as error:
                # libpq may wait for half of a request. `_write` ends the connection.
                self._unusable = error
        self._unsent = True
        self._came.unpark()
        return request

    async def run(self) -> None:
        """Write and read until the connection ends; cancelled, it ends at once.

        No deadline: it may live for ever. At the end all who asked are told.
        """
        lost = LostError("the connection was ended here")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
        except* (psycopg.Error, LostError, OSError, trio.ClosedResourceError) as group:
            lost = LostError(self._farewell or first_line(group))
        finally:
            self.lost = lost
            while self._asked:
                self._asked.popleft().settle(lost)
            trio.lowlevel.notify_closing(self._socket)
            os.close(self._socket)
            self._connection.finish()

    def _note(self, result: PGresult) -> None:
        """Keep why the server ends the connection; other notices are for people at a terminal.

        It says so to nobody, or as the answer to what is asked just then.
        """
        severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        state = result.error_field(pq.DiagnosticField.SQLSTATE)
        if severity in (b"FATAL", b"PANIC") or state in _STOPPING:
            self._farewell = str(_refusal(result))

    async def _write(self) -> None:
        while True:
            while not self._unsent:  # No deadline: whoever asks sets the pace.
                await self._came.park()
            self._unsent = False
            if self._unusable is not None:
                self._receive()  # The server may have said why.
                raise self._unusable
            while self._flush():
                await trio.lowlevel.wait_writable(self._socket)

    def _flush(self) -> bool:
        """Write what the kernel takes; whether something is left."""
        try:
            left = self._connection.flush() == 1
            self._read_rest()
            return left
        finally:
            self._take_what_came()

    async def _read(self) -> None:
        while True:
            # No deadline: nobody may ask for long. Who does sets one.
            await trio.lowlevel.wait_readable(self._socket)
            self._receive()

    def _receive(self) -> None:
        try:
            self._connection.consume_input()
            self._read_rest()
        finally:  # Also what came with the end: it may say why.
            self._take_what_came()

    def _read_rest(self) -> None:
        """Read what TLS has decrypted already.

        A record has up to 16 KiB and libpq may have had room for 8. While the socket is readable
        the rest can wait for the next read. libpq 18.6 sees to that itself, and 15.18 does not.
        """
        if not self._readable.poll(0):
            self._connection.consume_input()

    def _take_what_came(self) -> None:
        self._take_results()
        while (notice := self._connection.notifies()) is not None:
            self._notified(notice.relname.decode(errors="replace"))

    def _take_results(self) -> None:
        nothing = 0  # Between two results is one None; at the end of a connection nothing else.
        while self._asked and nothing < 2 and not self._connection.is_busy():
            result = self._connection.get_result()
            nothing = 0 if result is not None else nothing + 1
            self._take(result)

    def _take(self, result: PGresult | None) -> None:
        """Take one result; None stands between the results of two requests."""
        if result is None:
            return
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            outcome, self._part = self._part, None
            assert outcome is not None
            bad = outcome.status not in _GOOD
            self._asked.popleft().settle(_refusal(outcome) if bad else outcome)
            return
        if result.status in _COPY:  # It would be the result for ever.
            raise LostError("COPY is not possible here")
        # A second result is why the transaction could not be committed.
        if self._part is None or self._part.status in _GOOD:
            self._part = result
        if result.status not in _GOOD:
            self._note(result)


def _refusal(result: PGresult) -> RefusedError:
    state = result.error_field(pq.DiagnosticField.SQLSTATE) or b"?????"
    text = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"no reason given"
    return RefusedError(state.decode(), _line(text.decode(errors="replace")))


def _check(statement: bytes, parameters: Sequence[bytes | None]) -> None:
    """Refuse what libpq would cut without a word, or not send.

    Raises:
        RefusedError: with the state that the server itself would answer with.
    """
    if len(parameters) > _MOST_PARAMETERS:
        raise RefusedError("54023", f"more than {_MOST_PARAMETERS:,} parameters")
    if b"\0" in statement:
        raise RefusedError("22021", "a zero byte in the statement")
    for number, parameter in enumerate(parameters, 1):
        if parameter is not None and b"\0" in parameter:
            raise RefusedError("22021", f"a zero byte in parameter {number}")


def _rows(result: PGresult) -> list[Row]:
    value, columns = result.get_value, range(result.nfields)
    return [tuple([value(row, column) for column in columns]) for row in range(result.ntuples)]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, of the first one in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    return text.strip().partition("\n")[0]
