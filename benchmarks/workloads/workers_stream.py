"""A stream whose body comes in pieces, at a pace at which each piece is taken alone.

So each frame between supervisor and worker holds the events of one piece. A few subscribers of all
channels are connected, so that every worker gets every event.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.receivers import Busy
from benchmarks.generator.scrape import by_worker, scrape
from benchmarks.generator.wire import WireError, event_numbers
from benchmarks.model import Turn
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import plain
from benchmarks.servers import started
from benchmarks.workloads.publishing import accepted, line

_SUBSCRIBERS: Final = 6
_TRIES: Final = 10  # all of six come to one of two workers once in 32 times
_RATE: Final = 200.0  # pieces a second
_WARM_UP: Final = 40  # pieces
_PATIENCE: Final = 10.0  # seconds
_HEAD: Final = b"POST /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def paced_stream(peer: Peer, channels: Sequence[str], *, pieces: int) -> Turn:
    """One turn: so many pieces, each with one event for every channel."""
    with (
        started(peer, pinned=False) as child,
        Crowd(child.port) as crowd,
        socket.create_connection(("127.0.0.1", child.port), _PATIENCE) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _open(crowd, child.port, channels)
        stream = _Stream(sock, crowd, channels)
        stream.send(_WARM_UP)
        busy = Busy()
        busy.begin()
        cpu, first = child.cpu_ns(), child.first_cpu_ns()
        stream.send(pieces)
        cpu, first = child.cpu_ns() - cpu, child.first_cpu_ns() - first
        busy.end()
        stream.end()
    events = pieces * len(channels)
    return Turn(
        values={"supervisor_us": first / 1e3 / events, "event_us": cpu / 1e3 / events},
        generator=busy.share,
    )


def _open(crowd: Crowd, port: int, channels: Sequence[str]) -> None:
    """Open the subscribers, so that each worker has some of them."""
    for _ in range(_TRIES):
        crowd.open(_SUBSCRIBERS, plain(channels))
        found = by_worker(scrape(port), "repeater_connections")
        if all(found.values()):
            return
        crowd.close()
    raise WireError(f"a worker has no subscriber: {found}")


class _Stream:
    """One request under way, and those who hear it. Lives inside one turn."""

    def __init__(self, sock: socket.socket, crowd: Crowd, channels: Sequence[str]) -> None:
        self._socket = sock
        self._crowd = crowd
        self._channels = channels
        self._sent = 0
        self._heard = 0
        sock.sendall(_HEAD)

    def send(self, pieces: int) -> None:
        """Send so many pieces at their pace, and wait until all of them are heard everywhere."""
        start = time.monotonic()
        for number in range(pieces):
            while (left := start + number / _RATE - time.monotonic()) > 0:
                self._hear(left)
            lines = b"".join(
                line(channel, self._sent + at) + b"\n" for at, channel in enumerate(self._channels)
            )
            self._socket.sendall(b"%x\r\n%s\r\n" % (len(lines), lines))
            self._sent += len(self._channels)
        deadline = time.monotonic() + _PATIENCE
        while self._heard < self._sent * _SUBSCRIBERS:
            if time.monotonic() > deadline:
                raise WireError(f"{self._heard} of {self._sent * _SUBSCRIBERS} events were heard")
            self._hear(0.1)

    def _hear(self, timeout: float) -> None:
        crowd = self._crowd
        for fd, _ in crowd.poller.poll(timeout):
            data = crowd.sockets[fd].recv(262_144)
            self._heard += sum(len(event_numbers(payload)) for payload in crowd.frames(fd, data))

    def end(self) -> None:
        """End the request; every line must have been accepted."""
        self._socket.sendall(b"0\r\n\r\n")
        answer = b""
        while accepted(self._sent) not in answer:
            received = self._socket.recv(65_536)
            if not received:
                raise WireError(f"unexpected answer: {answer[:300]!r}")
            answer += received
