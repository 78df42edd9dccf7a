"""Slow readers: subscribers that never read, and how to know that their sockets are full.

The kernel tells in `/proc/net/tcp` how many bytes it holds for each open connection of the server.
While the kernel takes the published bytes, this number grows by as much. Once it does not, the rest
has stayed in the server. Bounded by the caller's count, and in bytes by `_FILLS`.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, Self

from benchmarks.generator.load import RESET, Crowd
from benchmarks.generator.protocol import Greeting
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.wire import WireError

_REPLY_SECONDS: Final = 10.0
_RECEIVE_BUFFER: Final = 4_096
_FILLER: Final = b'"' + b"x" * 49_150 + b'"'
_FILL: Final = 8 * 49_152  # bytes between two looks; the last of them may stay in the server
_FILLS: Final = 40  # 15 MiB: more than any socket buffer of a default kernel
_LOOKS: Final = 3  # looks, for a server that takes its time
_PAUSE: Final = 0.04
_ESTABLISHED: Final = "01"


class SlowReaders:
    """Subscribers that never read. Owned by a `with` block, which closes them."""

    def __init__(self, port: int, count: int, greeting: Greeting) -> None:
        """Subscribe; the replies to this are read.

        Raises:
            WireError: a subscriber was refused.
        """
        self.count = count
        self._port = port
        self._sockets: list[socket.socket] = []
        self._ports: set[int] = set()
        try:
            for _ in range(count):
                self._subscribe(greeting)
        except BaseException:
            self.close()
            raise

    def _subscribe(self, greeting: Greeting) -> None:
        sock = socket.socket()
        self._sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.settimeout(_REPLY_SECONDS)
        sock.connect(("127.0.0.1", self._port))
        self._ports.add(sock.getsockname()[1])
        sock.sendall(greeting.request)
        received = _until(sock, b"", b"\r\n\r\n")
        if not received.startswith(greeting.accepted):
            raise WireError(f"a slow reader was refused: {received[:200]!r}")
        sock.sendall(greeting.commands)
        _until(sock, received.partition(b"\r\n\r\n")[2], greeting.ready)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Reset every connection."""
        for sock in self._sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        self._sockets.clear()

    def fill(self, filler: Publisher, crowd: Crowd) -> None:
        """Publish until the kernel takes no more for these readers, or the server cut them.

        `filler` publishes into a channel that only slow readers hear; the heartbeats of `crowd`
        are answered meanwhile.
        """
        held = 0
        for _ in range(_FILLS):
            offer(filler, _FILL)
            half = held + _FILL * self.count // 2
            for _ in range(_LOOKS):
                crowd.idle(_PAUSE)
                if (queued := sum(self._queued())) >= half:
                    break
            else:
                return
            held = queued
        raise WireError("the slow readers' sockets did not fill")

    def connected(self) -> int:
        """Return the number of slow readers that the server has not cut."""
        return len(self._queued())

    def _queued(self) -> list[int]:
        """Return the bytes that the server's kernel holds for each connected slow reader."""
        server, found = f":{self._port:04X}", list[int]()
        for file in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(file).read_text().splitlines()[1:]:
                _, local, remote, state, queues = line.split(None, 5)[:5]
                if not local.endswith(server) or state != _ESTABLISHED:
                    continue
                if int(remote.rpartition(":")[2], 16) in self._ports:
                    found.append(int(queues.partition(":")[0], 16))
        return found


def offer(filler: Publisher, size: int) -> None:
    """Publish at least so many bytes, in events of 48 KiB."""
    for _ in range(-(-size // len(_FILLER))):
        filler.publish(_FILLER)
        filler.wait()


def _until(sock: socket.socket, received: bytes, mark: bytes) -> bytes:
    while mark not in received:
        data = sock.recv(4_096)
        if not data:
            raise WireError(f"the server hung up on a slow reader after {received[-200:]!r}")
        received += data
    return received
