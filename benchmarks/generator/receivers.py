"""What the load generator does with what subscribers receive: the two loops that must be cheap.

`Deliveries` knows events and measures latency; `Streams` only compares bytes, for floods. Both
check that every subscriber gets every event, once and in order, and raise `WireError` otherwise.
Both know how much of its core the generator used while anything was under way.
"""

from __future__ import annotations

import time
from array import array
from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.wire import EVENT_SIZE, PING, PONG, WireError, event, event_numbers

_BATCH: Final = 64  # sockets read between two looks at the publishers
_CACHE: Final = 256  # different chunks remembered: subscribers receive identical ones


class Busy:
    """How much of its core this thread uses while something is under way."""

    def __init__(self) -> None:
        self._since: tuple[int, int] | None = None
        self.cpu_ns = 0
        self.wall_ns = 0

    def begin(self) -> None:
        """Something is under way from now, if nothing was."""
        if self._since is None:
            self._since = time.thread_time_ns(), time.monotonic_ns()

    def end(self) -> None:
        """Nothing is under way any more."""
        if self._since is not None:
            cpu, wall = self._since
            self.cpu_ns += time.thread_time_ns() - cpu
            self.wall_ns += time.monotonic_ns() - wall
            self._since = None

    @property
    def share(self) -> float:
        """CPU time as a part of the time that passed, 0 to 1."""
        return self.cpu_ns / self.wall_ns if self.wall_ns else 0.0


class Deliveries:
    """Counts and times events. Lives inside one fan-out; one event number never comes twice.

    Every subscriber listens to one channel of `channels`: the n-th of the crowd to the n-th of
    these lists of event numbers, round and round. With one channel that is everybody.
    """

    def __init__(self, crowd: Crowd, channels: int = 1) -> None:
        self._crowd = crowd
        self._receive = crowd.receivers()
        self._published: list[list[int]] = [[] for _ in range(channels)]
        self._due = {fd: self._published[n % channels] for n, fd in enumerate(self._receive)}
        self._listeners = [len(range(n, len(self._receive), channels)) for n in range(channels)]
        self._at = dict.fromkeys(self._receive, 0)
        self._publishers: dict[int, Publisher] = {}
        self._numbers: dict[bytes, tuple[int, ...]] = {}
        self._published_ns: list[int] = []
        self._left: list[int] = []
        self.outstanding = 0
        self.busy = Busy()
        self.last_ns = array("q")
        """Of each event: from its publishing to the last subscriber."""
        self.latencies_ns = array("q")
        """Of each delivery."""
        self.frame_bytes = 0

    def watch(self, publisher: Publisher) -> None:
        """Serve this publisher's socket too."""
        self._publishers[publisher.fileno()] = publisher
        self._crowd.poller.register(publisher.fileno(), 1)  # EPOLLIN

    def unwatch(self, publisher: Publisher) -> None:
        del self._publishers[publisher.fileno()]
        self._crowd.poller.unregister(publisher.fileno())

    def publish(self, publisher: Publisher, size: int = EVENT_SIZE, channel: int = 0) -> None:
        """Publish the next event now."""
        self.busy.begin()
        now = time.monotonic_ns()
        number = len(self._left)
        self._published_ns.append(now)
        self._left.append(self._listeners[channel])
        self._published[channel].append(number)
        self.outstanding += 1
        publisher.publish(event(number, now, size))

    def pump(self, timeout: float) -> None:
        """Read what is there, waiting at most `timeout` seconds for the first."""
        for fd, _ in self._crowd.poller.poll(timeout, _BATCH):
            receive = self._receive.get(fd)
            if receive is None:
                self._publishers[fd].ready()
                continue
            data = receive(65_536)
            now = time.monotonic_ns()
            numbers = self._numbers.get(data)
            if numbers is None or fd in self._crowd.partial:
                numbers = self._parse(fd, data)
            for number in numbers:
                self._count(fd, number, now)
        for publisher in self._publishers.values():
            if publisher.waiting:
                publisher.ready()

    def _count(self, fd: int, number: int, now: int) -> None:
        at, due = self._at[fd], self._due[fd]
        if at >= len(due) or number != due[at]:
            wanted = due[at] if at < len(due) else "none"
            raise WireError(f"event {number} where {wanted} was due: lost or out of order")
        self._at[fd] = at + 1
        self._left[number] -= 1
        latency = now - self._published_ns[number]
        self.latencies_ns.append(latency)
        if not self._left[number]:
            self.last_ns.append(latency)
            self.outstanding -= 1
            if not self.outstanding:
                self.busy.end()

    def _parse(self, fd: int, data: bytes) -> tuple[int, ...]:
        if not data:
            raise WireError("the server hung up on a subscriber")
        whole = fd not in self._crowd.partial
        payloads = self._crowd.frames(fd, data)
        numbers = tuple(number for payload in payloads for number in event_numbers(payload))
        if whole and len(numbers) == 1 and fd not in self._crowd.partial:
            if len(self._numbers) >= _CACHE:
                self._numbers.clear()
            self._numbers[data] = numbers
            self.frame_bytes = len(data)
        return numbers

    def forget(self) -> None:
        """Begin to measure: what was measured so far was the warming up."""
        self.busy = Busy()
        del self.last_ns[:], self.latencies_ns[:]

    def run(
        self,
        publisher: Publisher,
        events: int,
        rate: float,
        *,
        size: int = EVENT_SIZE,
        patience: float = 10.0,
    ) -> None:
        """Publish `events` at `rate` a second, and wait until everybody got them all.

        Raises:
            WireError: an event was lost, doubled or out of order, or took `patience` seconds.
        """
        start = time.monotonic() + 0.02
        for number in range(events):
            due = start + number / rate
            while (left := due - time.monotonic()) > 0:
                self.pump(left)
            self.publish(publisher, size)
        self.finish(patience)

    def finish(self, patience: float) -> None:
        """Wait until every event arrived everywhere."""
        deadline = time.monotonic() + patience
        while self.outstanding or any(p.waiting for p in self._publishers.values()):
            if time.monotonic() > deadline:
                raise WireError(f"{self.outstanding} events did not reach every subscriber")
            self.pump(0.1)


