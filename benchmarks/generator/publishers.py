"""Publishers send events to the measured process: raw non-blocking sockets that a loop drives.

An `Entry` makes the bytes. A publisher sends one event at a time and measures its answer's latency,
or it sends as many events as the socket takes. Only `wait` and the opening wait.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.generator.protocol import Entry
from benchmarks.generator.wire import WireError

_REPLY_SECONDS: Final = 10.0


class Publisher:
    """One back end's connection. Owned by a workload's `with` block (`contextlib.closing`)."""

    def __init__(
        self,
        port: int,
        entry: Entry,
        secured: Callable[[socket.socket], socket.socket] | None = None,
    ) -> None:
        """Connect and send the greeting; `secured` as in `Crowd`.

        Raises:
            WireError: the server refused the publisher.
        """
        sock = socket.create_connection(("127.0.0.1", port), _REPLY_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock if secured is None else secured(sock)
        self._entry = entry
        self._unsent = memoryview(b"")
        self._tail = b""  # the last received bytes: a marker may be cut in two
        self._sent_ns: deque[int] = deque()
        self.sent = 0
        self.answered = 0
        self.latencies_ns: list[int] = []
        self._introduce()
        self._socket.setblocking(False)

    def _introduce(self) -> None:
        greeting = self._entry.greeting
        self._socket.settimeout(_REPLY_SECONDS)
        if not greeting.request:
            return
        self._socket.sendall(greeting.request)
        if not greeting.accepted:
            time.sleep(0.1)  # so that the server does not read greeting and event together
            return
        received = self._read_until(b"", b"\r\n\r\n")
        if not received.startswith(greeting.accepted):
            raise WireError(f"the publisher was refused: {received[:200]!r}")
        rest = received.partition(b"\r\n\r\n")[2]
        if greeting.commands:
            self._socket.sendall(greeting.commands)
        self._read_until(rest, greeting.ready)

    def _read_until(self, received: bytes, mark: bytes) -> bytes:
        while mark not in received:
            data = self._socket.recv(65_536)
            if not data:
                raise WireError(f"the server hung up on the publisher after {received[-200:]!r}")
            received += data
        return received

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        """Whether an answer is outstanding."""
        return bool(self._entry.answer) and self.answered < self.sent

    @property
    def blocked(self) -> bool:
        """Whether some bytes of the last events are still to be sent."""
        return bool(self._unsent)

    def publish(self, data: bytes, entry: Entry | None = None) -> None:
        """Send one event, after the answer to the last one; its own answer comes later.

        `entry` is another entry with the same greeting, for an event of another channel.
        """
        if self.waiting:
            self.wait()
        self._sent_ns.append(time.monotonic_ns())
        self.send((entry or self._entry).encode([data], self.sent), 1)
        if self.blocked:  # a large event: the rest may wait for the server
            self._socket.settimeout(_REPLY_SECONDS)
            self._socket.sendall(self._unsent)
            self._unsent = memoryview(b"")
            self._socket.setblocking(False)

    def encode(self, events: Sequence[bytes], before: int) -> bytes:
        """Return the bytes for `send`; a flood encodes its events beforehand."""
        return self._entry.encode(events, before)

    def send(self, encoded: bytes, events: int) -> None:
        """Begin to send more events; only when not `blocked`."""
        self._unsent = memoryview(encoded)
        self.sent += events
        self.go_on()

    def go_on(self) -> None:
        """Send as many of the remaining bytes as the socket takes."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return

    def ready(self) -> None:
        """Read the available answers, if any.

        Raises:
            WireError: the server refused an event, or hung up.
        """
        try:
            data = self._socket.recv(262_144)
        except BlockingIOError:
            return
        if not data:
            raise WireError("the server hung up on the publisher")
        received = self._tail + data
        for refusal in self._entry.refusals:
            if refusal in received:
                raise WireError(f"an event was refused: {received[-300:]!r}")
        answer = self._entry.answer
        self._tail = received[-(len(answer) - 1) :] if len(answer) > 1 else b""
        for payload, reply in self._entry.greeting.heartbeats.items():
            if data.endswith(payload) and len(data) <= len(payload) + 4:
                self._socket.send(reply)
        if answer:
            self._count(received.count(answer))

    def _count(self, answers: int) -> None:
        self.answered += answers
        now = time.monotonic_ns()
        for _ in range(min(answers, len(self._sent_ns))):
            self.latencies_ns.append(now - self._sent_ns.popleft())

    def wait(self) -> None:
        """Wait for the outstanding answers.

        Raises:
            WireError: the answers took more than 10 seconds.
        """
        self._socket.settimeout(_REPLY_SECONDS)
        try:
            while self.waiting:
                self.ready()
        except TimeoutError as error:
            raise WireError("no answer to a publisher in time") from error
        finally:
            self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()
