"""The crowd: thousands of subscribers as raw non-blocking sockets on one epoll, without a task.

It opens and closes connections and answers heartbeats. What a scenario does with the bytes is in
`receivers`. Bounded by the caller's counts, and in time by `OPEN_SECONDS`.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

import msgspec

from benchmarks.generator.protocol import Greeting
from benchmarks.generator.wire import PING_OPCODE, WireError, pong, split_frames

OPEN_SECONDS: Final = 60.0
RESET: Final = struct.pack("ii", 1, 0)  # closing resets: no port stays behind in TIME_WAIT
_HEAD_END: Final = b"\r\n\r\n"
_DATA_OPCODES: Final = (1, 2)  # text; or binary, as some protocols want it


class _Waiting(msgspec.Struct):
    """A connection that is not open yet, and what it has heard."""

    greeting: Greeting
    greeted: bool = False
    received: bytes = b""


class Crowd:
    """Subscribers of one server. Owned by a scenario's `with` block, which closes them."""

    def __init__(
        self, port: int, secured: Callable[[socket.socket], socket.socket] | None = None
    ) -> None:
        """Meet a server; `secured` makes of each connected socket the one to use."""
        self._secured = secured
        self._address = ("127.0.0.1", port)
        self.poller = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.partial: dict[int, bytes] = {}
        self.answered = 0
        """Heartbeats answered so far."""
        self._stream = False
        self._heartbeats: Mapping[bytes, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.poller.close()

    def open(self, count: int, greeting: Greeting, at_once: int = 200) -> float:
        """Open `count` subscribers, `at_once` of them under way; returns the seconds it took."""
        return self.open_each([greeting] * count, at_once)

    def open_each(self, greetings: Sequence[Greeting], at_once: int = 200) -> float:
        """Open one subscriber for each of these greetings of one protocol."""
        start = time.monotonic()
        self._stream, self._heartbeats = greetings[0].stream, greetings[0].heartbeats
        left = deque(greetings)
        waiting: dict[int, _Waiting] = {}
        while left or waiting:
            if time.monotonic() - start > OPEN_SECONDS:
                missing = len(left) + len(waiting)
                raise WireError(f"{missing} of {len(greetings)} connections did not open")
            while left and len(waiting) < at_once:
                greeting = left.popleft()
                waiting[self._connect(greeting.request)] = _Waiting(greeting)
            for fd, _ in self.poller.poll(1.0, 256):
                if fd not in waiting:
                    self.idle_data(fd)
                    continue
                waiting[fd].received += self._receive(fd)
                if self._opened(fd, waiting[fd]):
                    del waiting[fd]
        return time.monotonic() - start

    def _connect(self, request: bytes) -> int:
        sock = socket.socket()
        sock.settimeout(10)
        sock.connect(self._address)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._secured is not None:
            sock = self._secured(sock)
        sock.send(request)
        fd = sock.fileno()
        self.sockets[fd] = sock
        self.poller.register(fd, select.EPOLLIN)
        return fd

    def _opened(self, fd: int, one: _Waiting) -> bool:
        greeting = one.greeting
        if not one.greeted:
            head, end, rest = one.received.partition(_HEAD_END)
            if not end:
                return False
            if not head.startswith(greeting.accepted):
                raise WireError(f"refused: {head.decode(errors='replace')}")
            one.greeted, one.received = True, rest
            if greeting.commands:
                self.sockets[fd].send(greeting.commands)
        received = one.received
        if greeting.ready and greeting.ready not in received:
            return False
        if greeting.stream:
            if received:  # what a stream begins with; an event may stand behind it
                self.partial[fd] = received
            return True
        frames, rest = split_frames(received)
        if b'"error"' in received or (frames and not greeting.ready):
            raise WireError(f"unexpected answer: {received[:200]!r}")
        if rest:
            self.partial[fd] = rest
        return True

    def _receive(self, fd: int) -> bytes:
        try:
            data = self.sockets[fd].recv(65_536)
        except BlockingIOError:
            return b""  # TLS had something to say, and the server not
        if not data:
            raise WireError("the server hung up on a subscriber")
        return data

    def idle_data(self, fd: int) -> None:
        """Take what arrives while nothing is measured: heartbeats."""
        self.frames(fd, self._receive(fd))

    def frames(self, fd: int, data: bytes) -> list[bytes]:
        """The payloads of the whole frames received so far, heartbeats answered and left out."""
        if fd in self.partial:
            data = self.partial.pop(fd) + data
        if self._stream:
            return self._events(fd, data)
        frames, rest = split_frames(data)
        if rest:
            self.partial[fd] = rest
        payloads: list[bytes] = []
        for opcode, payload in frames:
            if opcode == PING_OPCODE:
                self._answer(fd, pong(payload))
            elif payload in self._heartbeats:
                self._answer(fd, self._heartbeats[payload])
            elif opcode in _DATA_OPCODES:
                payloads.append(payload)
            else:
                raise WireError(f"frame with opcode {opcode}: {payload[:200]!r}")
        return payloads

    def _answer(self, fd: int, reply: bytes) -> None:
        self.sockets[fd].send(reply)
        self.answered += 1

    def _events(self, fd: int, data: bytes) -> list[bytes]:
        """Whole events; where the answer is chunked, its framing stands around them, in the way
        of nothing: the size before an event, a line's end behind it.
        """
        *events, rest = data.split(b"\n\n")
        if rest and rest != b"\r\n":
            self.partial[fd] = rest
        return [one for one in events if one != b":"]

    def idle(self, seconds: float) -> None:
        """Let time pass, answering heartbeats."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for fd, _ in self.poller.poll(left, 256):
                self.idle_data(fd)

    def settle(self, quiet: float = 0.5) -> None:
        """Take what arrives until nothing did for so many seconds: joins of those who came."""
        while heard := self.poller.poll(quiet, 256):
            for fd, _ in heard:
                self.idle_data(fd)

    def receivers(self) -> dict[int, Callable[[int], bytes]]:
        """Each subscriber's `recv`, by descriptor, for a loop that must be cheap."""
        return {fd: sock.recv for fd, sock in self.sockets.items()}

    def close(self, *, reset: bool = True) -> None:
        """Close everybody: at once and without a trace, or the way a client that leaves does."""
        for sock in self.sockets.values():
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        self.sockets.clear()
        self.partial.clear()
