"""The network between subscribers and server, with its faults.

A `Line` does to the server what a TCP proxy between the two would do; the server can't tell them
apart, and nothing is copied twice.
"""

from __future__ import annotations

import socket
import ssl
import struct
from math import inf
from random import Random

import trio

from tests.certificates import Authority

_HANDSHAKE = 10.0  # seconds
_RESET = struct.pack("ii", 1, 0)
_BUFFER = 8_192  # bytes: so that a reader who pauses soon makes the server keep something


class Line(trio.abc.Stream):
    """One connection to the server. Owned by its subscriber."""

    def __init__(self, stream: trio.SocketStream, network: Network) -> None:
        self._stream = stream
        self._network = network
        self._left = network.budget()
        self._held_until = 0.0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send it, whole or byte by byte, or a part and a reset."""
        await self._hold()
        data = bytes(data)
        step = 1 if self._network.crumbs else max(1, len(data))
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            await self._stream.send_all(piece[: int(min(self._left, len(piece)))])
            self._spend(len(piece))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive, whole or byte by byte; after as many bytes as the line may carry, a reset."""
        await self._hold()
        received = await self._stream.receive_some(1 if self._network.crumbs else max_bytes)
        await self._hold()  # as if it had not come before
        self._spend(len(received))
        return bytes(received)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._network.lines.pop(self, None)
        await self._stream.aclose()

    def hold(self, seconds: float) -> None:
        """Carry nothing for some time, in either direction."""
        self._held_until = trio.current_time() + seconds

    def reset(self) -> None:
        """End as by a firewall: at once, whatever is on its way."""
        self._network.lines.pop(self, None)
        if self._stream.socket.fileno() != -1:
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._stream.socket.close()

    def close(self) -> None:
        """End with a FIN, while its subscriber still reads."""
        self._network.lines.pop(self, None)
        self._stream.socket.close()

    def half_close(self) -> None:
        """Say that nothing more will be sent; the subscriber reads on."""
        try:
            self._stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it has ended meanwhile

    async def _hold(self) -> None:
        await trio.sleep_until(self._held_until)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left <= 0:
            self.reset()
            raise trio.BrokenResourceError("cut")


class Network:
    """All lines to one server."""

    def __init__(
        self, host: str, port: int, rng: Random, authority: Authority | None = None
    ) -> None:
        """Without an authority, everything is in the clear."""
        self.lines: dict[Line, None] = {}  # in the order of their making, so that a seed repeats
        self.crumbs = False
        """Whether everything goes byte by byte."""
        self.cut_within: int | None = None
        """Each new line carries at most so many bytes."""
        self.addresses = [(host, port)]
        """Each line goes to any of them."""
        self._rng = rng
        self._contexts: dict[str, ssl.SSLContext] = {}
        if authority is not None:
            self._contexts = {one: authority.client(one) for one in ("http/1.1", "h2")}

    async def open(self, protocol: str) -> trio.abc.Stream:
        """A new line, behind TLS where the server speaks it.

        Raises:
            OSError: the server does not listen.
            trio.BrokenResourceError: the line was cut already.
        """
        line = await self.open_line()
        self.lines[line] = None
        if not self._contexts:
            return line
        secure = trio.SSLStream(
            line, self._contexts[protocol], server_hostname="localhost", https_compatible=True
        )
        try:
            with trio.fail_after(_HANDSHAKE):
                await secure.do_handshake()
        except trio.TooSlowError:
            await line.aclose()
            raise OSError("no handshake") from None
        except BaseException:
            await line.aclose()
            raise
        return secure

    async def open_line(self) -> Line:
        """A stranger's line, which faults leave alone.

        Raises:
            OSError: the server does not listen.
        """
        sock = trio.socket.socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            with trio.fail_after(3):
                await sock.connect(self._rng.choice(self.addresses))
        except trio.TooSlowError:
            sock.close()
            raise OSError("no answer") from None
        except BaseException:
            sock.close()
            raise
        return Line(trio.SocketStream(sock), self)

    def some(self, share: float) -> list[Line]:
        """Some of the lines, at least one if there are any."""
        lines = list(self.lines)
        return self._rng.sample(lines, min(len(lines), max(1, int(share * len(lines)))))

    def budget(self) -> float:
        """How many bytes a new line may carry."""
        return inf if self.cut_within is None else self._rng.randint(1, self.cut_within)

    def heal(self) -> None:
        """Carry everything again."""
        self.crumbs, self.cut_within = False, None
        for line in self.lines:
            line.hold(0)
