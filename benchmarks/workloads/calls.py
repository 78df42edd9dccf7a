"""Publish calls into 100 channels, from some connections, each of which waits for its answer."""

from __future__ import annotations

from typing import Final

from benchmarks.generator.callers import Callers
from benchmarks.model import Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import Spent, started
from benchmarks.workloads.workload import distribution, percentile_ms

CHANNELS: Final = tuple(f"news-{number}" for number in range(100))
_WARM_UP: Final = 0.5  # seconds


def closed_loops(
    peer: Peer, *, connections: int, seconds: float, pinned: bool = True, apart: bool = False
) -> Turn:
    """One turn: so many closed loops for so many seconds.

    With `apart` the CPU of the server's first process counts, and that of its engine beside it.
    """
    entries = [peer.entry([channel]) for channel in CHANNELS]
    with started(peer, pinned=pinned) as child, Callers(child.port, entries, connections) as calls:
        calls.run(_WARM_UP)
        calls.forget()
        spent = Spent(child, apart=apart)
        calls.run(seconds)
        latencies = calls.latencies_ns
        return Turn(
            values={
                "publish_p50_ms": percentile_ms(latencies, 50),
                "publish_p99_ms": percentile_ms(latencies, 99),
                **spent.by_event("call_us", len(latencies)),
                "rate": len(latencies) / seconds,
            },
            histograms={"publish": distribution(latencies)},
            generator=calls.busy.share,
        )
