"""Two nodes on one Valkey: what an event costs where it is published, and where it is heard.

One node takes the calls, so few that each event is alone on its way. The other one has no
subscriber at first, and then one. Then more connections hear the channel at the engine, as more
nodes would: the difference is what one of them costs the engine.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Busy
from benchmarks.generator.wire import CHANNEL, WireError, event
from benchmarks.model import Metric, Turn
from benchmarks.peers.repeater import SERVE, plain
from benchmarks.peers.valkey import SOCKET
from benchmarks.servers import Child, Spent, running, started
from benchmarks.workloads.workload import Workload
from repeater.brokers.valkey.keys import Keys

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer

_RATE: Final = 200.0  # events a second
_MORE: Final = 16  # connections: one alone is lost in the noise
_WARM_UP: Final = 100  # events
_PATIENCE: Final = 10.0  # seconds for the last event


def nodes(peer: Peer, *, events: int) -> Turn:
    """One turn: so many events without a listener, with one on the other node, and with more."""
    with (
        started(peer) as first,
        _engine(first) as path,
        _another(peer, path) as second,
        contextlib.closing(Publisher(first.port, peer.entry([CHANNEL]))) as publisher,
        Crowd(second.port) as crowd,
    ):
        pace = _Pace(first, second, publisher, crowd)
        pace.publish(_WARM_UP)
        alone = pace.measured(events)
        crowd.open(1, plain([CHANNEL]))
        crowd.settle()
        pace.publish(_WARM_UP, listeners=1)
        busy = Busy()
        busy.begin()
        heard = pace.measured(events, listeners=1)
        busy.end()
        with _more(path, crowd):
            pace.publish(_WARM_UP, listeners=1)
            more = pace.measured(events, listeners=1)
    return Turn(
        values={
            "received_us": heard.second - alone.second,
            "call_us": heard.first,
            "engine_us": alone.engine,
            "message_us": (more.engine - heard.engine) / _MORE,
        },
        generator=busy.share,
    )


@contextlib.contextmanager
def _engine(first: Child) -> Iterator[Path]:
    """The Unix socket of the engine that the first node has started."""
    (engine,) = first.pids()[1:]
    yield Path(os.readlink(f"/proc/{engine}/cwd"), SOCKET)


@contextlib.contextmanager
def _another(peer: Peer, path: Path) -> Iterator[Child]:
    """A second node on the same engine."""
    engine = ("--engine", "valkey", "--engine-url", f"unix://{path}")
    command = [sys.executable, *SERVE, "--port", "PORT", *engine]
    with running(command, {**peer.settings(), "REPEATER_NODE_NAME": "second"}) as second:
        yield second


@contextlib.contextmanager
def _more(path: Path, crowd: Crowd) -> Iterator[None]:
    """More connections that hear the channel at the engine; the crowd's loop reads them."""
    with contextlib.ExitStack() as stack:
        for _ in range(_MORE):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(path))
            sock.sendall(b"SUBSCRIBE %b\r\n" % Keys("repeater").names(CHANNEL).bus)
            crowd.poller.register(sock, select.EPOLLIN)
            stack.callback(crowd.poller.unregister, sock.fileno())
        yield


class _Costs(NamedTuple):
    """Microseconds for each event."""

    first: float
    second: float
    engine: float


class _Pace:
    """Publishes at a pace, and counts what is heard and what it costs. Lives inside one turn."""

    def __init__(self, first: Child, second: Child, publisher: Publisher, crowd: Crowd) -> None:
        self._first, self._second = first, second
        self._publisher = publisher
        self._crowd = crowd

    def measured(self, events: int, listeners: int = 0) -> _Costs:
        spent, before = Spent(self._first, apart=True), self._second.cpu_ns()
        heard = self.publish(events, listeners)
        costs = spent.by_event("call_us", events)
        if heard != events * listeners:
            raise WireError(f"{heard} of {events * listeners} events were heard")
        second = (self._second.cpu_ns() - before) / 1e3 / events
        return _Costs(costs["call_us"], second, costs["engine_us"])

    def publish(self, events: int, listeners: int = 0) -> int:
        """Publish so many events; how many have been heard by the crowd."""
        start, heard = time.monotonic(), 0
        for number in range(events):
            while (left := start + number / _RATE - time.monotonic()) > 0:
                heard += self._hear(left)
            self._publisher.publish(event(number))
            self._publisher.wait()
        deadline = time.monotonic() + _PATIENCE
        while heard < events * listeners and time.monotonic() < deadline:
            heard += self._hear(0.1)
        return heard

    def _hear(self, seconds: float) -> int:
        crowd, heard = self._crowd, 0
        for fd, _ in crowd.poller.poll(seconds):
            if fd in crowd.sockets:
                heard += len(crowd.frames(fd, crowd.sockets[fd].recv(65_536)))
            else:
                os.read(fd, 65_536)  # one of `_more`
        return heard


WORKLOADS: Final = (
    Workload(
        name="valkey-nodes",
        title="Two nodes on one Valkey",
        description=f"One node publishes {_RATE:g} events a second into one channel, each alone; "
        "the other node has no subscriber of that channel, and then one.",
        group="Valkey",
        measure=lambda peer, plan: nodes(peer, events=plan.of(600, 200)),
        metrics={
            "received_us": Metric(
                "CPU per event of a node with one subscriber", "us", short="node us"
            ),
            "engine_us": Metric("CPU of Valkey per event", "us", short="Valkey us"),
            "message_us": Metric("more for each node that hears it", "us", short="node more us"),
        },
        only=("repeater-valkey",),
        apart=True,
    ),
)
