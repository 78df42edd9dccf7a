"""The receiving side of the load generator, which checks every delivery and takes its latency.

`Deliveries` checks that every subscriber gets every event, once and in order, and raises
`WireError` otherwise. `Busy` measures the share of its core that the generator used while anything
was under way. Floods, where only the rate counts, use `streams`.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import repeat
from typing import Final, Protocol

from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Entry
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.wire import EVENT_SIZE, WireError, event, event_numbers

_BATCH: Final = 64  # sockets read between two looks at the publishers
_CHUNK: Final = 65_536  # bytes received at once
_MANY: Final = 256  # deliveries that are still due
_BREATH: Final = 0.000_1  # seconds; an early delivery may seem later by this much
_AFTERWARDS: Final = 0.01  # seconds without a byte, after which no more bytes are expected
_NOTHING: Final = -1  # in place of an event's number: no event yet


def _place(channel: int) -> int:
    """Return this channel's summand for a descriptor; descriptors are smaller than 2^20."""
    return channel << 20


class Busy:
    """The share of the time in which this thread uses its core while something is under way.

    Time in which the thread wanted to run and another process had its core counts as used: the
    latencies then contain the generator's wait.
    """

    def __init__(self) -> None:
        self._since: tuple[int, int] | None = None
        self._used_ns = 0
        self._wall_ns = 0

    def begin(self) -> None:
        """Note that something is under way from now on."""
        if self._since is None:
            self._since = _used_ns(), time.monotonic_ns()

    def end(self) -> None:
        """Note that nothing is under way any more."""
        if self._since is not None:
            used, wall = self._since
            self._used_ns += _used_ns() - used
            self._wall_ns += time.monotonic_ns() - wall
            self._since = None

    @property
    def share(self) -> float:
        """The used part of the time that passed, 0 to 1."""
        return min(1.0, self._used_ns / self._wall_ns) if self._wall_ns else 0.0


def _used_ns() -> int:
    """Return the time in which this thread has run, or waited for its core, so far."""
    file = _schedstat()
    waited = 0 if file is None else int(os.pread(file, 100, 0).split()[1])
    return time.thread_time_ns() + waited


@cache
def _schedstat() -> int | None:
    """Return the file with the times that this thread ran and waited, in nanoseconds.

    It stays open until the process ends. None on a kernel that does not count these times.
    """
    with contextlib.suppress(FileNotFoundError):
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    return None


class Watched(Protocol):
    """A socket that the loop of `Deliveries` serves besides the subscribers, e.g. a publisher's."""

    def fileno(self) -> int: ...

    def ready(self) -> None:
        """Read the available bytes, if any."""

    @property
    def waiting(self) -> bool:
        """Whether an answer is outstanding that the end of the run waits for."""


