"""The honest side of a flood: subscribers that may lose events or their connection, health checks.

`Deliveries` ends the turn at the first fault. Here a subscriber that the server ends, and an event
that does not come, are counted, because these numbers are the result. An event that comes twice, or
after a later one, still ends the turn.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Entry
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Deliveries
from benchmarks.generator.secure import wrap
from benchmarks.generator.wire import EVENT_SIZE

_GOOD: Final = b"HTTP/1.1 200"
PATIENCE: Final = 10.0
"""Seconds after which a health check counts as failed, with this time as its latency."""


class SteadyPublisher(Publisher):
    """A back end that publishes when an event is due, although earlier calls have no answer yet."""

    def publish(self, data: bytes, entry: Entry | None = None) -> None:
        """Send one event behind the others; only what the socket does not take waits for it."""
        self._sent_ns.append(time.monotonic_ns())
        encoded = (entry or self._entry).encode([data], self.sent)
        if self.blocked:
            encoded = bytes(self._unsent) + encoded
        self.send(encoded, 1)

    def ready(self) -> None:
        """Read the available answers, and send on."""
        super().ready()
        self.go_on()


class HonestDeliveries(Deliveries):
    """Counts what one channel's subscribers get, and what they do not. Lives inside one turn."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.ended = 0
        """Subscribers whose connection the server has ended."""
        self._never = 0  # deliveries to them that cannot come any more
        self._receive = {fd: _careful(receive) for fd, receive in crowd.receivers().items()}

    @property
    def lost(self) -> int:
        """Deliveries that have not come; those to ended connections included."""
        return self._never + self._awaited

    def publish(
        self,
        publisher: Publisher,
        size: int = EVENT_SIZE,
        channel: int = 0,
        entry: Entry | None = None,
    ) -> None:
        """Publish the next event now; subscribers that have been ended lose it."""
        self._never += self.ended
        super().publish(publisher, size, channel, entry)

    def _parse(self, fd: int, data: bytes) -> tuple[int, ...]:
        if data:
            return tuple(super()._parse(fd, data))
        self._end(fd)
        return ()

    def _end(self, fd: int) -> None:
        """Note that this subscriber hears nothing more."""
        self.ended += 1
        self._listeners[0] -= 1
        for number in range(self._heard.pop(fd) + 1, len(self._left)):
            self._never += 1
            self._left[number] -= 1
            self._awaited -= 1
            if not self._left[number]:
                self.outstanding -= 1
        if not self.outstanding:
            self.busy.end()
        del self._receive[fd]
        self._crowd.sockets.pop(fd).close()  # which leaves the poller, too

    def listen(self, seconds: float, *, patient: bool = False) -> None:
        """Read for so many seconds; with `patient`, only until nothing is outstanding."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if patient and not self.outstanding:
                return
            self.pump(min(left, 0.1))


def _careful(receive: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return a `recv` to which a reset is the end of a connection."""

    def careful(size: int) -> bytes:
        try:
            return receive(size)
        except ConnectionError:
            return b""

    return careful


class HealthChecks:
    """Asks for a health page on new connections, as a load balancer does. Lives inside one turn."""

    def __init__(self, deliveries: Deliveries, port: int, path: str, *, secure: bool) -> None:
        """Prepare; `deliveries` drives the sockets. `secure` is for a server that speaks TLS."""
        self._deliveries = deliveries
        self._address = ("127.0.0.1", port)
        self._secure = secure
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        ).encode()
        self._open: dict[int, _Check] = {}
        self.latencies_ns: list[int] = []

    def begin(self) -> None:
        """Begin one more check, whether or not the earlier ones were answered."""
        check = _Check(self, self._address, self._request, secure=self._secure)
        self._open[check.fileno()] = check
        self._deliveries.watch(check, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def end(self, check: _Check, *, good: bool) -> None:
        """Note an answer, or a connection that failed."""
        spent = time.monotonic_ns() - check.begun_ns
        self.latencies_ns.append(spent if good else max(spent, int(PATIENCE * 1e9)))
        del self._open[check.fileno()]
        self._deliveries.unwatch(check)
        check.close()

    def finish(self) -> None:
        """Give up the checks that are still open: they failed."""
        for check in tuple(self._open.values()):
            self.end(check, good=False)

    @property
    def outstanding(self) -> int:
        return len(self._open)


class _Check:
    """One connection with one request. Ended by its `HealthChecks`."""

    waiting = False  # the end of a run does not wait for it

    def __init__(
        self, owner: HealthChecks, address: tuple[str, int], request: bytes, *, secure: bool
    ) -> None:
        self.begun_ns = time.monotonic_ns()
        self._owner = owner
        self._unsent = request
        self._received = b""
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
        self._socket = sock
        self._shaken = not secure

    def fileno(self) -> int:
        return self._socket.fileno()

    def ready(self) -> None:
        """Go as far as the socket allows; the next edge continues."""
        try:
            if not self._shaken:
                self._shake()
            if self._unsent:
                self._socket.send(self._unsent)  # a few dozen bytes into an empty buffer
                self._unsent = b""
            while len(self._received) < len(_GOOD):
                data = self._socket.recv(65_536)
                self._received += data
                if not data:
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            self._owner.end(self, good=False)
            return
        self._owner.end(self, good=self._received.startswith(_GOOD))

    def _shake(self) -> None:
        """Shake hands, as soon as the connection exists; the descriptor stays the same."""
        if not isinstance(self._socket, ssl.SSLSocket):
            if code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, "connect")
            try:
                self._socket.getpeername()
            except OSError:
                raise BlockingIOError from None  # not connected yet
            self._socket = wrap(self._socket)
        assert isinstance(self._socket, ssl.SSLSocket)
        self._socket.do_handshake()
        self._shaken = True

    def close(self) -> None:
        self._socket.close()
