"""What a handed-over connection writes: in order, whole, and within a deadline."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import trio

from repeater.deadlines import within

RATE: Final = 16_384
"""Bytes a second that a peer must take of an answer, after the first `write_timeout`."""


class Writer:
    """Writes to one socket. Lives inside its connection; ended by `close`."""

    def __init__(self, sock: socket.socket, timeout: float, stall: Callable[[], None]) -> None:
        """Take the function that ends the connection of a peer that does not read."""
        self._socket = sock
        self._timeout = timeout
        self._stall = stall
        self._waiting = bytearray()
        self._lock = trio.Lock()

    async def write(self, data: bytes) -> None:
        """Write behind all that was written before; nothing is written once the peer has gone.

        The bytes have their place before the first checkpoint, and are written even if the caller
        is cancelled: half a frame would spoil the connection for others. A peer that takes nothing
        for the write timeout is ended, and so is one that takes less than `RATE`: the deadline is
        set once, and what the peer takes does not move it.
        """
        self._waiting += data
        deadline = within(self._timeout) + len(self._waiting) / RATE
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            async with self._lock:
                await self._flush()
        if scope.cancelled_caught and self._waiting:
            self._stall()

    def close(self) -> None:
        """Drop what waits, and end nobody any more. Idempotent."""
        self._waiting.clear()
        self._stall = _nothing

    async def _flush(self) -> None:
        while self._waiting:
            try:
                sent = self._socket.send(self._waiting)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()  # The peer is gone; the reader hears of it, too.
                return
            del self._waiting[:sent]
            if self._waiting:
                await self._wait_writable()

    async def _wait_writable(self) -> None:
        if self._socket.fileno() < 0:  # Trio would raise ValueError, a bug of ours.
            self.close()
            return
        with trio.move_on_at(within(self._timeout)) as scope:
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except trio.ClosedResourceError:
                self.close()
        if scope.cancelled_caught:
            self._stall()


def _nothing() -> None:
    """The `_stall` of a closed writer."""