class Deliveries:
    """Counts and times events. Lives inside one turn; one event number never comes twice.

    `interests` gives each subscriber's channels, in the order in which the crowd connected. Within
    a channel every subscriber must get every event, once and in the order of publishing. No
    subscriber may get an event of another channel. Between channels any order is allowed.
    """

    def __init__(
        self,
        crowd: Crowd,
        interests: Sequence[Sequence[int]] = (),
        content: Callable[[int, int, int], bytes] = event,
    ) -> None:
        """Begin with nothing published; without `interests` all subscribers hear channel 0.

        `content` makes an event of its number, time and size.
        """
        self._content = content
        self._crowd = crowd
        self._receive = crowd.receivers()
        self._listeners = Counter[int]()
        self._heard = dict[int, int]()
        """By descriptor and channel (`_place`): the last event heard there, or `_NOTHING`."""
        for fd, channels in zip(self._receive, interests or repeat((0,)), strict=bool(interests)):
            for channel in channels:
                self._listeners[channel] += 1
                self._heard[fd + _place(channel)] = _NOTHING
        self._latest = dict.fromkeys(self._listeners, _NOTHING)
        # By event number:
        self._published_ns: list[int] = []
        self._places: list[int] = []
        self._before: list[int] = []  # the event before it in its channel
        self._left: list[int] = []  # subscribers that have not heard it
        self._publishers: dict[int, Watched] = {}
        # Subscribers receive identical chunks, one after the other, so the last one is kept.
        self._chunk: bytes | None = None
        self._chunk_numbers: Sequence[int] = ()
        self._awaited = 0  # deliveries
        self.outstanding = 0
        self.busy = Busy()
        self.last_ns = array("q")
        """The time from each event's publishing to its last subscriber."""
        self.latencies_ns = array("q")
        """The time from publishing to receiving, of each delivery."""

    def watch(self, publisher: Watched, events: int = select.EPOLLIN) -> None:
        """Serve this publisher's socket too, on these events."""
        self._publishers[publisher.fileno()] = publisher
        self._crowd.poller.register(publisher.fileno(), events)

    def unwatch(self, publisher: Watched) -> None:
        del self._publishers[publisher.fileno()]
        self._crowd.poller.unregister(publisher.fileno())

    def publish(
        self,
        publisher: Publisher,
        size: int = EVENT_SIZE,
        channel: int = 0,
        entry: Entry | None = None,
    ) -> None:
        """Publish the next event now; `entry` is the channel's if the publisher's is another."""
        self.busy.begin()
        now = time.monotonic_ns()
        number = len(self._left)
        self._published_ns.append(now)
        self._places.append(_place(channel))
        self._before.append(self._latest[channel])
        self._left.append(self._listeners[channel])
        self._latest[channel] = number
        self._awaited += self._listeners[channel]
        self.outstanding += 1
        publisher.publish(self._content(number, now, size), entry)

    def pump(self, timeout: float) -> int:
        """Read the available bytes, after at most `timeout` seconds for the first.

        If these were few and many deliveries are due, the pump then lets more gather. A wake-up
        for each delivery costs more than receiving it, and costs the server too, whose `send` does
        the waking. The last few hundred deliveries are received as they come.

        Returns the number of sockets that had bytes.
        """
        ready = self._crowd.poller.poll(timeout, _BATCH)
        partial = self._crowd.partial
        for fd, _ in ready:
            receive = self._receive.get(fd)
            if receive is None:
                self._publishers[fd].ready()
                continue
            data = receive(_CHUNK)
            now = time.monotonic_ns()
            if data == self._chunk and fd not in partial:
                numbers = self._chunk_numbers
            else:
                numbers = self._parse(fd, data)
            for number in numbers:
                self._count(fd, number, now)
        if len(ready) == _BATCH:  # epoll may take a while to come to the publishers
            for publisher in self._publishers.values():
                if publisher.waiting:
                    publisher.ready()
        elif self._awaited > _MANY:
            time.sleep(_BREATH)
        return len(ready)

    def _count(self, fd: int, number: int, now: int) -> None:
        try:
            place = fd + self._places[number]
            due = self._heard[place] == self._before[number]
        except LookupError:
            due = False
        if not due:
            raise WireError(self._fault(fd, number))
        self._heard[place] = number
        latency = now - self._published_ns[number]
        self.latencies_ns.append(latency)
        self._left[number] -= 1
        self._awaited -= 1
        if not self._left[number]:
            self.last_ns.append(latency)
            self.outstanding -= 1
            if not self.outstanding:
                self.busy.end()

    def _fault(self, fd: int, number: int) -> str:
        if number >= len(self._places):
            return f"event {number} was never published"
        heard = self._heard.get(fd + self._places[number])
        if heard is None:
            return f"event {number} came to a subscriber of another channel"
        if number <= heard:
            return f"event {number} came after {heard}: doubled or out of order"
        return f"event {number} came after {heard}, before {self._before[number]}: lost or late"

    def _parse(self, fd: int, data: bytes) -> Sequence[int]:
        if not data:
            raise WireError("the server hung up on a subscriber")
        crowd = self._crowd
        whole, answered = fd not in crowd.partial, crowd.answered
        payloads = crowd.frames(fd, data)
        numbers = tuple(number for payload in payloads for number in event_numbers(payload))
        # Only a chunk of whole messages is kept, and only if none of them needs an answer.
        if whole and fd not in crowd.partial and answered == crowd.answered:
            self._chunk, self._chunk_numbers = data, numbers
        return numbers

    def forget(self) -> None:
        """Forget the measurements so far, which were the warm-up."""
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
        """Publish `events` at `rate` a second, and wait until every subscriber has them all.

        Raises:
            WireError: an event was lost, doubled, out of order or in the wrong place, or took
                `patience` seconds.
        """
        for _ in self.ticks(events, rate):
            self.publish(publisher, size)
        self.finish(patience)

    def ticks(self, count: int, rate: float) -> Iterator[int]:
        """Yield `count` numbers, `rate` a second; read the arriving bytes between them."""
        start = time.monotonic() + 0.02
        for number in range(count):
            due = start + number / rate
            while (left := due - time.monotonic()) > 0:
                self.pump(left)
            yield number

    def finish(self, patience: float) -> None:
        """Wait until every event arrived everywhere, and check that nothing comes after."""
        deadline = time.monotonic() + patience
        while self.outstanding or any(p.waiting for p in self._publishers.values()):
            if time.monotonic() > deadline:
                raise WireError(f"{self.outstanding} events did not reach every subscriber")
            self.pump(0.1)
        while self.pump(_AFTERWARDS) and time.monotonic() < deadline:
            pass
