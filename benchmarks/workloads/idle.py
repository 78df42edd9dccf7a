"""Idle: the cost of clients that only stay connected, in CPU and in the kernel's memory.

The server pings each client, and the client answers. The server is told to ping once a second
instead of every 25, so that a few seconds are enough. Its CPU without clients is subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.generator.load import Crowd
from benchmarks.generator.wire import CHANNEL
from benchmarks.model import Metric, Turn
from benchmarks.peers.peer import Peer
from benchmarks.servers import started
from benchmarks.workloads.workload import Plan, Workload

_SETTINGS: Final = {"REPEATER_PING_INTERVAL": "1", "REPEATER_PONG_TIMEOUT": "0.9"}
_SETTLE: Final = 2.0  # seconds: the first ping comes within one
_METRICS: Final = {
    "heartbeat_us": Metric("server CPU per heartbeat", "us", short="beat CPU us"),
    "kernel_kib": Metric("kernel memory per socket", "KiB", short="kernel KiB"),
}


def measure(peer: Peer, plan: Plan) -> Turn:
    """One turn: a few seconds without clients, then as many with all clients connected."""
    seconds, count = plan.of(4, 2), plan.of(4_000, 1_000)
    with started(msgspec.structs.replace(peer, settings=lambda: _often(peer))) as child:
        with Crowd(child.port) as crowd:
            crowd.idle(_SETTLE)
            start = child.cpu_ns()
            crowd.idle(seconds)
            alone = child.cpu_ns() - start
        before = _slab_kib()
        with Crowd(child.port) as crowd:
            crowd.open(count, peer.subscribe([CHANNEL]))
            crowd.idle(_SETTLE)
            kernel = _slab_kib() - before
            start = child.cpu_ns()
            crowd.idle(seconds)
            spent = child.cpu_ns() - start - alone
    return Turn(
        values={
            "heartbeat_us": spent / 1e3 / (count * seconds),
            # Both ends of each connection are on this machine.
            "kernel_kib": kernel / (2 * count),
        }
    )


def _often(peer: Peer) -> Mapping[str, str]:
    return {**peer.settings(), **_SETTINGS}


def _slab_kib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1])
    return 0


WORKLOADS: Final = (
    Workload(
        name="idle",
        title="Clients that only stay connected",
        description="4,000 clients are pinged once a second and answer. Kernel memory is the "
        "growth of its slab caches, divided by two sockets a connection.",
        group="Connections",
        measure=measure,
        metrics=_METRICS,
        only=("repeater", "repeater-centrifugo"),
        rounds=2,
    ),
)
