"""Mixed: how long a publish call takes while thousands of subscribers get an event.

A fan-out to 9,000 keeps a core busy for some 50 ms. If a server does the fan-out in one go, a call
that arrives meanwhile waits as long. If the server yields, it answers between two parts. The calls
go to a channel without subscribers, so that only the waiting is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Deliveries
from benchmarks.generator.wire import CHANNEL
from benchmarks.model import Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import started
from benchmarks.workloads.fanout import delivered
from benchmarks.workloads.workload import Plan, Workload, distribution, percentile_ms

_SUBSCRIBERS: Final = 9_000
_RATE: Final = 3  # events a second
_CALLS: Final = 20  # calls a second
_CALL: Final = b'{"beside":true}'
_SECONDS: Final = 5
_TICKS: Final = 60  # a second: every 20th an event, every 3rd a call
_PER_EVENT: Final = _TICKS // _RATE
_PER_CALL: Final = _TICKS // _CALLS
_CALL_NS: Final = 1_000_000_000 // _CALLS


def mixed(peer: Peer, plan: Plan) -> Turn:
    """One turn: calls to one channel beside events for 9,000 subscribers of another."""
    with started(peer) as child, Crowd(child.port) as crowd:
        crowd.open(_SUBSCRIBERS, peer.subscribe([CHANNEL]))
        with (
            contextlib.closing(Publisher(child.port, peer.entry([CHANNEL]))) as publisher,
            contextlib.closing(Publisher(child.port, peer.entry(["nobody"]))) as caller,
        ):
            deliveries = Deliveries(crowd)
            deliveries.watch(publisher)
            deliveries.watch(caller)
            deliveries.run(publisher, _RATE, _RATE)
            deliveries.forget()
            start = child.cpu_ns()
            for tick in deliveries.ticks(_TICKS * plan.of(_SECONDS, 2), _TICKS):
                if tick % _PER_EVENT == 0:
                    deliveries.publish(publisher)
                if tick % _PER_CALL == 0 and not caller.waiting:
                    caller.publish(_CALL)
            deliveries.finish(10)
            spent = child.cpu_ns() - start
        calls = corrected(caller.latencies_ns, _CALL_NS)
        turn = delivered(
            deliveries,
            child,
            spent,
            {
                "publish_p50_ms": percentile_ms(calls, 50),
                "publish_p99_ms": percentile_ms(calls, 99),
            },
        )
        return msgspec.structs.replace(
            turn, histograms={**turn.histograms, "publish": distribution(calls)}
        )


def corrected(latencies_ns: Sequence[int], interval_ns: int) -> list[int]:
    """Add the calls that were due every `interval_ns`, but not made while one was outstanding.

    They would have waited as well, for the rest of that time (coordinated omission).
    """
    return [left for latency in latencies_ns for left in range(latency, 0, -interval_ns)]


WORKLOADS: Final = (
    Workload(
        name="mixed-9000",
        title=f"Publish calls beside a fan-out to {_SUBSCRIBERS:,}",
        description=f"{_CALLS} publish calls a second to a channel without subscribers, while "
        f"{_SUBSCRIBERS:,} subscribers of another get {_RATE} events a second. CPU per delivery "
        "includes the calls.",
        group="Publishing",
        measure=mixed,
        needs=frozenset({"calls"}),
        subscribers=_SUBSCRIBERS,
    ),
)
