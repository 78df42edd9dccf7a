"""What one delivery, one event and one connection cost, as slopes between two sizes.

A delivery's cost is the difference between two windows of the same events to few and to more
subscribers of the same warm server; what an event costs besides is the rest of the window with
few. Of several windows of one kind the least count: what comes by, the once-a-second sweep or a
collector's pass, only adds.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from benchmarks.gate.counters import Counts, Tool, wait_quiet
from benchmarks.load import CENTRIFUGO, EVENTS, PLAIN, Crowd, Greeting
from benchmarks.publishers import Pipeline, Publisher, Rest
from benchmarks.receivers import Deliveries
from benchmarks.servers import SERVICE, Child, running

WINDOWS: Final = 8  # of one kind, each short enough to fall between two sweeps
UNDISTURBED: Final = 3  # of them count
FEW: Final = 16  # subscribers; as many connections also warm what accepts them
MORE: Final = 400
EVENTS_EACH: Final = 8  # in a window
CONNECTIONS_EACH: Final = 6
SETTINGS: Final = {
    # Without a seed of its own each run of Python lays out its dictionaries differently.
    "PYTHONHASHSEED": "0",
    # A connection's line in the log is written for the first 20 in a second: for how many of a
    # window's would be a matter of speed. A storm's connections have none either.
    "REPEATER_LOG_LEVEL": "warning",
}
_WARM: Final = 24  # events; CPython has specialised what it runs after some 16
_START: Final = 60.0  # seconds: valgrind takes 8 on an idle machine
_PATIENCE: Final = 20.0  # seconds for one event to arrive everywhere


@attrs.frozen
class Protocol:
    """One way to subscribe, and the publisher that belongs to it."""

    name: str
    greeting: Greeting
    publisher: Callable[[int], Publisher]
    event: str
    """The name of what one event costs, deliveries left out; empty where it is no news."""

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of what `measure` finds."""
        names = (f"delivery {self.name}", f"connection {self.name}", self.event)
        return tuple(name for name in names if name)


class Commands(Pipeline):
    """A Centrifugo client that publishes one event a message, each after the last's reply."""

    @property
    def waiting(self) -> bool:
        """Whether an answer is outstanding."""
        return self.answered < self.sent

    def publish(self, data: bytes) -> None:
        self.send(self.frame([data], self.sent + 2), 1)


PROTOCOLS: Final = (
    Protocol("plain", PLAIN, Rest, "publish by REST"),
    Protocol("centrifugo", CENTRIFUGO, Commands, "publish by a command"),
    Protocol("sse", EVENTS, Rest, ""),
)


def measure(make_tool: Callable[[Path], Tool], protocol: Protocol) -> dict[str, Counts]:
    """The costs of one protocol, by name, from one server that knows no other subscribers."""
    with _session(make_tool, protocol) as session:
        few = session.events()
        connection = session.connections()
        session.fill(MORE)
        more = session.events()
    delivery = per(minus(more, few), EVENTS_EACH * (MORE - FEW))
    event = minus(per(few, EVENTS_EACH), per(delivery, 1 / FEW))
    found = (delivery, per(connection, CONNECTIONS_EACH), event)
    return dict(zip(protocol.costs, found, strict=False))


def least(windows: Sequence[Counts]) -> Counts:
    """The mean of the `UNDISTURBED` windows with the least in all."""
    chosen = sorted(windows, key=total)[:UNDISTURBED]
    names = {name: None for counts in chosen for name in counts}
    return {name: sum(counts.get(name, 0) for counts in chosen) / len(chosen) for name in names}


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
        self._open(subscribers - len(self._crowd.sockets))
        self._tool.begin(self._child)

    def connections(self) -> Counts:
        """The mean of the least windows in which `CONNECTIONS_EACH` come, one after the other."""
        return self._least(lambda: self._open(CONNECTIONS_EACH))

    def events(self) -> Counts:
        """The mean of the least windows in which `EVENTS_EACH` go to everybody."""
        with self._deliveries() as deliveries:
            self._publish(deliveries, _WARM)
            return self._least(lambda: self._publish(deliveries, EVENTS_EACH))

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

    def _least(self, work: Callable[[], None]) -> Counts:
        self._tool.read()
        return least([self._window(work) for _ in range(WINDOWS)])

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
def _session(make_tool: Callable[[Path], Tool], protocol: Protocol) -> Iterator[_Session]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="repeater-gate-"))
        tool = make_tool(Path(directory))
        command = (*tool.prefix(), *SERVICE)
        child = stack.enter_context(running(command, SETTINGS, patience=_START))
        crowd = stack.enter_context(Crowd(child.port))
        publisher = protocol.publisher(child.port)
        stack.callback(publisher.close)
        session = _Session(tool, child, crowd, publisher, protocol.greeting)
        session.warm()
        tool.begin(child)
        yield session
