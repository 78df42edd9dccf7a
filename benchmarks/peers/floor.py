"""The floor in Python: the same program as `floor.c`, line for line where it counts.

It answers each upgrade with a constant 101 and never looks at that socket again. One connection
begins with FEED: its bytes go to every subscriber with a bare non-blocking `send`.
Usage: python -m benchmarks.peers.floor PORT
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

ANSWER: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
_LIFETIME: Final = 600  # seconds: a floor ends soon after its benchmark in any case


class Floor:
    """Lives in a process of its own; ended by a signal of its parent process, or its alarm."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4_096)
        self._listener.setblocking(False)
        self._poller = select.epoll()
        self._poller.register(self._listener, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._sends: list[Callable[[bytes], int]] = []
        self._feed: int = -1

    def run(self) -> None:
        while True:
            for fd, _ in self._poller.poll():
                if fd == self._listener.fileno():
                    self._accept_all()
                elif fd == self._feed:
                    self._repeat(self._sockets[fd].recv(65_536))
                else:
                    self._greet(fd)

    def _accept_all(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets[sock.fileno()] = sock
                self._poller.register(sock, select.EPOLLIN)

    def _repeat(self, data: bytes) -> None:
        if not data:
            # The floor runs on, as floor.c does: its parent process checks that it still runs.
            self._poller.unregister(self._feed)
            self._sockets.pop(self._feed).close()
            self._feed = -1
        for send in self._sends:
            try:
                send(data)
            except OSError:
                print("floor: a send failed", file=sys.stderr)

    def _greet(self, fd: int) -> None:
        sock = self._sockets[fd]
        head = sock.recv(65_536)
        if head.startswith(b"FEED"):
            self._feed = fd
            return
        self._poller.unregister(fd)
        if not head:
            self._sockets.pop(fd).close()
            return
        self._sends.append(sock.send)
        sock.send(ANSWER)


if __name__ == "__main__":
    signal.alarm(_LIFETIME)
    Floor(int(sys.argv[1])).run()
