"""One client's non-blocking socket, as every native transport uses it."""

from __future__ import annotations

import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from random import uniform
from typing import TYPE_CHECKING, Final

import trio

from repeater.errors import Disconnect
from repeater.fanout.transport import Chunk
from repeater.protocol.centrifugo.codecs import Codec

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.turns import GiveWay

RECEIVE: Final = 65_536
_FIRST_PAUSE: Final = 0.01  # seconds before the third read of what is discarded, then doubled
_LONGEST_PAUSE: Final = 0.5
_UNSENT: Final = 65_536  # bytes
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close sends a reset


class SocketTransport(ABC):
    """Writes to one socket. Owned by the connection's handler."""

    __slots__ = ("_socket", "codec", "refuse", "write")

    def __init__(self, sock: socket.socket, codec: Codec) -> None:
        self._socket = sock
        self.codec = codec
        self.refuse: Callable[[Disconnect], bytes] | None = None
        """Makes the HTTP answer to give in place of a goodbye, while the request is not answered.
        None once it is."""
        # The C method itself, so that a delivery costs no Python call around its system call.
        # After `abort` it raises OSError (EBADF) and never writes to a recycled descriptor.
        self.write = sock.send

    def address(self) -> str:
        """The peer's address and port, from the kernel, so that an idle client keeps none."""
        try:
            name = self._socket.getpeername()
        except OSError:
            return ""
        if not isinstance(name, tuple):
            return str(name)  # a Unix socket's peer, which usually has no name
        host, port, *_ = name
        if not port:
            return str(host)  # a proxy's header may name an address without a port
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def send_some(self, chunk: Chunk) -> int:
        """Wait until the socket takes bytes, write, and return how many it took."""
        while True:
            if self._socket.fileno() < 0:  # Trio would raise ValueError, a bug of ours.
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_writable(self._socket)
            try:
                return self.write(chunk)
            except BlockingIOError:
                continue

    def abort(self) -> None:
        """Reset the connection: unsent data is dropped, every waiting task wakes. Idempotent."""
        abort_socket(self._socket)

    def release(self) -> None:
        """Close the socket after an orderly end. Idempotent."""
        self._socket.close()

    @abstractmethod
    def goodbye(self, disconnect: Disconnect) -> bytes:
        """The last bytes of an answered request's connection, with the reason of its end."""

    async def close(self, disconnect: Disconnect) -> None:
        """Say why, then wait until the peer hangs up. The caller sets the deadline."""
        refuse, self.refuse = self.refuse, None
        await self.part(self.goodbye(disconnect) if refuse is None else refuse(disconnect))

    async def part(self, last: bytes) -> None:
        """Send the last bytes, then wait until the peer hangs up. The caller sets the deadline.

        Without the half-close and the wait, a reset could overtake these bytes.
        """
        while last:
            last = last[await self.send_some(last) :]
        await self.linger()

    async def linger(self) -> None:
        """Half-close, then read and discard until the peer hangs up."""
        self._socket.shutdown(socket.SHUT_WR)
        await discard(self._socket)


async def greet(client: Client, answer: bytes) -> None:
    """Queue the answer to the request of a client on a native transport; no checkpoint.

    The answer leaves with the first flush, when the client's channels are live.
    """
    transport = client.transport
    assert isinstance(transport, SocketTransport)
    transport.refuse = None
    client.outbox.push(answer)


async def discard(sock: socket.socket, give_way: GiveWay = trio.lowlevel.checkpoint) -> None:
    """Read and discard until the peer hangs up, ever more rarely. The caller sets the deadline.

    `give_way` is awaited before each read.

    Raises:
        OSError, trio.ClosedResourceError: the peer was reset, or the socket was closed.
    """
    pause = 0.0
    while True:
        if sock.fileno() < 0:  # Trio would raise ValueError, a bug of ours.
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(sock)
        await give_way()
        try:
            if not sock.recv(RECEIVE):
                return
        except BlockingIOError:
            continue
        # A peer that sends as fast as it can must not cost a read in each pass of the loop.
        # The random part keeps peers apart that came together.
        await trio.sleep(pause * uniform(0.5, 1.0))
        pause = min(_LONGEST_PAUSE, pause * 2 or _FIRST_PAUSE)


def abort_socket(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close a socket with a reset, and wake the tasks that wait for it. Idempotent."""
    if sock.fileno() < 0:
        return
    trio.lowlevel.notify_closing(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def notice_silence(sock: socket.socket, seconds: float) -> None:
    """Make TCP give up a peer that has not acknowledged sent bytes for so many seconds.

    A stream has no pongs; TCP's acknowledgements of our heartbeats take their place.
    """
    option: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # on Linux, not on Darwin
    if option is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, option, round(seconds * 1_000))


def limit_unsent(sock: socket.socket) -> None:
    """Make the kernel take no more than 64 KiB of bytes that the peer's window has no room for.

    Else the kernel takes megabytes, and a peer that pipelines requests without reading is answered
    again and again. What is on its way to a peer that reads is not limited.
    """
    option: Final = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # on Linux and Darwin
    if option is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, option, _UNSENT)


def send_last(sock: socket.socket, answer: bytes) -> None:
    """Write a short answer into an empty socket buffer, then end our side."""
    try:
        sock.send(answer)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return  # The peer did not wait for it.
