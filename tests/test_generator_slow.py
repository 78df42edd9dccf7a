"""Slow readers: that they are known to be full, and known to be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Entry, Greeting
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.slow import SlowReaders
from benchmarks.generator.wire import WireError, handshake
from benchmarks.workloads.mixed import corrected
from benchmarks.workloads.slow import _Parts

_GREETING = Greeting(request=handshake("/ws"))
_MS = 1_000_000


class Server(Publisher):
    """Gives every event to every connection, as far as the kernel takes it; also the filler."""

    def __init__(self, answer: bytes) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.connections = list[socket.socket]()
        self.full = False
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                connection.recv(4_096)
                connection.sendall(self._answer)
                connection.setblocking(False)
                self.connections.append(connection)

    def publish(self, data: bytes, entry: Entry | None = None) -> None:
        for connection in self.connections:
            try:
                self.full = connection.send(data) < len(data)
            except BlockingIOError:
                self.full = True

    def wait(self) -> None:
        pass

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")) as server:
        yield server


def test_slow_readers_are_filled_and_counted(server: Server) -> None:
    """Sockets are full when the kernel takes no more; readers that the server cut do not count."""
    with SlowReaders(server.port, 2, _GREETING) as slow, Crowd(server.port) as crowd:
        assert slow.connected() == 2
        slow.fill(server, crowd)
        assert server.full
        assert slow.connected() == 2
        server.connections[0].close()
        assert slow.connected() == 1


def test_refused_slow_reader_fails_the_run() -> None:
    """As it does for those who read."""
    with (
        contextlib.closing(Server(b"HTTP/1.1 403 Forbidden\r\n\r\n")) as server,
        pytest.raises(WireError, match="refused"),
    ):
        SlowReaders(server.port, 1, _GREETING)


def test_ratio_is_that_of_the_usual_moments() -> None:
    """One bad moment of the machine does not decide, on either side."""
    parts = _Parts(
        without=[[_MS], [_MS], [50 * _MS], [_MS], [_MS]],
        beside=[[2 * _MS], [2 * _MS], [80 * _MS]],
    )
    assert parts.values()["slow_ratio"] == pytest.approx(2)
    assert parts.values()["beside_p99_ms"] == 80


def test_no_ratio_where_nobody_stayed_slow() -> None:
    """Readers that were cut at once did not disturb, and did not prove anything either."""
    assert set(_Parts(without=[[_MS]] * 3, beside=[(), ()]).values()) == {"without_p99_ms"}


def test_calls_that_were_not_made_count() -> None:
    """While one call took 120 ms, the calls due 50 and 100 ms after it would have waited too."""
    assert corrected([10, 120, 50], 50) == [10, 120, 70, 20, 50]
