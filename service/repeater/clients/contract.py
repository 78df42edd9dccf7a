"""The node as conversations and their commands see it.

`Node` implements it. `Node` is above this room, so this file lists what commands may use of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol, TypeVar

import trio

from repeater.access.channel_rules import ChannelRules
from repeater.access.grants import TokenVerifier
from repeater.backend.contract import Backend
from repeater.backend.options import CallbackKind
from repeater.brokers.answer_deadlines import AnswerDeadlines
from repeater.brokers.contract import Broker, Outcome, Page, PresenceStore
from repeater.brokers.control import Control
from repeater.brokers.receipts import Answer, Receipt
from repeater.clients.connection_log import ConnectionLog
from repeater.clients.denials import Denials
from repeater.clients.emulation import Emulation
from repeater.clients.limits import Places
from repeater.clients.position_sets import PositionSets
from repeater.clients.presence import Attendance
from repeater.clients.questions import Questions
from repeater.clients.refusals import Refusals
from repeater.clients.registry import Registry
from repeater.clients.renewals import Renewals
from repeater.clients.statistics import NodeStatistics
from repeater.failures import Failures
from repeater.fanout.hub import Hub
from repeater.fanout.mailbox import Mailboxes
from repeater.options import NodeOptions
from repeater.publication import ClientInfo, Publication, StreamPosition
from repeater.turns import Turns

T = TypeVar("T")


class ClientNode(Protocol):
    """The part of a node that conversations and commands may use."""

    id: str
    control: Control
    questions: Questions
    options: NodeOptions
    channels: ChannelRules
    broker: Broker
    answer_deadlines: AnswerDeadlines
    presence_store: PresenceStore
    verifier: TokenVerifier | None
    backend: Backend | None
    hub: Hub
    mailboxes: Mailboxes
    registry: Registry
    attendance: Attendance
    renewals: Renewals
    places: Places
    denials: Denials
    emulation: Emulation
    position_sets: PositionSets
    replays: trio.Lock
    """Held while a plain subscriber's past events are encoded, see `plain.listening`."""
    connection_log: ConnectionLog
    refusals: Refusals
    turns: Turns
    failures: Failures
    draining: bool
    """Whether the node shuts down and refuses new clients."""
    limited: Counter[str]
    """Refusals by the name of the limit or the denial. The code that refuses counts."""
    broker_errors: Counter[str]
    """Failures of broker and presence store, by the call. The code that handles one counts."""
    refused: int
    """Publishes told to try later: no room in time, or the node is shutting down."""

    def asks(self, kind: CallbackKind) -> Backend | None:
        """The back end, if it is to be asked this kind of question, else None."""

    def unix_time(self) -> float:
        """Unix seconds."""

    def uptime(self) -> float:
        """Seconds since the node was made."""

    def statistics(self) -> NodeStatistics:
        """A snapshot of all counts of this node."""

    def submit(
        self, publication: Publication, *, idempotency_key: str = "", skip_history: bool = False
    ) -> Answer[Outcome]:
        """Publish one event without waiting; see `ChannelOperations.submit`."""

    async def wait_room(self, deadline: float = 0.0) -> float:
        """Wait until one more event may be submitted; see `ChannelOperations.wait_room`."""

    async def answered(self, receipt: Receipt[T], asked: str = "") -> T:
        """Wait for the back end's answer; see `ChannelOperations.answered`."""

    async def publish(
        self, publication: Publication, /, *, idempotency_key: str = "", skip_history: bool = False
    ) -> Outcome:
        """Publish one event; see `ChannelOperations.publish`."""

    async def history(
        self,
        channel: str,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Page:
        """Past publications and the stream's top; see `ChannelOperations.history`."""

    async def presence(self, channel: str) -> Mapping[str, ClientInfo]:
        """The members of a channel by connection id; see `ChannelOperations.presence`."""

    async def presence_stats(self, channel: str) -> tuple[int, int]:
        """The numbers of connections and users; see `ChannelOperations.presence_stats`."""
