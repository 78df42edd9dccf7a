"""The outbox of one client: chunks go straight to the socket, or behind a bounded backlog.

Rule 1: while nothing waits, `send` is one non-blocking write of shared bytes; no task, no copy.
Rule 2: once something waits, everything waits behind it, so order always holds; a memory channel
is made and a drain task empties it, then both go away again.
Rule 3: when the backlog passes its bound in bytes, or makes no progress for the write timeout, the
client is cut, and no other client is affected.

No chunk has to ask whether rule 1 or rule 2 holds: `_write` is the socket's own method under rule
1, and a method that queues under rule 2. A delivery is one attribute and one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import trio

from repeater.errors import CONNECTION_CLOSED, SERVER_ERROR, SLOW, WRITE_ERROR, Disconnect
from repeater.failures import Failures
from repeater.fanout.transport import Chunk

if TYPE_CHECKING:
    from repeater.fanout.transport import Transport

_PUSHED = 65_536  # bytes pushed before the outbox flushes by itself: its limit is asked then
_COALESCE = 65_536  # bytes that the drain task joins into one write: about a socket's buffer
_LEFT: Final = (BrokenPipeError, ConnectionResetError, trio.BrokenResourceError)
"""What a write raises when the peer has hung up or has reset the connection."""


class BacklogRoom:
    """What the outboxes of one node share: the drain tasks' nursery and the write timeout.

    Lives inside `open_node`; its nursery ends every drain task.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        limit: int,
        write_timeout: float,
        failures: Failures | None = None,
    ) -> None:
        """Note errors of our own in `failures`, if it is given."""
        self.nursery = nursery
        self.failures = failures or Failures()
        self.limit = limit
        self.write_timeout = write_timeout
        self.backlogged: dict[Outbox, None] = {}

    def stuck(self) -> list[Outbox]:
        """The outboxes whose backlog made no progress for the write timeout."""
        deadline = trio.current_time() - self.write_timeout
        return [outbox for outbox in self.backlogged if outbox.stuck_since(deadline)]


class Outbox:
    """Everything on its way to one client. Lives inside its `Client`; ended by `close`."""

    __slots__ = (
        "_backlog",
        "_closed",
        "_cut",
        "_pending",
        "_pushed",
        "_room",
        "_transport",
        "_write",
    )

    def __init__(
        self, transport: Transport, room: BacklogRoom, cut: Callable[[Disconnect], None]
    ) -> None:
        self._transport = transport
        # The function that takes a chunk now: the transport's `write`, `_queue` or `_drop`.
        self._write: Callable[[bytes], int] = transport.write
        self._room = room
        self._cut = cut
        self._pending: list[bytes] | None = None  # pushed, not yet flushed
        self._pushed = 0  # their bytes
        self._backlog: _Backlog | None = None
        self._closed = False

    @property
    def backlog_bytes(self) -> int:
        """Bytes that the socket has not taken yet."""
        return 0 if self._backlog is None else self._backlog.size

    @property
    def waiting(self) -> int:
        """Bytes that were sent or pushed and that the socket has not taken yet."""
        return self.backlog_bytes + (0 if self._pending is None else self._pushed)

    @property
    def closed(self) -> bool:
        """Whether the client is gone, so that chunks are dropped."""
        return self._closed

    def send(self, chunk: bytes) -> None:
        """Write one chunk now, or put it behind what waits. A peer's failure never raises."""
        send_to_all((self,), chunk)

    def push(self, chunk: bytes) -> bool:
        """Keep a chunk for the next `flush` or `send`; True if it is the first one kept.

        Many bytes are flushed at once, so that the outbox's limit bounds them too.
        """
        if self._closed:
            return False
        first = self._pending is None
        if self._pending is None:
            self._pending, self._pushed = [chunk], len(chunk)
            self._choose_write()
        else:
            self._pending.append(chunk)
            self._pushed += len(chunk)
        if self._pushed >= _PUSHED:
            self.flush()
        return first

    def flush(self) -> None:
        """Write everything pushed, in one call if the socket takes it."""
        pending, self._pending = self._pending, None
        if pending is None or self._closed:
            return
        self._choose_write()
        chunks = [b"".join(pending)] if self._transport.codec.framed else pending
        for chunk in chunks:
            if self._backlog is not None:
                self._wait(chunk)
            else:
                self.send(chunk)

    def _choose_write(self) -> None:
        """Choose `_write` anew, because what waits has changed."""
        if self._closed:
            self._write = _drop
        elif self._pending is None and self._backlog is None:
            self._write = self._transport.write
        else:
            self._write = self._queue

    def _queue(self, chunk: bytes) -> int:
        """Take a chunk as a socket's `write` would, but put it behind what waits."""
        self.push(chunk)
        self.flush()
        return len(chunk)

    def _refused(self, chunk: bytes, error: OSError) -> None:
        """Queue a chunk that the socket did not take; cut the client if the socket failed."""
        if isinstance(error, BlockingIOError):
            self._wait(chunk)
        else:
            self._end(_end_of(error))

    def _wait(self, chunk: Chunk) -> None:
        """Put a chunk behind the backlog. If the backlog is full, the client is cut as slow."""
        if self._closed:
            return
        if self._backlog is None:
            self._backlog = _Backlog(self._room.limit)
            self._choose_write()
            self._room.backlogged[self] = None
            self._room.nursery.start_soon(self._drain, self._backlog)
        if not self._backlog.add(chunk):
            self._end(SLOW)

    async def _drain(self, backlog: _Backlog) -> None:
        """Empty the backlog into the socket, then end. Its deadline is the backlog sweep's."""
        with backlog.scope:
            try:
                await self._drain_all(backlog)
            except (OSError, trio.ClosedResourceError, trio.BrokenResourceError) as error:
                self._end(_end_of(error))
            except Exception as error:  # the boundary: this is one client's task
                self._room.failures.note("outbox", error)
                self._end(SERVER_ERROR)

    async def _drain_all(self, backlog: _Backlog) -> None:
        while backlog.size:
            rest = memoryview(backlog.take(join=self._transport.codec.framed))
            while rest:
                sent = await self._transport.send_some(rest)
                backlog.progress(sent)
                rest = rest[sent:]
        # No await since the last look at its size: nothing can have been added meanwhile.
        self._backlog = None
        self._choose_write()
        self._room.backlogged.pop(self, None)
        backlog.emptied.set()

    def stuck_since(self, progress_deadline: float) -> bool:
        """Whether the backlog last moved before this Trio time."""
        return self._backlog is not None and self._backlog.moved_at < progress_deadline

    def cut_stuck(self) -> None:
        """Cut the client if its backlog still makes no progress: its cut may have waited."""
        if self.stuck_since(trio.current_time() - self._room.write_timeout):
            self._end(WRITE_ERROR)

    def _end(self, why: Disconnect) -> None:
        """Have the client cut. A boundary: who writes may be fan-out, which serves all others."""
        try:
            self._cut(why)
        except Exception as error:
            self._room.failures.note("cut", error)
            self.close()
            self._transport.abort()

    async def wait_empty(self) -> None:
        """Wait until the socket took everything. The caller sets the deadline."""
        self.flush()
        if self._backlog is not None:
            await self._backlog.emptied.wait()

    def close(self) -> None:
        """Drop what waits and end the drain task; later chunks are dropped, too. Idempotent."""
        self._closed = True
        self._pending = None
        # The client needs no cut any more, and without this reference to it no garbage collector
        # is needed to free it.
        self._cut = _nobody
        self._room.backlogged.pop(self, None)
        if self._backlog is not None:
            self._backlog.scope.cancel()
            self._backlog.emptied.set()
            self._backlog = None
        self._choose_write()


