"""The capacity model: how many machines an audience needs, by a formula over measured costs.

A run measured the `Costs`. The `Assumptions` belong to the reader and have stated defaults. The
result is an estimate for nodes that share nothing, each with one core: `docs/capacity.md`
separates the measured numbers from the extrapolated ones.
"""

from __future__ import annotations

import math
from typing import Final, Self

import msgspec

from benchmarks.model import Run

_MEASURED: Final = {
    "delivery_us": ("fanout-9000", "cpu_us"),
    "event_us": ("publish", "call_us"),
    "connection_us": ("accept", "connection_us"),
    "heartbeat_us": ("idle", "heartbeat_us"),
    "memory_kib": ("memory", "memory_kib"),
    "kernel_kib": ("idle", "kernel_kib"),
}
MEASURED_CONNECTIONS: Final = 9_000
"""The most connections of a node with which the costs were measured."""
PACKET: Final = 78
"""Bytes around a message: Ethernet with its preamble and gap, IPv4, TCP with options."""


class NotMeasuredError(Exception):
    """The run lacks a workload that the model needs."""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of one node on one core, as a run measured them."""

    delivery_us: float
    """CPU to deliver one event to one of 9,000 subscribers."""
    event_us: float
    """CPU for one publish call, at each node."""
    connection_us: float
    """CPU from a connection's first byte to its subscription."""
    heartbeat_us: float
    """CPU for a ping and its answer."""
    memory_kib: float
    """Resident memory of an idle connection."""
    kernel_kib: float
    """Memory that the kernel keeps for the socket of a connection."""

    @classmethod
    def of(cls, run: Run, server: str = "repeater") -> Self:
        """Read the costs from a run.

        Raises:
            NotMeasuredError: the run lacks one of the workloads.
        """
        values = {}
        for name, (workload, metric) in _MEASURED.items():
            series = run.one(workload, server)
            value = series.median(metric) if series else None
            if value is None:
                raise NotMeasuredError(f"the run has no {metric} of {workload}")
            values[name] = value
        return cls(**values)


class Assumptions(msgspec.Struct, frozen=True, kw_only=True):
    """The reader's numbers for the audience and the machines."""

    subscribers: int = 1_000_000
    rate: float = 1.0
    """Events a second that each subscriber receives."""
    event_bytes: int = 140
    session_s: float = 600.0
    """How long a connection lasts; then another connection replaces it."""
    ping_s: float = 25.0
    busy: float = 0.6
    """The share of a core that a node may use on average; the rest is for peaks."""
    lateness_ms: float = 250.0
    """The longest time until the last subscriber of a node receives an event."""
    cores: int = 8
    """Cores of a machine; each core runs one node."""
    memory_gib: float = 32.0
    """Memory of a machine that connections may use."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The load of one node, and the number of nodes and machines."""

    connections: int
    """Connections on each node."""
    limited_by: str
    nodes: int
    machines: int
    busy: float
    """Share of each core that is used."""
    megabits: float
    """Megabits a second out of each machine, packet heads included."""

    @property
    def extrapolated(self) -> bool:
        """Whether a node has more connections than were measured."""
        return self.connections > MEASURED_CONNECTIONS


def estimate(costs: Costs, given: Assumptions) -> Estimate:
    """Apply the formula to these costs and assumptions.

    A node with n connections is busy for `rate * (event + n * delivery) + n * (connection /
    session + heartbeat / ping)` microseconds a second. n is the largest number that keeps this
    time within `busy`, the last delivery within `lateness`, and the memory within the node's part
    of the machine.

    Raises:
        ValueError: publishing alone exceeds the allowed use of a core.
    """
    each = costs.connection_us / given.session_s + costs.heartbeat_us / given.ping_s
    publishing = given.rate * costs.event_us
    spare = given.busy * 1e6 - publishing
    per_connection = given.rate * costs.delivery_us + each
    bounds = {
        "CPU": spare / per_connection,
        "lateness": given.lateness_ms * 1e3 / costs.delivery_us,
        "memory": given.memory_gib * 2**20 / given.cores / (costs.memory_kib + costs.kernel_kib),
    }
    limited_by = min(bounds, key=lambda name: bounds[name])
    most = math.floor(bounds[limited_by])
    if most < 1:
        raise ValueError(f"{given.rate:g} events a second are more than one node can take")
    nodes = math.ceil(given.subscribers / most)
    machines = math.ceil(nodes / given.cores)
    connections = math.ceil(given.subscribers / nodes)
    bits = 8 * given.rate * (given.event_bytes + PACKET) * given.subscribers / machines
    return Estimate(
        connections=connections,
        limited_by=limited_by,
        nodes=nodes,
        machines=machines,
        busy=(publishing + connections * per_connection) / 1e6,
        megabits=bits / 1e6,
    )
