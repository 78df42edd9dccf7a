"""One client's non-blocking socket: what every native transport does with it."""

from __future__ import annotations

import socket
import struct
from typing import Final

import trio

from repeater.protocol.centrifugo.codecs import Codec

RECEIVE: Final = 65_536
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: RST, nothing waits


class SocketTransport:
    """Writes to one socket. Owned by the connection's handler, which answered its request."""

    __slots__ = ("_socket", "codec", "write")

    def __init__(self, sock: socket.socket, codec: Codec) -> None:
        self._socket = sock
        self.codec = codec
        # The C method itself: a delivery must not pay for a Python call around its system call.
        # After `abort` it raises OSError (EBADF), never writes to a recycled descriptor.
        self.write = sock.send

    def address(self) -> str:
        """The peer's address and port, asked of the kernel: none is kept for an idle client."""
        try:
            name = self._socket.getpeername()
        except OSError:
            return ""
        if not isinstance(name, tuple):
            return str(name)  # a Unix socket's peer, which mostly has no name
        host, port, *_ = name
        if not port:
            return str(host)  # all that a proxy said
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def send_some(self, chunk: bytes) -> int:
        """Wait until the socket takes something, and write it."""
        while True:
            if self._socket.fileno() < 0:  # Trio would raise ValueError, a bug of ours.
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_writable(self._socket)
            try:
                return self.write(chunk)
            except BlockingIOError:
                continue

    def abort(self) -> None:
        """Reset the connection: unsent data is dropped, every waiter wakes. Idempotent."""
        abort_socket(self._socket)

    def release(self) -> None:
        """Give the socket back after an orderly end. Idempotent."""
        self._socket.close()

    async def part(self, last: bytes) -> None:
        """Send the last bytes, then wait until the peer hung up (the caller's deadline).

        The half-close and the wait keep those bytes from being overtaken by a reset.
        """
        while last:
            last = last[await self.send_some(last) :]
        await self.linger()

    async def linger(self) -> None:
        """Half-close, and read into nothing until the peer hung up."""
        self._socket.shutdown(socket.SHUT_WR)
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            if not self._socket.recv(RECEIVE):
                return


def abort_socket(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close a socket with a reset, and wake whoever waits for it. Idempotent."""
    if sock.fileno() < 0:
        return
    trio.lowlevel.notify_closing(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def send_last(sock: socket.socket, answer: bytes) -> None:
    """Write a short answer into an empty socket buffer, then end our side."""
    try:
        sock.send(answer)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return  # The peer did not wait for it.
