"""System calls: how many a server makes for each delivery, as `strace` counts them.

No time is measured, so neither a busy machine nor the tracer's own cost changes anything: each
event is published when the server has come to rest.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.gate.counters import SystemCalls, wait_quiet
from benchmarks.generator.load import Crowd
from benchmarks.generator.publishers import Publisher
from benchmarks.generator.receivers import Deliveries
from benchmarks.generator.wire import CHANNEL
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import started
from benchmarks.workloads.workload import Plan, Workload

_SUBSCRIBERS: Final = 200
_WARM_UP: Final = 5
_EVENTS: Final = 20
_WRITES: Final = ("send", "sendto", "sendmsg", "sendmmsg", "write", "writev")
_METRICS: Final = {
    "writes": Metric("system calls that write, per delivery", "", short="writes"),
    "calls": Metric("system calls per delivery, all", "", short="calls"),
}


def measure(peer: Peer, plan: Plan) -> Turn:
    """One turn: a few events, one at a time, to 200 subscribers, the server under strace."""
    with tempfile.TemporaryDirectory(prefix="repeater-benchmarks-") as folder:
        strace = SystemCalls(Path(folder))
        traced = msgspec.structs.replace(
            peer, command=lambda turn: (*strace.prefix(), *peer.command(turn))
        )
        with started(traced) as child, Crowd(child.port) as crowd:
            crowd.open(_SUBSCRIBERS, peer.subscribe([CHANNEL]))
            with contextlib.closing(Publisher(child.port, peer.entry([CHANNEL]))) as publisher:
                deliveries = Deliveries(crowd)
                deliveries.watch(publisher)
                for number in range(_WARM_UP + _EVENTS):
                    if number == _WARM_UP:
                        strace.read()
                    deliveries.publish(publisher)
                    deliveries.finish(20)
                    wait_quiet(child)
            counts = strace.read()
    total = _EVENTS * _SUBSCRIBERS
    return Turn(
        values={
            "writes": sum(counts.get(name, 0) for name in _WRITES) / total,
            "calls": sum(counts.values()) / total,
        }
    )


WORKLOADS: Final = (
    Workload(
        name="syscalls",
        title="System calls",
        description=f"{_EVENTS} events, one at a time, to {_SUBSCRIBERS} subscribers, counted by "
        "strace for the whole server, publishing and timers included.",
        group="System calls",
        measure=measure,
        metrics=_METRICS,
        beside=("floor",),
        subscribers=_SUBSCRIBERS,
        tool="strace",
        rounds=1,
    ),
)
