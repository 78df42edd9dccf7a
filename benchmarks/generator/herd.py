"""The herd: thousands of raw non-blocking sockets that connect all at once.

`load.Crowd` opens connections a few at a time and drops the bytes that it receives. `Herd` opens
as many at a time as the kernel's queue holds, and keeps every byte. Bounded by the caller's
counts, and in time by `COME_SECONDS`.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from benchmarks.generator.load import RESET
from benchmarks.generator.protocol import Greeting
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.wire import WireError, client_frame, server_frame

COME_SECONDS: Final = 60.0
AT_ONCE: Final = 4_000
"""Connections that may wait for their 101: as many as a listener's queue holds (4,096 by default).
With more, the kernel drops handshakes and repeats them a second later; that would be measured."""
_HEAD_END: Final = b"\r\n\r\n"
_PING: Final = server_frame(b"{}")
_PONG: Final = client_frame(b"{}")
_TAIL: Final = 1_024  # bytes at the end in which an awaited event is looked for: it is near it


class _Member:
    """One connection: its socket, its greeting, and the bytes that it has received."""

    __slots__ = ("asked", "greeted", "greeting", "ready", "received", "socket")

    def __init__(self, sock: socket.socket, greeting: Greeting) -> None:
        self.socket = sock
        self.greeting = greeting
        self.asked = self.greeted = self.ready = False
        self.received = b""


class Herd:
    """Connections to one server. Owned by a scenario's `with` block, which closes them."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._poller = select.epoll()
        self._members: dict[int, _Member] = {}
        self._publishers: dict[int, Publisher] = {}
        self._greeted = 0
        self.ready_ns: list[int] = []
        """When each connection was ready, counted from the start of the last `come`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()
        self._poller.close()

    def watch(self, publisher: Publisher) -> None:
        """Serve this publisher's socket too."""
        self._publishers[publisher.fileno()] = publisher
        self._poller.register(publisher.fileno(), select.EPOLLIN)

    def go_to(self, port: int) -> None:
        """Have connections that are still to come go to another server of this machine."""
        self._address = ("127.0.0.1", port)

    def received(self) -> list[bytes]:
        """The bytes that each connection received after its 101, in the order of connecting."""
        return [member.received for member in self._members.values()]

    def come(
        self,
        greetings: Sequence[Greeting],
        *,
        at_once: int = AT_ONCE,
        beside: Callable[[int], None] | None = None,
    ) -> float:
        """Connect all; return the seconds until all are ready.

        Args:
            greetings: One for each connection; it counts as ready when its answer has arrived.
            at_once: Most that may wait for their 101.
            beside: Called now and then with the number of ready connections.
        """
        start = time.monotonic_ns()
        self.ready_ns, self._greeted = [], 0
        count, connected = len(greetings), 0
        while len(self.ready_ns) < count:
            while connected < count and connected - self._greeted < at_once:
                self._connect(greetings[connected])
                connected += 1
            if time.monotonic_ns() - start > COME_SECONDS * 1e9:
                raise WireError(f"{len(self.ready_ns)} of {count} connections were ready in time")
            for member in self._pump(1.0):
                if not member.ready and self._is_ready(member):
                    member.ready = True
                    self.ready_ns.append(time.monotonic_ns() - start)
            if beside is not None:
                beside(len(self.ready_ns))
        return (time.monotonic_ns() - start) / 1e9

    def _connect(self, greeting: Greeting) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")
        member = self._members[sock.fileno()] = _Member(sock, greeting)
        self._ask(member)
        # On loopback the handshake is over by now, unless the server's queue was full.
        events = select.EPOLLIN if member.asked else select.EPOLLIN | select.EPOLLOUT
        self._poller.register(sock.fileno(), events)

    @staticmethod
    def _ask(member: _Member) -> None:
        try:
            member.socket.send(member.greeting.request)
        except BlockingIOError:
            return
        member.asked = True

    def _pump(self, timeout: float) -> list[_Member]:
        """Read the available bytes; return the members that received some."""
        heard = list[_Member]()
        for fd, _ in self._poller.poll(timeout, 256):
            member = self._members.get(fd)
            if member is None:
                self._publishers[fd].ready()
            elif not member.asked:
                self._ask(member)
                self._poller.modify(fd, select.EPOLLIN)
            else:
                self._receive(member)
                heard.append(member)
        return heard

    @staticmethod
    def _receive(member: _Member) -> None:
        data = member.socket.recv(65_536)
        if not data:
            raise WireError("the server hung up on a client")
        if data.endswith(_PING):
            member.socket.send(_PONG)
            data = data.removesuffix(_PING)
        member.received += data

    def _is_ready(self, member: _Member) -> bool:
        greeting = member.greeting
        if not member.greeted:
            head, end, rest = member.received.partition(_HEAD_END)
            if not end:
                return False
            if not head.startswith(greeting.accepted):
                raise WireError(f"refused: {head.decode(errors='replace')}")
            member.greeted, member.received = True, rest
            self._greeted += 1
            if greeting.commands:
                member.socket.send(greeting.commands)
        return greeting.ready in member.received

    def wait_for(self, mark: bytes, patience: float) -> None:
        """Read until every connection has received `mark`."""
        deadline = time.monotonic() + patience
        waiting = [one for one in self._members.values() if mark not in one.received[-_TAIL:]]
        while waiting:
            if time.monotonic() > deadline:
                raise WireError(f"{len(waiting)} clients did not hear {mark!r}")
            self._pump(0.1)
            waiting = [one for one in waiting if mark not in one.received[-_TAIL:]]

    def vanish(self) -> None:
        """Reset every connection, at once and without a close frame."""
        for member in self._members.values():
            member.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            member.socket.close()
        self._members.clear()
