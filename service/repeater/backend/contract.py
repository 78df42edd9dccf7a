"""The contract of an application's back end: the questions it answers, and the events it gets.

`backend.http` and `backend.events` implement the two halves over HTTP. A library user may give
`open_node` other implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from repeater.access.grants import (
    Caller,
    ConnectionGrant,
    PublicationGrant,
    Renewal,
    SubscriptionGrant,
)
from repeater.backend.options import CallbackKind
from repeater.causes import Cause, Why
from repeater.errors import BrokerError, Disconnect, Unsubscribed
from repeater.protocol.centrifugo.commands import ConnectRequest


class EndpointStatistics(msgspec.Struct, frozen=True):
    """Counts of the questions to one address; `asked` is the number of all questions.

    `answered` includes answers that refuse. `failed` includes `timeouts`. `refused` questions were
    not sent because the circuit was open, `crowded` ones because their turn did not come in time.
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
    """The number of times that the circuit opened."""


class BackendStatistics(msgspec.Struct, frozen=True):
    """The statistics of the back end's addresses, by the kind of question."""

    endpoints: Mapping[CallbackKind, EndpointStatistics]


class EventStatistics(msgspec.Struct, frozen=True):
    """Counts of events, except `attempts` and `failures`, which are counts of batches."""

    waiting: int
    delivered: int
    dropped: int
    attempts: int
    failures: int


def why_unanswered(kind: CallbackKind, error: BrokerError) -> Why:
    """Why a client was refused whose question the back end did not answer, or not usably."""
    return error.why(f"the {kind} callback", Cause.CALLBACK)


def why_not_json(kind: CallbackKind, error: ValueError) -> Why:
    """Why a client was refused whose question the back end answered with data that is not JSON."""
    text = f"the {kind} callback: the data of the answer is not JSON: {error}"
    return Why(Cause.CALLBACK, text)


class Backend(Protocol):
    """Answers whether an application's clients may act. `HTTPBackend` implements it.

    Each question may wait, with deadlines of its own, and delays only the client that asks.
    Cancelled, it leaves nothing behind; the back end may have got the question or not. Each raises
    `BrokerError` if the answer is missing or unusable, and `ReplyError` or `DisconnectError` if
    the back end answers with one of these. `data` is a `JSONText`, or empty without data; of a
    client that speaks Protobuf (`Caller.protocol`) it is any bytes, except what such a client
    publishes into a channel of JSON.
    """

    kinds: frozenset[CallbackKind]
    """The kinds of question to ask. Methods of other kinds must not be called."""

    forward_headers: frozenset[str]
    """Headers of a client's HTTP request to be kept for its `Caller`, in lower case."""

    forward_emulated_headers: frozenset[str]
    """Headers in a client's connect command to be kept likewise."""

    async def connect(self, caller: Caller, request: ConnectRequest) -> ConnectionGrant:
        """Who is the caller, and which channels does the caller hear?

        The `data` of the request is JSON text, of a client that speaks Protobuf any bytes.
        """

    async def refresh(self, caller: Caller) -> Renewal:
        """May a connection go on after its expiry?"""

    async def subscribe(
        self, caller: Caller, channel: str, token: str, data: bytes
    ) -> SubscriptionGrant:
        """May the caller hear this channel?"""

    async def publish(self, caller: Caller, channel: str, data: bytes) -> PublicationGrant:
        """May the caller publish this data?"""

    async def sub_refresh(self, caller: Caller, channel: str) -> Renewal:
        """May a subscription go on after its expiry?"""

    async def rpc(self, caller: Caller, method: str, data: bytes) -> bytes:
        """Answer a call: JSON text, for a Protobuf client any bytes; empty without a result."""

    def statistics(self) -> BackendStatistics:
        """A snapshot of the counts of questions."""


class Events(Protocol):
    """Gets the events of connections and channels. Every method is sync, cheap and never fails."""

    def connected(self, caller: Caller) -> None:
        """A client has connected, after its `connect`."""

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        """A client has ended. Does nothing if the client was never connected."""

    def subscribed(self, caller: Caller, channel: str) -> None:
        """A client hears a channel."""

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        """A client does not hear a channel any more."""

    def channel_occupied(self, channel: str) -> None:
        """A channel has its first listener on this node."""

    def channel_vacated(self, channel: str) -> None:
        """A channel's last listener on this node is gone."""

    def shut_down_by(self, deadline: float) -> None:
        """The node shuts down: events not delivered by this Trio time are dropped."""

    def statistics(self) -> EventStatistics:
        """A snapshot of the counts of events."""
