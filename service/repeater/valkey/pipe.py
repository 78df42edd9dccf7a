"""One connection to a server: requests in a row on one socket, answers in their order, and pushes.

Whoever asks does not wait: the answer goes to a callback. So very many requests can be under way,
and what comes while a write is under way goes with the next one. hiredis parses.

Requests that wait for their answers have no bound here. Each belongs to a caller that has one of
its own: a lane has one script under way, and a client's task one question.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import hiredis
import trio

Part = bytes | str | int
"""A part of a command."""

_READ: Final = 65_536  # bytes that are read at a time
_PARSED: Final = 512  # answers and pushes between two checkpoints: about 1 ms
_MORE: Final = object()  # what the parser returns when it needs more bytes
_WRITTEN: Final = 1_048_576  # bytes that are joined for one write
# Bytes of one answer. No server has a longer text in one (proto-max-bulk-len).
_LONGEST: Final = 536_870_912
# Answers of a server that cannot be used any more: a primary that was demoted, a server that loads
# its data, or that knows us no more. Scripts have them inside a longer text.
_UNUSABLE: Final = ("READONLY", "MASTERDOWN", "LOADING", "NOAUTH")
# What stands in an error before the arguments of a command that the server does not know. They may
# be a password, or what somebody published.
_ARGUMENTS: Final = ", with args beginning with"


class Lost(Exception):  # noqa: N818  # connections end
    """The connection has ended; what was asked may have happened or not."""


class Refused(Exception):  # noqa: N818  # the answer of a server
    """The server answered with an error. Its first word is a code, as in `ERR` or `NOSCRIPT`."""

    @property
    def code(self) -> str:
        """The first word."""
        return str(self).partition(" ")[0]


Tell = Callable[[object], None]
"""Takes the answer, a `Refused` or a `Lost`. Never waits and never fails."""


class Pushes(Protocol):
    """Takes what comes unasked: the messages of a bus."""

    def push(self, message: list[object]) -> None:
        """Take one. Never waits and never fails."""

    async def wait_room(self) -> None:
        """Wait until more can be taken; nothing is read meanwhile, and the server may cut us."""


class Pipe:
    """One connection. Made by `dial`; `run` owns the stream, and ends it."""

    def __init__(self, stream: trio.abc.Stream, pushes: Pushes) -> None:
        """Talk over a stream that is connected; `pushes` gets what nobody asked for."""
        self._stream = stream
        self._pushes = pushes
        # A plain socket is written and read without Trio's streams, whose calls take a pass of the
        # loop more: 2 to 3 us a publication.
        self._file = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self._reader = hiredis.Reader(replyError=self._refused, notEnoughData=_MORE)
        self._asked: deque[Tell] = deque()
        self._out: list[bytes] = []
        self._came = trio.lowlevel.ParkingLot()
        # Commands come one at a time: the next one is written at once, not in the next pass.
        self._alone = False
        self._unusable = ""
        self._unfinished = 0  # bytes that have come of an answer that is not whole
        self._ended = trio.Event()
        self.lost: Lost | None = None
        """Why the connection has ended; None while it has not."""
        self.reads = 0
        """How many times something was received."""
        self.is_held = False
        """Whether nothing is read now, as there is no room for pushes."""

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self._asked)

    def ask(self, command: bytes, tell: Tell) -> None:
        """Send a packed command; `tell` gets its answer. Never waits.

        Raises:
            Lost: the connection has ended, and nothing was sent.
        """
        if self.lost is not None:
            raise self.lost
        self._asked.append(tell)
        if self._alone and self._came:
            # The writer is parked: nothing was written in this pass. It looks again in the next.
            self._alone = False
            command = command[self._write_some(command) :]
        if command:
            self._out.append(command)
        if self._came:
            self._came.unpark()

    def order(self, command: bytes, tell: Tell) -> None:
        """Send packed commands whose answers are pushes, as those of SUBSCRIBE are.

        `tell` gets None when the server has carried out all of them, else the first `Refused`, or a
        `Lost`. A PING goes behind them: pushes answer no request, and errors do.

        Raises:
            Lost: the connection has ended, and nothing was sent.
        """
        self.ask(command + _PING, _Order(tell, self._asked))

    async def run(self) -> None:
        """Write and read until the connection ends; cancelled, it ends at once.

        No deadline: it may live for ever. At the end all callbacks were told of a `Lost`.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as group:
            self.end(Lost(_cause_of(group)))
        finally:
            self.end(Lost("the connection was ended here"))
            # No goodbye of TLS: a server that does not read would have us wait.
            await trio.aclose_forcefully(self._stream)

    async def wait_ended(self) -> Lost:
        """Wait until the connection has ended; returns why. No deadline: it may live for ever."""
        await self._ended.wait()
        assert self.lost is not None
        return self.lost

    def end(self, lost: Lost) -> None:
        """Tell all callbacks that the connection has ended. The caller ends `run` as well."""
        if self.lost is not None:
            return
        self.lost = lost
        self._ended.set()
        self._out.clear()
        while self._asked:
            self._asked.popleft()(lost)

    def _refused(self, text: str) -> Refused:
        text = text.partition(_ARGUMENTS)[0]
        if any(word in text for word in _UNUSABLE):
            self._unusable = text
        return Refused(text)

    async def _write(self) -> None:
        few = True
        while True:
            # No deadline: whoever asks sets the pace, and the owner watches `reads`.
            while not self._out:
                self._alone, few = few and self._file >= 0, True
                await self._came.park()
            few = len(self._out) == 1
            data = self._gathered()
            if self._file >= 0:
                data = data[self._write_some(data) :]
            if data:
                await self._stream.send_all(data)

    def _write_some(self, data: bytes) -> int:
        """Write what the kernel takes now; how many bytes."""
        try:
            return os.write(self._file, data)
        except OSError:
            return 0  # There is no room; or the connection has ended, as the stream will say.

    def _gathered(self) -> bytes:
        """What gathered, as one piece of about `_WRITTEN` bytes at most."""
        size = 0
        for number, one in enumerate(self._out, 1):
            size += len(one)
            if size >= _WRITTEN:
                data = b"".join(self._out[:number])
                del self._out[:number]
                return data
        data = b"".join(self._out)
        self._out.clear()
        return data

    async def _read(self) -> None:
        # No deadline: a bus may be silent for long, and the owner watches `reads`.
        while data := await self._receive():
            self.reads += 1
            self._reader.feed(data)  # type: ignore[arg-type]  # takes a bytearray as well
            self._unfinished += len(data)
            while self._take_some():
                await trio.lowlevel.checkpoint()
            if self._unfinished > _LONGEST:
                raise trio.BrokenResourceError("an answer of the server has no end")
            if self._unusable:
                raise trio.BrokenResourceError(self._unusable)
            self.is_held = True
            await self._pushes.wait_room()
            self.is_held = False
        raise trio.BrokenResourceError("the server has closed the connection")

    async def _receive(self) -> bytes | bytearray:
        if self._file < 0:
            return await self._stream.receive_some(_READ)
        while True:
            await trio.lowlevel.wait_readable(self._file)
            with suppress(BlockingIOError):
                return os.read(self._file, _READ)

    def _take_some(self) -> bool:
        """Give out what was read, `_PARSED` at most; whether there may be more."""
        gets, asked, push = self._reader.gets, self._asked, self._pushes.push
        for taken in range(_PARSED):
            try:
                answer = gets()
            # A map with a list as a key is a TypeError, a list of 2^32 answers a MemoryError.
            except (hiredis.ProtocolError, TypeError, MemoryError) as error:
                raise trio.BrokenResourceError(f"not an answer of a server: {error}") from None
            if answer is _MORE:
                if taken:
                    self._unfinished = 0
                return False
            if type(answer) is hiredis.PushNotification:
                push(answer)
            elif asked:
                asked.popleft()(answer)
            else:
                raise trio.BrokenResourceError("the server answers what nobody asked")
        self._unfinished = 0
        return True


class _Order:
    """The answer to an order: errors of its commands, then that of the PING behind them."""

    __slots__ = ("asked", "refused", "tell")

    def __init__(self, tell: Tell, asked: deque[Tell]) -> None:
        self.tell = tell
        self.asked = asked
        self.refused: Refused | None = None

    def __call__(self, answer: object) -> None:
        if isinstance(answer, Refused):
            # `dial` has seen that PING is allowed, so it is one of the commands. The PING's comes.
            self.refused = self.refused or answer
            self.asked.appendleft(self)
        elif answer == b"PONG" or isinstance(answer, Lost):
            self.tell(answer if isinstance(answer, Lost) else self.refused)
        else:
            # PING is refused since then: this is the answer to what was asked behind it.
            self.asked.appendleft(self)
            raise trio.BrokenResourceError("the server does not answer PING any more")


def packed(*parts: Part) -> bytes:
    """A command as it is sent."""
    return hiredis.pack_command(parts)  # type: ignore[no-any-return,arg-type]


def ignore(_answer: object) -> None:
    """For answers that nobody needs."""


_PING: Final = packed("PING")


def _cause_of(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error.__cause__ or error) or type(error).__name__
