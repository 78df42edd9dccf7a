"""What one delivery, one event and one connection cost, as slopes between two sizes.

A delivery's cost is the difference between two windows of the same events to few and to more
subscribers of the same warm server; what an event costs besides is the rest of the window with
few. A window is one event or one connection, and of many of one kind the one at the lower quartile
counts. What comes by only adds: the once-a-second sweeps (500,000 instructions, as much as an
event), a collector's pass, one more turn of Trio's loop; and the least of all may have been lucky.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.gate.builds import Build
from benchmarks.gate.counters import Counts, Tool, wait_quiet
from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Entry, Greeting
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Deliveries
from benchmarks.peers import repeater
from benchmarks.servers import Child, running
from benchmarks.workloads.memory import resident

WINDOWS: Final = 24  # of one kind, each so short that few meet a sweep
FEW: Final = 16  # subscribers; as many connections also warm what accepts them
MORE: Final = 256
IDLE: Final = 2_000  # subscribers that do nothing while the resident bytes are read
_SERVERS: Final = 3  # of which the median counts: one in ten has a pass of the collector more
SETTINGS: Final = {
    # Without a seed of its own each run of Python lays out its dictionaries differently.
    "PYTHONHASHSEED": "0",
    # Seconds after which a fan-out gives way: a matter of speed too, and valgrind is slow.
    "REPEATER_FANOUT_BUDGET": "60",
    # A connection's line in the log is written for the first 20 in a second: for how many of a
    # window's would be a matter of speed. A storm's connections have none either.
    "REPEATER_LOG_LEVEL": "warning",
}
_WARM: Final = 24  # events; CPython has specialised what it runs after some 16
# Seconds for one step on a machine however busy; the gate has a deadline for all of them.
_START: Final = 240.0  # valgrind takes 8 on an idle machine
_PATIENCE: Final = 120.0  # for one event to arrive everywhere


class Protocol(msgspec.Struct, frozen=True):
    """One way to subscribe, and the way in that belongs to it."""

    name: str
    greeting: Greeting
    entry: Entry
    event: str
    """The name of what one event costs, deliveries left out; empty where it is no news."""

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of what `measure` finds."""
        names = (f"delivery {self.name}", f"connection {self.name}", self.event)
        return tuple(name for name in names if name)

    @property
    def idle(self) -> str:
        """The name of what `idle` finds."""
        return f"idle subscriber {self.name}"


_CHANNELS: Final = ("news",)
PROTOCOLS: Final = (
    Protocol("plain", repeater.plain(_CHANNELS), repeater.rest(_CHANNELS), "publish by REST"),
    Protocol(
        "centrifugo",
        repeater.centrifugo(_CHANNELS),
        repeater.commands(_CHANNELS),
        "publish by a command",
    ),
    Protocol("sse", repeater.events(_CHANNELS), repeater.rest(_CHANNELS), ""),
)


def measure(
    make_tool: Callable[[Path], Tool], protocol: Protocol, build: Build
) -> dict[str, Counts]:
    """The costs of one protocol, by name, from one server that knows no other subscribers."""
    with _session(make_tool, protocol, build) as session:
        few = session.event()
        connection = session.connection()
        session.fill(MORE)
        more = session.event()
    delivery = per(minus(more, few), MORE - FEW)
    event = minus(few, per(delivery, 1 / FEW))
    return dict(zip(protocol.costs, (delivery, connection, event), strict=False))


def idle(protocol: Protocol, build: Build) -> dict[str, Counts]:
    """The resident bytes that one idle subscriber adds: the median of some fresh servers."""
    found = []
    for _ in range(_SERVERS):
        with running(build.command(), _settings(build), _START, build.root) as child:
            before, after = resident(child, protocol.greeting, IDLE)
            found.append((after - before) / IDLE)
    return {protocol.idle: {"bytes": statistics.median(found)}}


def typical(windows: Sequence[Counts]) -> Counts:
    """The window at the lower quartile of the totals."""
    return sorted(windows, key=total)[len(windows) // 4]


def minus(more: Counts, less: Counts) -> Counts:
    return {name: more.get(name, 0) - less.get(name, 0) for name in {**more, **less}}


def per(counts: Counts, parts: float) -> Counts:
    return {name: count / parts for name, count in counts.items()}


def total(counts: Counts) -> float:
    return sum(counts.values())


class _Session:
    """A counted server and its subscribers. Lives inside `_session`, which ends all of it."""

    def __init__(
        self, tool: Tool, child: Child, crowd: Crowd, publisher: Publisher, greeting: Greeting
    ) -> None:
        self._tool = tool
        self._child = child
        self._crowd = crowd
        self._publisher = publisher
        self._greeting = greeting

    def fill(self, subscribers: int) -> None:
        """Open subscribers until there are so many, uncounted."""
        self._tool.pause()
        self._crowd.open(subscribers - len(self._crowd.sockets), self._greeting, at_once=8)
        wait_quiet(self._child)
        self._tool.begin(self._child)

    def connection(self) -> Counts:
        """What happens while one more comes."""
        return self._typical(lambda: self._open(1))

    def event(self) -> Counts:
        """What happens while one event goes to everybody."""
        with self._deliveries() as deliveries:
            self._publish(deliveries, _WARM)
            return self._typical(lambda: self._publish(deliveries, 1))

    def warm(self) -> None:
        """Run everything that is counted later."""
        self._open(FEW)
        with self._deliveries() as deliveries:
            self._publish(deliveries, _WARM)

    @contextlib.contextmanager
    def _deliveries(self) -> Iterator[Deliveries]:
        deliveries = Deliveries(self._crowd)
        deliveries.watch(self._publisher)
        try:
            yield deliveries
        finally:
            deliveries.unwatch(self._publisher)

    def _typical(self, work: Callable[[], None]) -> Counts:
        self._tool.read()
        return typical([self._window(work) for _ in range(WINDOWS)])

    def _window(self, work: Callable[[], None]) -> Counts:
        work()
        return self._tool.read()

    def _open(self, count: int) -> None:
        for _ in range(count):
            self._crowd.open(1, self._greeting)
            wait_quiet(self._child)

    def _publish(self, deliveries: Deliveries, count: int) -> None:
        for _ in range(count):
            deliveries.publish(self._publisher)
            deliveries.finish(_PATIENCE)
            wait_quiet(self._child)


@contextlib.contextmanager
def _session(
    make_tool: Callable[[Path], Tool], protocol: Protocol, build: Build
) -> Iterator[_Session]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="repeater-gate-"))
        tool = make_tool(Path(directory))
        command = (*tool.prefix(), *build.command())
        child = stack.enter_context(running(command, _settings(build), _START, build.root))
        crowd = stack.enter_context(Crowd(child.port))
        publisher = Publisher(child.port, protocol.entry)
        stack.callback(publisher.close)
        session = _Session(tool, child, crowd, publisher, protocol.greeting)
        session.warm()
        tool.begin(child)
        yield session


def _settings(build: Build) -> dict[str, str]:
    return {**SETTINGS, **build.settings()}