class Streams:
    """Compares what each subscriber receives with the one stream that all must receive."""

    def __init__(self, crowd: Crowd, stream: bytes, frame_bytes: int) -> None:
        self._crowd = crowd
        self._stream = stream
        self._frame = frame_bytes
        self._receive_into = {fd: sock.recv_into for fd, sock in crowd.sockets.items()}
        self._at = dict.fromkeys(crowd.sockets, 0)
        self._carried: dict[int, bytes] = {}  # the first byte of a ping
        self._buffer = bytearray(262_144)
        self.received = 0
        self.wanted = len(stream) * len(crowd.sockets)

    @property
    def events(self) -> float:
        """Events that the subscribers have received so far, on average."""
        return self.received / len(self._at) / self._frame

    def pump(self, publisher: Publisher, timeout: float) -> None:
        """Read what is there, waiting at most `timeout` seconds for the first."""
        stream, at, view = self._stream, self._at, memoryview(self._buffer)
        for fd, _ in self._crowd.poller.poll(timeout, _BATCH):
            receive_into = self._receive_into.get(fd)
            if receive_into is None:
                publisher.ready()
                continue
            size = receive_into(view)
            if stream.startswith(view[:size], at[fd]) and fd not in self._carried and size:
                at[fd] += size
                self.received += size
            else:
                self._compare(fd, bytes(view[:size]))

    def _compare(self, fd: int, data: bytes) -> None:
        """The rare chunk with a ping in it; pings stand between two frames."""
        if not data:
            raise WireError("the server hung up on a subscriber")
        data = self._carried.pop(fd, b"") + data
        while data:
            same = self._agreeing(data, self._at[fd])
            self._at[fd] += same
            self.received += same
            data = data[same:]
            if data == PING[:1]:
                self._carried[fd] = data
                return
            if data and (not data.startswith(PING) or self._at[fd] % self._frame):
                raise WireError(f"byte {self._at[fd]} of a stream differs: lost or out of order")
            if data:
                self._crowd.sockets[fd].send(PONG)
                data = data[len(PING) :]

    def _agreeing(self, data: bytes, at: int) -> int:
        """How many bytes agree with the stream from `at` on."""
        low, high = 0, len(data)
        while low < high:
            middle = (low + high + 1) // 2
            if self._stream.startswith(data[:middle], at):
                low = middle
            else:
                high = middle - 1
        return low
