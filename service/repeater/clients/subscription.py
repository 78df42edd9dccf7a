"""One client's subscription to one channel: what fan-out knows of it, and what was granted.

Made by `Client.join` and `Client.subscribe`; `joining` settles what it gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.fanout.listener import Listener
from repeater.publication import ClientInfo, embedded

if TYPE_CHECKING:
    from repeater.errors import Unsubscribed
    from repeater.fanout.channel import Channel
    from repeater.fanout.outbox import Outbox
    from repeater.protocol.centrifugo.codecs import Codec

_NOTHING_GRANTED = SubscriptionGrant()


class Subscriber(Protocol):
    """What a subscription asks of its client. `Client` is the real one."""

    outbox: Outbox
    grant: ConnectionGrant
    channels: dict[str, Subscription]

    @property
    def id(self) -> str:
        """The connection's id."""

    def lose_position(self, subscription: Subscription) -> None:
        """Something is missing in the stream of this subscription."""


class Subscription(Listener):
    """One client's subscription. Lives inside its client until it is unsubscribed."""

    __slots__ = (
        "announced",
        "arrived",
        "channel",
        "client",
        "entering",
        "expire_at",
        "grant",
        "presence",
        "recoverable",
        "server_side",
        "why_ended",
    )

    channel: Channel
    """Set by the client, as soon as the hub has it."""

    def __init__(self, client: Subscriber, codec: Codec) -> None:
        super().__init__(codec, client.outbox)
        self.client = client
        self.grant = _NOTHING_GRANTED
        self.expire_at = 0
        """Unix seconds; 0 for never."""
        self.recoverable = False
        self.server_side = False
        self.presence = False
        """Whether it is counted in the channel's presence."""
        self.announced = False
        """Whether its own coming and going is told to the others."""
        self.arrived = False
        """Whether its coming was told: only then its going is."""
        self.entering = 0
        """How many tasks put it into the channel's presence now; they see to its departure."""
        self.why_ended: Unsubscribed | None = None
        """Why the server ended it while it joined: to be told behind the reply."""

    @property
    def joining(self) -> bool:
        """Whether its history is being read: it has not been answered yet."""
        return self in self.channel.joining

    @property
    def noticed(self) -> bool:
        """Whether the presence task must see to the end of this subscription.

        A task that is just entering it into the channel's presence does so by itself.
        """
        return (self.presence or self.announced) and not self.entering

    def info(self) -> ClientInfo:
        """What the others see of it."""
        grant = self.client.grant
        return ClientInfo(
            grant.user, self.client.id, embedded(grant.info), embedded(self.grant.info)
        )

    def lose_position(self) -> None:
        """Something is missing in its stream: the client decides how to come back for it."""
        self.client.lose_position(self)
