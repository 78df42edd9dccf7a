"""Memory: resident bytes that one idle connection adds to the server.

A first crowd comes and leaves before the baseline is taken, so that memory which is allocated only
once does not count. The kernel's memory for a socket is not included for any server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.protocol import Greeting
from benchmarks.generator.secure import secured
from benchmarks.generator.wire import CHANNEL
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import Child, started
from benchmarks.workloads.workload import Workload

_CONNECTIONS: Final = 5_000
_WARM_UP: Final = 200
_SETTLE: Final = 0.5  # seconds


def idle_memory(peer: Peer, *, connections: int) -> Turn:
    """One turn: open so many connections to a fresh server."""
    wrap = secured if peer.secure else None
    with started(peer) as child:
        before, after = resident(child, peer.subscribe([CHANNEL]), connections, wrap)
    return Turn(
        values={
            "memory_kib": (after - before) / connections / 1_024,
            "empty_mib": before / 1_048_576,
            "rss_mib": after / 1_048_576,
        }
    )


def resident(
    child: Child,
    greeting: Greeting,
    connections: int,
    wrap: Callable[[socket.socket], socket.socket] | None = None,
) -> tuple[int, int]:
    """Return a fresh server's resident bytes without connections, and with so many."""
    with Crowd(child.port, wrap) as first:
        first.open(_WARM_UP, greeting)
        first.idle(_SETTLE)
        first.close(reset=False)
        first.idle(_SETTLE)
    child.check()
    before = child.rss()
    with Crowd(child.port, wrap) as crowd:
        crowd.open(connections, greeting)
        crowd.idle(_SETTLE)
        child.check()
        return before, child.rss()


WORKLOADS: Final = (
    Workload(
        name="memory",
        title="Idle memory",
        description=f"What {_CONNECTIONS:,} idle subscribers of one channel add to the resident "
        "memory of all the server's processes, divided by their number.",
        group="Connections",
        measure=lambda peer, plan: idle_memory(
            peer, connections=min(peer.most, plan.of(_CONNECTIONS, 1_000))
        ),
        metrics={
            "empty_mib": Metric("resident memory without connections", "MiB", short="empty MiB")
        },
        beside=(
            "bare-trio",
            "repeater-centrifugo",
            "repeater-protobuf",
            "repeater-recovery",
            "repeater-sse",
            "repeater-tls",
        ),
        rounds=1,
        core=True,
    ),
)
