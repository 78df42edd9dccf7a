"""How many machines an audience takes: a formula over measured costs, and nothing hidden in it.

`Costs` were measured by a run; `Assumptions` are the reader's, with defaults that are stated. What
comes out is an estimate for nodes that share nothing, each with one core: `docs/capacity.md` keeps
apart what was measured and what was extrapolated.
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
"""Connections of a node up to which the costs were measured."""
PACKET: Final = 78
"""Bytes around a message: Ethernet with its preamble and gap, IPv4, TCP with options."""


class NotMeasuredError(Exception):
    """The run lacks a workload that the model needs."""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What a run measured of one node, one core."""

    delivery_us: float
    """CPU to give one event to one subscriber, when there are 9,000."""
    event_us: float
    """CPU for one publish call, at each node."""
    connection_us: float
    """CPU from a connection's first byte to its subscription."""
    heartbeat_us: float
    """CPU for a ping and its answer."""
    memory_kib: float
    """Resident memory of an idle connection."""
    kernel_kib: float
    """Memory that the kernel keeps for its socket."""

    @classmethod
    def of(cls, run: Run, server: str = "repeater") -> Self:
        """Read them from a run.

        Raises:
            NotMeasuredError: it lacks one of the workloads.
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
    """What the reader knows of the audience and the machines."""

    subscribers: int = 1_000_000
    rate: float = 1.0
    """Events a second that each subscriber hears."""
    event_bytes: int = 140
    session_s: float = 600.0
    """How long a connection lasts; the others come back in its stead."""
    ping_s: float = 25.0
    busy: float = 0.6
    """The share of a core that may be used on average: the rest is for peaks."""
    lateness_ms: float = 250.0
    """When the last subscriber of a node hears an event, at the latest."""
    cores: int = 8
    """Of a machine: a node each."""
    memory_gib: float = 32.0
    """Of a machine, for connections."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """How far one node goes, and how many there must be."""

    connections: int
    """On each node."""
    limited_by: str
    nodes: int
    machines: int
    busy: float
    """Share of each core that is used."""
    megabits: float
    """Out of each machine, with packet heads."""

    @property
    def extrapolated(self) -> bool:
        """Whether a node has more connections than were measured."""
        return self.connections > MEASURED_CONNECTIONS


def estimate(costs: Costs, given: Assumptions) -> Estimate:
    """The formula.

    A node with n connections is busy for `rate * (event + n * delivery) + n * (connection /
    session + heartbeat / ping)` microseconds a second. n is the most that keeps this within
    `busy`, the last delivery within `lateness`, and memory within its part of the machine's.

    Raises:
        ValueError: publishing alone takes more than a core may be used.
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
