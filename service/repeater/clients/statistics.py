"""The counts of a node at one moment: what metrics, health checks and `info` show."""

from __future__ import annotations

import msgspec

from repeater.backend.contract import BackendStatistics, EventStatistics
from repeater.brokers.contract import BrokerStatistics
from repeater.fanout.mailbox import MailboxStatistics
from repeater.fanout.repeater import RepeaterStatistics


class OutgoingStatistics(msgspec.Struct, frozen=True):
    """What this node does with the publications of a database's transactions."""

    up: bool
    """Whether the database can be used now."""
    leading: bool
    """Whether this node takes them; one of all does."""
    under_way: int
    """Those that were taken and are not removed yet."""
    rows: int
    """Those in the table, counted to 10,000; about 10 s old."""
    oldest: float
    """Seconds for which the oldest of them has waited; 0 without one."""
    snapshot: float
    """Seconds since the oldest snapshot that keeps the database from tidying up."""
    moved: int
    """Those that this node has published and removed."""
    refused: int
    """Those that can never be published, and were put aside."""
    missed: int
    """Those that an earlier look had to give and did not."""
    losses: int
    """How often the database could not be used any more."""
    warnings: list[str]
    """What somebody should look at, in a sentence each."""


class NodeStatistics(msgspec.Struct, frozen=True):
    """A snapshot, made without a walk over clients or channels. Counts begin with the node."""

    clients: int
    kinds: dict[tuple[str, str], int]
    """Clients by the names of their transport and codec."""
    users: int
    """Different users with a connection, not counting the anonymous user."""
    channels: int
    subscriptions: int
    backlogged: int
    """Clients with bytes waiting in their outbox."""
    backlog_bytes: int
    draining: bool
    ended: dict[int, int]
    """Connections that ended, by disconnect code."""
    refused: int
    """Publishes told to try later: no room in time, or the node is shutting down."""
    broker_errors: dict[str, int]
    """Failures of broker and presence store, by the call."""
    outage: str
    """Why the broker does not work now; empty while it works."""
    broker: BrokerStatistics
    failures: dict[str, int]
    """Connections that an error of our own has cost, by the place of the error."""
    loop_lag: float
    """Seconds by which the last tick of the heartbeat was late. Every task waits about as long."""
    limited: dict[str, int]
    """Refusals by the setting that caused them, or by `blocked` or `revoked`."""
    refusals: dict[str, int]
    """What was refused, by its cause (`repeater.causes.Cause`)."""
    denials: int
    """The number of blocked users and revoked tokens that are kept."""
    members: int
    """Nodes that this one knows, itself included: workers of its server, or nodes of a cluster."""
    repeater: RepeaterStatistics
    feeds: MailboxStatistics
    """What code of the same process listens to (`Node.listen`)."""
    backend: BackendStatistics | None = None
    """None without callbacks."""
    events: EventStatistics | None = None
    """None without event callbacks."""
    outgoing: OutgoingStatistics | None = None
    """None without a database whose transactions publish."""

    @property
    def connected(self) -> int:
        """All connections since the start: those that are open and those that have ended."""
        return self.clients + sum(self.ended.values())
