"""The crowd: thousands of subscribers as raw non-blocking sockets on one epoll, without a task.

It opens and closes connections and answers heartbeats; `receivers` handles the events. Bounded by
the caller's counts, and in time by `OPEN_SECONDS`.
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
RESET: Final = struct.pack("ii", 1, 0)  # closing resets, so no port stays in TIME_WAIT
_HEAD_END: Final = b"\r\n\r\n"
_DATA_OPCODES: Final = (1, 2)  # text and binary; some protocols need the latter


class _Waiting(msgspec.Struct):
    """A connection that is not open yet, and the bytes that it has received."""

    greeting: Greeting
    greeted: bool = False
    received: bytes = b""


class Crowd:
    """Subscribers of one server. Owned by a scenario's `with` block, which closes them."""

    def __init__(
        self, port: int, secured: Callable[[socket.socket], socket.socket] | None = None
    ) -> None:
        """Prepare for the server at this port; `secured` wraps each connected socket."""
        self._secured = secured
        self._address = ("127.0.0.1", port)
        self.poller = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.partial: dict[int, bytes] = {}
        self.answered = 0
        """The number of heartbeats answered so far."""
        self._stream = False
        self._heartbeats: Mapping[bytes, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.poller.close()

    def open(self, count: int, greeting: Greeting, at_once: int = 200) -> float:
        """Open `count` subscribers, `at_once` at a time; return the seconds that this took."""
        return self.open_each([greeting] * count, at_once)

    def open_each(self, greetings: Sequence[Greeting], at_once: int = 200) -> float:
        """Open one subscriber for each greeting; all greetings are of one protocol."""
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
            if received:  # the beginning of a stream; an event may follow it
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
            return b""  # TLS sent bytes of its own, and the server none
        if not data:
            raise WireError("the server hung up on a subscriber")
        return data

    def idle_data(self, fd: int) -> None:
        """Receive and answer heartbeats while nothing is measured."""
        self.frames(fd, self._receive(fd))

    def frames(self, fd: int, data: bytes) -> list[bytes]:
        """Return the payloads of all whole frames so far; heartbeats are answered and left out."""
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
        """Return the whole events received so far.

        The framing of a chunked answer may stay: a size before an event, a line's end after it.
        """
        *events, rest = data.split(b"\n\n")
        if rest and rest != b"\r\n":
            self.partial[fd] = rest
        return [one for one in events if one != b":"]

    def idle(self, seconds: float) -> None:
        """Let time pass and answer heartbeats."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for fd, _ in self.poller.poll(left, 256):
                self.idle_data(fd)

    def settle(self, quiet: float = 0.5) -> None:
        """Receive until nothing has arrived for so many seconds, e.g. the joins of others."""
        while heard := self.poller.poll(quiet, 256):
            for fd, _ in heard:
                self.idle_data(fd)

    def receivers(self) -> dict[int, Callable[[int], bytes]]:
        """Return each subscriber's `recv`, by descriptor, for a loop that must be cheap."""
        return {fd: sock.recv for fd, sock in self.sockets.items()}

    def close(self, *, reset: bool = True) -> None:
        """Close all connections, with a reset or as an ordinary client does."""
        for sock in self.sockets.values():
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        self.sockets.clear()
        self.partial.clear()
