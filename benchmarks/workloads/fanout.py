"""Fan-out: one event, many subscribers, at a rate at which nothing queues.

Measured are the server's CPU for one delivery, publishing included, the time until an event reaches
a subscriber, and the time until it reaches the last subscriber.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Deliveries
from benchmarks.generator.secure import secured
from benchmarks.generator.wire import CHANNEL, EVENT_SIZE, event
from benchmarks.model import Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import Child, started
from benchmarks.workloads.workload import Workload, distribution, percentile_ms

_WARM_UP: Final = 5  # events before the clock starts
_SECONDS: Final = 5
_FLOORS: Final = ("floor", "floor-python")
_VARIANTS: Final = (
    "repeater-centrifugo",
    "repeater-protobuf",
    "repeater-recovery",
    "repeater-presence",
    "repeater-sse",
    "repeater-tls",
    "nchan-sse",
)


def fan_out(
    peer: Peer,
    *,
    subscribers: int,
    rate: float,
    seconds: float,
    size: int = EVENT_SIZE,
    pinned: bool = True,
    content: Callable[[int, int, int], bytes] = event,
) -> Turn:
    """One turn: `rate` events a second to so many subscribers of one channel."""
    wrap = secured if peer.secure else None
    with started(peer, pinned=pinned) as child, Crowd(child.port, wrap) as crowd:
        crowd.open(subscribers, peer.subscribe([CHANNEL]))
        if peer.quiet_first:
            crowd.settle()
        with contextlib.closing(Publisher(child.port, peer.entry([CHANNEL]), wrap)) as publisher:
            deliveries = Deliveries(crowd, content=content)
            deliveries.watch(publisher)
            deliveries.run(publisher, _WARM_UP, rate, size=size)
            deliveries.forget()
            events = round(rate * seconds)
            start = child.cpu_ns()
            deliveries.run(publisher, events, rate, size=size)
            spent = child.cpu_ns() - start
        return delivered(deliveries, child, spent)


def delivered(
    deliveries: Deliveries, child: Child, spent_ns: int, more: Mapping[str, float] | None = None
) -> Turn:
    """Return a fan-out's turn: CPU per delivery, latencies, memory, and `more` values."""
    return Turn(
        values={
            "cpu_us": spent_ns / 1e3 / len(deliveries.latencies_ns),
            "delivery_p50_ms": percentile_ms(deliveries.latencies_ns, 50),
            "delivery_p99_ms": percentile_ms(deliveries.latencies_ns, 99),
            "last_p50_ms": percentile_ms(deliveries.last_ns, 50),
            "last_p99_ms": percentile_ms(deliveries.last_ns, 99),
            "rss_mib": child.rss() / 1_048_576,
            **(more or {}),
        },
        histograms={
            "delivery": distribution(deliveries.latencies_ns),
            "last": distribution(deliveries.last_ns),
        },
        generator=deliveries.busy.share,
    )


def _workload(subscribers: int, rate: float, *, core: bool = False) -> Workload:
    variants = _VARIANTS if subscribers == 1_000 else ()
    events = round(rate * _SECONDS)
    few = "" if events >= 100 else "; with so few events the 99th percentile of 'last' is the worst"
    return Workload(
        name=f"fanout-{subscribers}",
        title=f"Fan-out to {subscribers:,}",
        description=f"{events} events of {EVENT_SIZE} bytes, {rate:g} a second, to {subscribers:,} "
        f"subscribers of one channel. CPU is the whole server's, publishing included{few}.",
        group="Fan-out",
        measure=lambda peer, plan: fan_out(
            peer, subscribers=subscribers, rate=rate, seconds=plan.of(_SECONDS, 2)
        ),
        beside=(*_FLOORS, *variants),
        subscribers=subscribers,
        rounds=3 if subscribers >= 1_000 else 2,
        core=core,
    )


WORKLOADS: Final = (
    _workload(1, 100),
    _workload(100, 50),
    _workload(1_000, 20, core=True),
    _workload(5_000, 6),
    _workload(9_000, 4),
)
