"""Workers: what an event, a call and a connection cost when two processes share the connections.

A server with one process takes turns with two workers and their supervisor. Both may use all
cores, and the load generator uses one of them, so costs are CPU time wherever possible.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from benchmarks.generator.herd import Herd
from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Busy
from benchmarks.generator.scrape import by_worker, scrape
from benchmarks.generator.tokens import token
from benchmarks.generator.wire import CHANNEL, WireError, event
from benchmarks.model import Metric, Turn
from benchmarks.peers.engines import WORKERS
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import centrifugo
from benchmarks.servers import started
from benchmarks.workloads.calls import CHANNELS, closed_loops
from benchmarks.workloads.fanout import fan_out
from benchmarks.workloads.workers_stream import paced_stream
from benchmarks.workloads.workload import Workload

_STORM: Final = 9_000
_WARM_UP: Final = 500
_SPREAD: Final = 2_000
_AUDIENCE: Final = 9_000
_EVENTS: Final = 12
_WARM_EVENTS: Final = 3
_SLEEP: Final = 0.4  # seconds: 9,000 writes take some 50 ms
_QUIET: Final = 1.0  # seconds until those who left are gone everywhere
_SECRET: Final = "a secret of 32 bytes or a few more"
# Every limit is on and none is reached: they are counted, and refuse nobody.
_LIMITED: Final = {
    "REPEATER_CHANNEL__PRESENCE": "true",
    "REPEATER_TOKEN__HMAC_SECRET_KEY": _SECRET,
    "REPEATER_LIMITS__CONNECTIONS": "20000",
    "REPEATER_LIMITS__CONNECTIONS_PER_ADDRESS": "20000",
    "REPEATER_LIMITS__CONNECTIONS_PER_USER": "10",
    "REPEATER_LIMITS__CONNECTION_RATE": "100000",
    "REPEATER_LIMITS__PENDING_CONNECTIONS": "20000",
    "REPEATER_LIMITS__PENDING_PER_ADDRESS": "20000",
}
_HANDOVER: Final = "repeater_publish_to_write_seconds"


def storm(peer: Peer, *, clients: int) -> Turn:
    """One turn: users with tokens connect at once, and each subscribes to one of the channels."""
    limited = {**peer.settings(), **_LIMITED}
    greetings = [
        centrifugo([CHANNELS[number % len(CHANNELS)]], token=token(_SECRET, f"user-{number}"))
        for number in range(clients)
    ]
    with (
        started(msgspec.structs.replace(peer, settings=lambda: limited), pinned=False) as child,
        Herd(child.port) as herd,
    ):
        herd.come(greetings[:_WARM_UP])
        herd.vanish()
        time.sleep(_QUIET)
        busy, cpu = Busy(), child.cpu_ns()
        busy.begin()
        seconds = herd.come(greetings)
        busy.end()
        return Turn(
            values={
                "connection_us": (child.cpu_ns() - cpu) / 1e3 / clients,
                "rate": clients / seconds,
            },
            generator=busy.share,
        )


def spread(peer: Peer, *, connections: int) -> Turn:
    """One turn: the connections of the busiest worker, over the mean."""
    with started(peer, pinned=False) as child, Crowd(child.port) as crowd:
        crowd.open(connections, peer.subscribe([CHANNEL]))
        found = by_worker(scrape(child.port), "repeater_connections")
    if sum(found.values()) != connections:
        raise WireError(f"{sum(found.values()):.0f} of {connections} connections: {found}")
    return Turn(values={"spread": max(found.values()) / (connections / WORKERS)})


def hand_over(peer: Peer, *, subscribers: int, events: int = _EVENTS) -> Turn:
    """One turn: how long the slowest worker writes an event, as the server says.

    The generator sleeps while the server writes, and reads the sockets afterwards.
    """
    with (
        started(peer, pinned=False) as child,
        Crowd(child.port) as crowd,
        contextlib.closing(Publisher(child.port, peer.entry([CHANNEL]))) as publisher,
    ):
        crowd.open(subscribers, peer.subscribe([CHANNEL]))
        crowd.settle()
        before, took = _written(child.port), list[float]()
        for number in range(_WARM_EVENTS + events):
            publisher.publish(event(number))
            time.sleep(_SLEEP)
            publisher.wait()
            after = _written(child.port)
            took.append(max(after[worker] - before.get(worker, 0.0) for worker in after))
            before = after
            crowd.idle(0.0)
            crowd.settle(0.05)
    return Turn(values={"written_ms": statistics.median(took[_WARM_EVENTS:]) * 1e3})


def _written(port: int) -> Mapping[str, float]:
    """Return the seconds from hand-over to the last write, of all events so far."""
    return by_worker(scrape(port), f"{_HANDOVER}_sum")


def memory(peer: Peer) -> Turn:
    """One turn: the private memory of all processes of an idle server."""
    with started(peer, pinned=False) as child:
        scrape(child.port)
        time.sleep(_QUIET)
        return Turn(values={"private_mb": child.private() / 1e6})


_BOTH: Final = ("repeater-memory", "repeater-workers")
_GROUP: Final = "Workers"
_CALLS: Final = Metric("calls a second", "/s", "higher", "per second")


def _fan_out(subscribers: int, rate: float) -> Workload:
    return Workload(
        name=f"workers-fanout-{subscribers}",
        title=f"Fan-out to {subscribers:,} over {WORKERS} workers",
        description=f"{rate:g} events a second to {subscribers:,} subscribers of one channel.",
        group=_GROUP,
        measure=lambda peer, plan: fan_out(
            peer, subscribers=subscribers, rate=rate, seconds=plan.of(4, 2), pinned=False
        ),
        only=_BOTH,
        apart=True,
    )


WORKLOADS: Final = (
    _fan_out(1_000, 20),
    _fan_out(9_000, 4),
    Workload(
        name="workers-stream",
        title="A stream, 100 events in each piece",
        description="The body of one request comes in pieces of 100 events, one for each channel. "
        "Some subscribers of all channels are connected to each worker.",
        group=_GROUP,
        measure=lambda peer, plan: paced_stream(peer, CHANNELS, pieces=plan.of(1_000, 200)),
        metrics={
            "supervisor_us": Metric(
                "CPU per event of the process that holds the broker", "us", short="broker us"
            ),
            "event_us": Metric("CPU per event of all processes", "us", short="all us"),
        },
        only=_BOTH,
        apart=True,
    ),
    Workload(
        name="workers-call",
        title=f"Publish calls from one connection to {WORKERS} workers",
        description="One connection publishes, each event after the answer to the last.",
        group=_GROUP,
        measure=lambda peer, plan: closed_loops(
            peer, connections=1, seconds=plan.of(3, 1), pinned=False
        ),
        metrics={"rate": _CALLS},
        only=_BOTH,
        apart=True,
    ),
    Workload(
        name="workers-storm",
        title=f"Connection storm over {WORKERS} workers",
        description=f"{_STORM:,} users with tokens connect at once, and subscribe to one channel "
        "each, with presence and with all limits of connections.",
        group=_GROUP,
        measure=lambda peer, plan: storm(peer, clients=plan.of(_STORM, 2_000)),
        metrics={
            "connection_us": Metric("server CPU per connection", "us", short="CPU us"),
            "rate": Metric("connections a second", "/s", "higher", "per second"),
        },
        only=_BOTH,
        apart=True,
    ),
    Workload(
        name="workers-spread",
        title=f"The spread of connections over {WORKERS} workers",
        description=f"{_SPREAD:,} connections; those of the busiest worker over the mean.",
        group=_GROUP,
        measure=lambda peer, plan: spread(peer, connections=_SPREAD),
        metrics={"spread": Metric("connections of the busiest worker, over the mean", "x")},
        only=("repeater-workers",),
        apart=True,
    ),
    Workload(
        name="workers-last",
        title=f"The last write to {_AUDIENCE:,} over {WORKERS} workers",
        description=f"One event at a time to {_AUDIENCE:,} subscribers of one channel. The server "
        f"tells how long it took (`{_HANDOVER}`); of several workers, the slowest counts. The load "
        "generator sleeps meanwhile.",
        group=_GROUP,
        measure=lambda peer, plan: hand_over(peer, subscribers=plan.of(_AUDIENCE, 2_000)),
        metrics={"written_ms": Metric("hand-over to the last write", "ms", short="written ms")},
        only=_BOTH,
        apart=True,
    ),
    Workload(
        name="workers-memory",
        title="Private memory of an idle server",
        description="The pages that each process has for itself, of all processes together.",
        group=_GROUP,
        measure=lambda peer, _plan: memory(peer),
        metrics={"private_mb": Metric("private memory of all processes", "MB", short="MB")},
        only=_BOTH,
        apart=True,
    ),
)
