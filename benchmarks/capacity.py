"""The capacity model: how many machines an audience needs, by a formula over measured costs.

A run measured the `Costs`. The `Assumptions` belong to the reader and have stated defaults. The
result is an estimate for nodes of one core each: a single one keeps its history in memory, several
share a Valkey. `docs/capacity.md` separates the measured numbers from the extrapolated ones.
"""

from __future__ import annotations

import math
from bisect import bisect_left
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
_SHARED: Final = {
    "call_us": "call_us",
    "received_us": "received_us",
    "script_us": "engine_us",
    "message_us": "message_us",
}
"""What a run of the workload `valkey-nodes` measured."""
MEASURED_CONNECTIONS: Final = 9_000
"""The most connections of a node with which the costs were measured."""
PACKET: Final = 78
"""Bytes around a message: Ethernet with its preamble and gap, IPv4, TCP with options."""


class NotMeasuredError(Exception):
    """The run lacks a workload that the model needs."""


class SharedCosts(msgspec.Struct, frozen=True, kw_only=True):
    """What one event costs several nodes on one Valkey, as a run measured it."""

    call_us: float
    """CPU of the node that takes the publish call."""
    received_us: float
    """CPU of each node that has subscribers, until the first of them has the event."""
    script_us: float
    """CPU of the engine: to number, keep and publish."""
    message_us: float
    """CPU of the engine for each node that has subscribers."""

    @classmethod
    def of(cls, run: Run, server: str = "repeater-valkey") -> Self:
        """Read the costs from a run of the workload `valkey-nodes`.

        Raises:
            NotMeasuredError: the run lacks it.
        """
        return cls(
            **{name: _value(run, "valkey-nodes", one, server) for name, one in _SHARED.items()}
        )


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of one node on one core, as a run measured them."""

    delivery_us: float
    """CPU to deliver one event to one of 9,000 subscribers."""
    event_us: float
    """CPU for one publish call, where a single node keeps history in memory."""
    connection_us: float
    """CPU from a connection's first byte to its subscription."""
    heartbeat_us: float
    """CPU for a ping and its answer."""
    memory_kib: float
    """Resident memory of an idle connection."""
    kernel_kib: float
    """Memory that the kernel keeps for the socket of a connection."""
    shared: SharedCosts

    @classmethod
    def of(cls, run: Run, shared: Run, server: str = "repeater") -> Self:
        """Read the costs from a full run, and from one of the workload `valkey-nodes`.

        Raises:
            NotMeasuredError: a run lacks one of the workloads.
        """
        values = {name: _value(run, *where, server) for name, where in _MEASURED.items()}
        return cls(**values, shared=SharedCosts.of(shared))


def _value(run: Run, workload: str, metric: str, server: str) -> float:
    series = run.one(workload, server)
    value = series.median(metric) if series else None
    if value is None:
        raise NotMeasuredError(f"the run has no {metric} of {workload}")
    return value


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
    """The load of one node and of the engine, and the number of nodes and machines."""

    connections: int
    """Connections on each node."""
    limited_by: str
    nodes: int
    machines: int
    busy: float
    """Share of each core that is used."""
    engine: float
    """Share of one core that the engine uses; 0 without one. Above 1 it is more than one can do."""
    megabits: float
    """Megabits a second out of each machine, packet heads included."""

    @property
    def extrapolated(self) -> bool:
        """Whether a node has more connections than were measured."""
        return self.connections > MEASURED_CONNECTIONS


def estimate(costs: Costs, given: Assumptions) -> Estimate:
    """Apply the formula to these costs and assumptions.

    The smallest number of nodes is wanted with which each keeps within its core, the last delivery
    within `lateness`, and the connections within the node's part of a machine's memory. A node with
    n connections is busy for `rate * (event + n * delivery) + n * (connection / session + heartbeat
    / ping)` microseconds a second. The event of several nodes is what each of them receives, and
    its part of the calls.

    Raises:
        ValueError: publishing alone exceeds the allowed use of a core.
    """

    def fits(nodes: int) -> bool:
        return max(_used(costs, given, nodes).values()) <= 1

    # With more nodes each has less to do. Only the step from one to two may be one upwards.
    numbers = range(1 if fits(1) else 2, given.subscribers + 1)
    at = 0 if fits(1) else bisect_left(numbers, True, key=fits)
    if at == len(numbers):
        raise ValueError(f"{given.rate:g} events a second are more than one node can take")
    nodes = numbers[at]
    used = _used(costs, given, nodes)
    machines = math.ceil(nodes / given.cores)
    bits = 8 * given.rate * (given.event_bytes + PACKET) * given.subscribers / machines
    return Estimate(
        connections=_connections(given, nodes),
        limited_by=max(used, key=lambda name: used[name]),
        nodes=nodes,
        machines=machines,
        busy=used["CPU"] * given.busy,
        engine=_engine(costs, given, nodes),
        megabits=bits / 1e6,
    )


def _connections(given: Assumptions, nodes: int) -> int:
    return math.ceil(given.subscribers / nodes)


def _used(costs: Costs, given: Assumptions, nodes: int) -> dict[str, float]:
    """Return how much of each bound a node uses, if there are so many; 1 is all of it."""
    connections, shared = _connections(given, nodes), costs.shared
    event = costs.event_us if nodes == 1 else shared.received_us + shared.call_us / nodes
    each = costs.connection_us / given.session_s + costs.heartbeat_us / given.ping_s
    busy = given.rate * event + connections * (given.rate * costs.delivery_us + each)
    memory_kib = connections * (costs.memory_kib + costs.kernel_kib)
    return {
        "CPU": busy / (given.busy * 1e6),
        "lateness": connections * costs.delivery_us / (given.lateness_ms * 1e3),
        "memory": memory_kib * given.cores / (given.memory_gib * 2**20),
    }


def _engine(costs: Costs, given: Assumptions, nodes: int) -> float:
    """Return the share of a core that the engine of several nodes uses."""
    if nodes == 1:
        return 0.0
    return given.rate * (costs.shared.script_us + nodes * costs.shared.message_us) / 1e6
