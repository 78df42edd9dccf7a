"""The costs of one delivery, one event and one connection, as slopes between two sizes.

A window holds the counts of one event or of one connection. A delivery's cost is the slope between
two windows of the same warm server, one with few and one with more subscribers. An event's own
cost is the rest of the window with few. Of many windows of one kind, the one at the lower quartile
counts. Disturbances only add to a window: the once-a-second sweeps (500,000 instructions, as much
as an event), a collector's pass, one more turn of Trio's loop. The smallest window of all may have
been lucky.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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

WINDOWS: Final = 24  # windows of one kind, each so short that few meet a sweep
FEW: Final = 16  # subscribers; so many connections also warm the accepting code
MORE: Final = 256
IDLE: Final = 2_000  # subscribers that do nothing while the resident bytes are read
_SERVERS: Final = 3  # servers; their median counts: one in ten has one more collector pass
SETTINGS: Final = {
    # Without a fixed seed, each run of Python lays out its dictionaries differently.
    "PYTHONHASHSEED": "0",
    # Seconds after which a fan-out yields. This depends on speed, and valgrind is slow.
    "REPEATER_FANOUT_BUDGET": "60",
    # The log has a line for each of the first 20 connections in a second, so the lines of a window
    # would depend on speed. In a storm most connections have no line either.
    "REPEATER_LOG_LEVEL": "warning",
}
HISTORY: Final = {
    "REPEATER_CHANNEL__HISTORY_SIZE": "16",
    "REPEATER_CHANNEL__HISTORY_TTL": "3600",
    "REPEATER_CHANNEL__FORCE_RECOVERY": "true",
}
_WARM: Final = 24  # events; CPython has specialised the code after some 16
# Seconds for one step, also on a busy machine; the gate has a deadline for all steps.
START: Final = 240.0  # valgrind takes 8 on an idle machine
PATIENCE: Final = 120.0  # for one event to arrive everywhere


class Protocol(msgspec.Struct, frozen=True):
    """One way to subscribe, with its way to publish."""

    name: str
    greeting: Greeting
    entry: Entry
    event: str
    """The name of one event's cost without deliveries; empty if another protocol has it."""
    settings: Mapping[str, str] = msgspec.field(default_factory=dict)
    """More variables of the server."""

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of the costs that `measure` returns."""
        names = (f"delivery {self.name}", f"connection {self.name}", self.event)
        return tuple(name for name in names if name)

    @property
    def idle(self) -> str:
        """The name of the cost that `idle` returns."""
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
    # Each connection asks for all since the start, of which the channel keeps the last 16 only: its
    # recovery fails, which leaves a line of the log.
    Protocol(
        "with recovery",
        repeater.centrifugo(_CHANNELS, '"recover":true,"recoverable":true,'),
        repeater.rest(_CHANNELS),
        "publish into history",
        HISTORY,
    ),
)


def measure(
    make_tool: Callable[[Path], Tool], protocol: Protocol, build: Build
) -> dict[str, Counts]:
    """Measure the costs of one protocol, by name, on one server without other subscribers."""
    with _session(make_tool, protocol, build) as session:
        few = session.event()
        connection = session.connection()
        session.fill(MORE)
        more = session.event()
    delivery = per(minus(more, few), MORE - FEW)
    event = minus(few, per(delivery, 1 / FEW))
    return dict(zip(protocol.costs, (delivery, connection, event), strict=False))


def idle(protocol: Protocol, build: Build) -> dict[str, Counts]:
    """Measure the bytes that one idle subscriber adds: the median of some fresh servers."""
    found = []
    for _ in range(_SERVERS):
        with running(build.command(), _settings(protocol, build), START, build.root) as child:
            before, after = resident(child, protocol.greeting, IDLE)
            found.append((after - before) / IDLE)
    return {protocol.idle: {"bytes": statistics.median(found)}}


def typical(windows: Sequence[Counts]) -> Counts:
    """Return the window at the lower quartile of the totals."""
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
        """Open subscribers up to this number, without counting."""
        self._tool.pause()
        self._crowd.open(subscribers - len(self._crowd.sockets), self._greeting, at_once=8)
        wait_quiet(self._child)
        self._tool.begin(self._child)

    def connection(self) -> Counts:
        """Count while one more subscriber connects."""
        return self._typical(lambda: self._open(1))

    def event(self) -> Counts:
        """Count while one event goes to all subscribers."""
        with self._deliveries() as deliveries:
            self._publish(deliveries, _WARM)
            return self._typical(lambda: self._publish(deliveries, 1))

    def warm(self) -> None:
        """Run all code that is counted later."""
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
            deliveries.finish(PATIENCE)
            wait_quiet(self._child)


@contextlib.contextmanager
def _session(
    make_tool: Callable[[Path], Tool], protocol: Protocol, build: Build
) -> Iterator[_Session]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="repeater-gate-"))
        tool = make_tool(Path(directory))
        command = (*tool.prefix(), *build.command())
        child = stack.enter_context(running(command, _settings(protocol, build), START, build.root))
        crowd = stack.enter_context(Crowd(child.port))
        publisher = Publisher(child.port, protocol.entry)
        stack.callback(publisher.close)
        session = _Session(tool, child, crowd, publisher, protocol.greeting)
        session.warm()
        tool.begin(child)
        yield session


def _settings(protocol: Protocol, build: Build) -> dict[str, str]:
    return {**SETTINGS, **protocol.settings, **build.settings()}
