"""How events get into the measured process: REST, a Centrifugo WebSocket, or the floor's feed.

Each is one raw non-blocking socket that a receiver's loop drives; none waits on its own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from benchmarks.wire import (
    CHANNEL,
    WireError,
    broadcast,
    client_frame,
    handshake,
    post,
    push,
    server_frame,
    split_frames,
)

_REPLY_SECONDS: Final = 10.0
_OFFSET: Final = 100  # as many digits as most of a run's offsets have


class Publisher(Protocol):
    """Where a fan-out's events go in."""

    def fileno(self) -> int: ...

    def publish(self, data: bytes) -> None:
        """Hand over one event; the answer comes later."""

    def ready(self) -> None:
        """Take what the socket has to read, if anything."""

    @property
    def waiting(self) -> bool:
        """Whether an answer is outstanding."""

    def close(self) -> None: ...


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


class Feed:
    """The floor's input: what is sent here is what every subscriber gets."""

    waiting = False

    def __init__(self, port: int, *, pushes: bool) -> None:
        self._socket = _connect(port)
        self._socket.send(b"FEED\r\n\r\n")
        self._pushes = pushes
        time.sleep(0.1)  # so that the first event is not read together with the greeting

    def fileno(self) -> int:
        return self._socket.fileno()

    def publish(self, data: bytes) -> None:
        payload = push(data, _OFFSET) if self._pushes else data
        self._socket.send(server_frame(payload))

    def ready(self) -> None:
        raise WireError(f"the floor ended: {self._socket.recv(100)!r}")

    def close(self) -> None:
        self._socket.close()


class Rest:
    """REST on one keep-alive connection, one request at a time; a broadcast to several channels."""

    def __init__(
        self,
        port: int,
        *channels: str,
        secured: Callable[[socket.socket], socket.socket] | None = None,
    ) -> None:
        """Publish into these channels, or the benchmarks' usual one; `secured` as in `Crowd`."""
        self._socket = _connect(port) if secured is None else secured(_connect(port))
        self._channels = channels or (CHANNEL,)
        self._received = b""
        self._sent_ns = 0
        self.waiting = False
        self.answer = b""
        self.latencies_ns: list[int] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def publish(self, data: bytes) -> None:
        if self.waiting:
            self.wait()
        self.waiting = True
        self._sent_ns = time.monotonic_ns()
        several = len(self._channels) > 1
        request = broadcast(self._channels, data) if several else post(self._channels[0], data)
        sent = self._socket.send(request)
        if sent != len(request):  # a large event: the rest may wait for the server
            self._socket.settimeout(_REPLY_SECONDS)
            self._socket.sendall(request[sent:])
            self._socket.setblocking(False)

    def ready(self) -> None:
        try:
            data = self._socket.recv(65_536)
        except BlockingIOError:
            return
        if not data:
            raise WireError("the server closed the publisher's connection")
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if end and len(body) >= _content_length(head):
            self.latencies_ns.append(time.monotonic_ns() - self._sent_ns)
            if not head.startswith(b"HTTP/1.1 200") or not body.startswith(b'{"result"'):
                raise WireError(f"publish failed: {self._received!r}")
            self.answer, self._received, self.waiting = body, b"", False

    def wait(self) -> None:
        """Wait for the outstanding answer."""
        self._socket.settimeout(_REPLY_SECONDS)
        try:
            while self.waiting:
                self.ready()
        finally:
            self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise WireError(f"an answer without a length: {head!r}")


class Pipeline:
    """Publish commands over one Centrifugo WebSocket, without waiting for each reply."""

    def __init__(self, port: int) -> None:
        self._socket = _connect(port)
        self._socket.setblocking(True)
        self._socket.settimeout(_REPLY_SECONDS)
        self._socket.sendall(handshake("/connection/websocket"))
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._socket.recv(65_536)
        self._socket.sendall(client_frame(b'{"connect":{},"id":1}'))
        received = b""
        while b'"connect"' not in received:
            received += self._socket.recv(65_536)
        self._socket.setblocking(False)
        self._partial = b""
        self._unsent = memoryview(b"")
        self.sent = 0
        self.answered = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    @staticmethod
    def frame(events: Sequence[bytes], first_id: int) -> bytes:
        """Several publish commands as one WebSocket message."""
        return client_frame(
            b"\n".join(
                b'{"publish":{"channel":"%s","data":%s},"id":%d}' % (CHANNEL.encode(), data, number)
                for number, data in enumerate(events, first_id)
            )
        )

    @property
    def blocked(self) -> bool:
        """Whether part of the last frame is still to be sent."""
        return bool(self._unsent)

    def send(self, frame: bytes, commands: int) -> None:
        """Begin to send the next frame; only when not `blocked`."""
        self._unsent = memoryview(frame)
        self.sent += commands
        self.go_on()

    def go_on(self) -> None:
        """Send what the socket takes of the frame under way."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return

    def ready(self) -> None:
        """Take replies."""
        try:
            data = self._socket.recv(262_144)
        except BlockingIOError:
            return
        if not data:
            raise WireError("the server hung up on the publisher")
        frames, self._partial = split_frames(self._partial + data)
        for opcode, payload in frames:
            if opcode != 1 or b'"error"' in payload:
                raise WireError(f"publish failed: {payload[:200]!r}")
            if payload == b"{}":
                self._socket.send(client_frame(b"{}"))
            self.answered += payload.count(b'"publish":{}')

    def close(self) -> None:
        self._socket.close()