def send_to_all(outboxes: Iterable[Outbox], chunk: bytes) -> None:
    """`Outbox.send` one chunk to each outbox: the loop in which fan-out spends its time.

    The cost beside the system call is counted in instructions, so this is one loop without a
    Python call inside. An outbox that is closed meanwhile drops the chunk.
    """
    size = len(chunk)
    for outbox in outboxes:
        # Loaded before the call: with `outbox._write(chunk)` CPython would look for a method.
        write = outbox._write
        try:
            sent = write(chunk)
        except OSError as error:
            outbox._refused(chunk, error)
        else:
            if sent != size:
                # A view: one chunk goes to thousands, and each slow client would copy its rest.
                outbox._wait(memoryview(chunk)[sent:])


def _end_of(error: Exception) -> Disconnect:
    """How a client ends whose write failed: a peer that left is no error of the server's."""
    return CONNECTION_CLOSED if isinstance(error, _LEFT) else WRITE_ERROR


def _drop(chunk: bytes) -> int:
    """The `_write` of a closed outbox: drops the chunk."""
    return len(chunk)


def _nobody(_disconnect: Disconnect) -> None:
    """The `_cut` of a closed outbox: does nothing."""


class _Backlog:
    """The memory channel of one client, with its size in bytes and its last progress."""

    __slots__ = ("_limit", "_receive", "_send", "emptied", "moved_at", "scope", "size")

    def __init__(self, limit: int) -> None:
        # Unbounded in items, because `add` bounds it in bytes.
        self._send, self._receive = trio.open_memory_channel[Chunk](math.inf)
        self._limit = limit
        self.size = 0
        self.moved_at = trio.current_time()
        self.scope = trio.CancelScope()
        self.emptied = trio.Event()

    def add(self, chunk: Chunk) -> bool:
        """Put one chunk in, or return False without doing so if the limit would be passed.

        The first chunk always fits: an event that was accepted cuts no client that keeps up,
        however long the client's codec makes it.
        """
        if self.size and self.size + len(chunk) > self._limit:
            return False
        self.size += len(chunk)
        self._send.send_nowait(chunk)
        return True

    def take(self, *, join: bool) -> Chunk:
        """The next chunk; with `join`, also chunks behind it. `size` still counts their bytes."""
        chunk = self._receive.receive_nowait()
        if not join:
            return chunk
        chunks, size = [chunk], len(chunk)
        while size < _COALESCE:
            try:
                chunk = self._receive.receive_nowait()
            except trio.WouldBlock:
                break
            chunks.append(chunk)
            size += len(chunk)
        return b"".join(chunks) if len(chunks) > 1 else chunk

    def progress(self, sent: int) -> None:
        """Note that the socket took this many bytes."""
        self.size -= sent
        self.moved_at = trio.current_time()
