"""What a handed-over connection writes: in order, whole, and within a deadline."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from repeater.deadlines import within
from repeater.transports.sockets import limit_unsent

RATE: Final = 16_384
"""Bytes a second that a peer must take of an answer, after the first `write_timeout`."""


class Writer:
    """Writes to one socket. Lives inside its connection; ended by `close`."""

    def __init__(
        self, sock: socket.socket, timeout: float, stall: Callable[[], Awaitable[None]]
    ) -> None:
        """Take the function that ends the connection of a peer that does not read."""
        self._socket = sock
        self._timeout = timeout
        self._stall = stall
        # The rest of an answer, not copied: thousands may wait for one page that all of them got.
        self._waiting: bytes | memoryview = b""
        limit_unsent(sock)
        self._lock = trio.Lock()
        self.closed = False
        """Whether nothing is written any more: the peer has gone, or the connection has ended."""

    async def write(self, data: bytes) -> None:
        """Write behind all that was written before; nothing is written once the peer has gone.

        The bytes have their place before the first checkpoint, and are written even if the caller
        is cancelled: half a frame would spoil the connection for others. A peer that takes nothing
        for the write timeout is ended, and so is one that takes less than `RATE`: the deadline is
        set once, and what the peer takes does not move it.
        """
        self._waiting = b"".join((self._waiting, data)) if self._waiting else data
        deadline = within(self._timeout) + len(self._waiting) / RATE
        with trio.CancelScope(shield=True, deadline=deadline):
            async with self._lock:
                await self._flush()
        if self._waiting:
            await self._stall()

    def close(self) -> None:
        """Drop what waits, and end nobody any more. Idempotent."""
        self.closed = True
        self._waiting = b""
        self._stall = _nothing

    async def _flush(self) -> None:
        """Write what waits, until the peer takes nothing for the write timeout."""
        while self._waiting:
            try:
                sent = self._socket.send(self._waiting)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()  # The peer is gone; the reader hears of it, too.
                return
            self._waiting = memoryview(self._waiting)[sent:]
            if self._waiting and not await self._wait_writable():
                return

    async def _wait_writable(self) -> bool:
        """Wait for room; return whether there is room or the peer has gone."""
        if self._socket.fileno() < 0:  # Trio would raise ValueError, a bug of ours.
            self.close()
            return True
        with trio.move_on_at(within(self._timeout)) as scope:
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except trio.ClosedResourceError:
                self.close()
        return not scope.cancelled_caught


async def _nothing() -> None:
    """The `_stall` of a closed writer."""
