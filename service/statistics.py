"""What a node looks like at one moment, for health checks, metrics and tests alike."""

from __future__ import annotations

import msgspec

from service.repeater import RepeaterStatistics


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
    repeater: RepeaterStatistics

    @property
    def connected(self) -> int:
        """Connections ever taken in: each is here or has ended."""
        return self.clients + sum(self.ended.values())
