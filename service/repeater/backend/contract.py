"""The contract of an application's back end: what it is asked, and what it is told.

`backend.http` asks over HTTP and `backend.events` tells; a library user may give `open_node` other
ones.
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
from repeater.errors import Disconnect, Unsubscribed
from repeater.protocol.centrifugo.commands import ConnectRequest


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


class Backend(Protocol):
    """The application's say in what its clients do. `HTTPBackend` is the real one.

    Each question may wait, with deadlines of its own, and only for the client that asks.
    Cancelled, it leaves nothing behind; whether the back end got it is not known. Each raises
    `BrokerError` when there is no answer or none that can be used, `ReplyError` or
    `DisconnectError` when that is the answer. `data` is JSON text, empty for none.
    """

    kinds: frozenset[CallbackKind]
    """What it is to be asked; the rest must not be called."""

    forward_headers: frozenset[str]
    """Headers of a client's HTTP request to be kept for its `Caller`, in lower case."""

    forward_emulated_headers: frozenset[str]
    """The same for those in its connect command."""

    async def connect(self, caller: Caller, request: ConnectRequest) -> ConnectionGrant:
        """Who is it that connects?"""

    async def refresh(self, caller: Caller) -> Renewal:
        """Does a connection that expires go on?"""

    async def subscribe(
        self, caller: Caller, channel: str, token: str, data: bytes
    ) -> SubscriptionGrant:
        """May it hear this channel?"""

    async def publish(self, caller: Caller, channel: str, data: bytes) -> PublicationGrant:
        """May it publish this?"""

    async def sub_refresh(self, caller: Caller, channel: str) -> Renewal:
        """Does a subscription that expires go on?"""

    async def rpc(self, caller: Caller, method: str, data: bytes) -> bytes:
        """The answer to a call, JSON text, empty for none."""

    def statistics(self) -> BackendStatistics:
        """A snapshot of what was asked."""


class Events(Protocol):
    """Is told what happens to connections and channels. All sync, cheap, and never fails."""

    def connected(self, caller: Caller) -> None:
        """A client is there, after its `connect`."""

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        """A client is gone. Nothing, if it was never connected."""

    def subscribed(self, caller: Caller, channel: str) -> None:
        """A client hears a channel."""

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        """A client does not hear a channel any more."""

    def channel_occupied(self, channel: str) -> None:
        """A channel has its first listener on this node."""

    def channel_vacated(self, channel: str) -> None:
        """A channel's last listener on this node is gone."""

    def shut_down_by(self, deadline: float) -> None:
        """The node shuts down: what is not told by this Trio time won't be."""

    def statistics(self) -> EventStatistics:
        """A snapshot of what was told."""
