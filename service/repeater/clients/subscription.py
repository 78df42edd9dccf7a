"""One client's subscription to one channel: the listener that fan-out uses, and its grant.

Made by `Client.join` and `Client.subscribe`; `joining` settles its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from repeater.access.grants import NOTHING_GRANTED, ConnectionGrant
from repeater.fanout.listener import Listener
from repeater.json_text import embedded
from repeater.publication import ClientInfo

if TYPE_CHECKING:
    from repeater.errors import Unsubscribed
    from repeater.fanout.channel import Channel
    from repeater.fanout.outbox import Outbox
    from repeater.protocol.centrifugo.codecs import Codec


class Subscriber(Protocol):
    """The part of a client that a subscription uses. `Client` implements it."""

    outbox: Outbox
    grant: ConnectionGrant
    channels: dict[str, Subscription]

    @property
    def id(self) -> str:
        """The connection's id."""

    def lose_position(self, subscription: Subscription) -> None:
        """Have the client come back for publications missing in this subscription's stream."""


class Subscription(Listener):
    """One client's subscription. Lives inside its client until it is unsubscribed."""

    __slots__ = (
        "announced",
        "arrived",
        "channel",
        "client",
        "expire_at",
        "grant",
        "presence",
        "recoverable",
        "renewed",
        "server_side",
        "why_ended",
    )

    channel: Channel
    """The channel, set by the client as soon as the hub has the subscription."""

    def __init__(self, client: Subscriber, codec: Codec) -> None:
        super().__init__(codec, client.outbox)
        self.client = client
        self.grant = NOTHING_GRANTED
        self.expire_at = 0
        """Unix seconds; 0 for never."""
        self.recoverable = False
        self.renewed = False
        """Whether the channel leaves its expiry to the back end. Settled at the start: a reload may
        remove the channel's namespace, and the subscription keeps what it was granted."""
        self.server_side = False
        self.presence = False
        """Whether the subscription is counted in the channel's presence."""
        self.announced = False
        """Whether the channel's subscribers are told of this subscription's join and leave."""
        self.arrived = False
        """Whether the join was announced. The leave is announced only if the join was."""
        self.why_ended: Unsubscribed | None = None
        """Why the server ended it while it joined. The client is told behind the reply."""

    @property
    def joining(self) -> bool:
        """Whether the subscription is not answered yet, because its history is being read."""
        return self in self.channel.joining

    @property
    def noticed(self) -> bool:
        """Whether presence or the channel's members must be told of this subscription's end."""
        return self.presence or self.announced

    def info(self) -> ClientInfo:
        """The information that other subscribers of the channel see."""
        grant = self.client.grant
        return ClientInfo(
            grant.user, self.client.id, embedded(grant.info), embedded(self.grant.info)
        )

    def lose_position(self) -> None:
        """Have the client come back for missing publications; `Client.lose_position` says how."""
        self.client.lose_position(self)
