"""What a node looks like at one moment, for health checks, metrics and tests alike."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from repeater.backend.options import CallbackKind
from repeater.fanout.repeater import RepeaterStatistics


class EndpointStatistics(msgspec.Struct, frozen=True):
    """What became of one address's questions; `asked` is all of them.

    `answered` counts refusals, too. `timeouts` are part of `failed`. `refused` were not sent
    because the circuit was open, `crowded` because their turn did not come in time.
    """

    asked: int
    answered: int
    failed: int
    timeouts: int
    refused: int
    crowded: int
    under_way: int
    waiting: int
    circuit: str
    """`closed`, `open` or `probing`."""
    opened: int
    """How often the circuit did."""


class BackendStatistics(msgspec.Struct, frozen=True):
    """The back end's addresses, by what they are asked."""

    endpoints: Mapping[CallbackKind, EndpointStatistics]


class EventStatistics(msgspec.Struct, frozen=True):
    """How many events wait, were delivered and dropped; `attempts` and `failures` are batches."""

    waiting: int
    delivered: int
    dropped: int
    attempts: int
    failures: int


class NodeStatistics(msgspec.Struct, frozen=True):
    """A snapshot, made without a walk over clients or channels. Counts begin with the node."""

    clients: int
    kinds: dict[tuple[str, str], int]
    """Clients by the names of their transport and codec."""
    users: int
    """Different users with a connection, the anonymous one not counted."""
    channels: int
    subscriptions: int
    backlogged: int
    """Clients with something waiting."""
    backlog_bytes: int
    draining: bool
    ended: dict[int, int]
    """Connections that ended, by disconnect code."""
    refused: int
    """Publishes told to try later: no room in time, or the node is shutting down."""
    broker_errors: dict[str, int]
    """Failures of broker and presence store, by what was asked of them."""
    outage: str
    """Why the broker is of no use now; empty while it is."""
    loop_lag: float
    """Seconds by which the last tick of the heartbeat was late: what everything else waits."""
    limited: dict[str, int]
    """What was refused, by the setting that it ran into, or as `blocked` or `revoked`."""
    denials: int
    """Blocked users and revoked tokens that are kept."""
    repeater: RepeaterStatistics
    backend: BackendStatistics | None = None
    """None without callbacks."""
    events: EventStatistics | None = None
    """None without event callbacks."""

    @property
    def connected(self) -> int:
        """Connections ever taken in: each is here or has ended."""
        return self.clients + sum(self.ended.values())
