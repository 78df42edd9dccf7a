"""A non-blocking socket, TLS or not, as the stream that Hypercorn expects.

`trio.SocketStream` accepts plain sockets of the standard library only, not subclasses of them.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

_RECEIVE: Final = 65_536


class RawStream:
    """The methods of a Trio stream that Hypercorn uses. One sender and one receiver at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.SocketStream.receive_some`, but a TLS record may exceed `max_bytes`."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.socket.recv(max_bytes or _RECEIVE)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_readable)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes) -> None:
        """As `trio.SocketStream.send_all`."""
        await trio.lowlevel.checkpoint()
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def _wait(self, ready: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self.socket.fileno() < 0:  # Trio would raise ValueError, a bug of ours.
            raise trio.ClosedResourceError
        await ready(self.socket)

    async def aclose(self) -> None:
        """Close the socket; tasks that wait for it wake."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        await trio.lowlevel.checkpoint()
