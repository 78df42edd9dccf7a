"""Connection storm: connections a second, from the TCP handshake to a subscribed client.

200 of them are under way at a time. A bare Trio server without WebSocket is measured beside them.
"""

from __future__ import annotations

from typing import Final

from benchmarks.generator.load import Crowd
from benchmarks.generator.receivers import Busy
from benchmarks.generator.secure import secured
from benchmarks.generator.wire import CHANNEL
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import started
from benchmarks.workloads.workload import Workload

_CONNECTIONS: Final = 5_000
_WARM_UP: Final = 200
_AT_ONCE: Final = 200
_SECONDS: Final = 2.0


def accept(peer: Peer, *, most: int) -> Turn:
    """One turn: as many connections as take about 2 seconds, at most `most`."""
    greeting = peer.subscribe([CHANNEL])
    with started(peer) as child, Crowd(child.port, secured if peer.secure else None) as crowd:
        warm = crowd.open(_WARM_UP, greeting, _AT_ONCE)
        count = max(_WARM_UP, min(most, peer.most - _WARM_UP, round(_WARM_UP / warm * _SECONDS)))
        busy, cpu = Busy(), child.cpu_ns()
        busy.begin()
        seconds = crowd.open(count, greeting, _AT_ONCE)
        busy.end()
        return Turn(
            values={
                "rate": count / seconds,
                "connection_us": (child.cpu_ns() - cpu) / 1e3 / count,
            },
            generator=busy.share,
        )


WORKLOADS: Final = (
    Workload(
        name="accept",
        title="Connection storm",
        description=f"{_CONNECTIONS:,} connections (fewer where they would take more than "
        f"{_SECONDS:g} seconds), {_AT_ONCE} under way at a time, from the TCP handshake to "
        "the subscription.",
        group="Connections",
        measure=lambda peer, plan: accept(peer, most=plan.of(_CONNECTIONS, 2_000)),
        metrics={
            "rate": Metric("connections a second", "/s", "higher", "per second"),
            "connection_us": Metric("server CPU per connection", "us", short="CPU us"),
        },
        beside=("bare-trio",),
        core=True,
    ),
)
