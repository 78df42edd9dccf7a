"""One connection's life, whatever its transport and protocol.

Owned by the handler of its connection, which reads inside `scope` and calls `leave` at the end.
Ending a client from elsewhere is one of two: *cut* (slow, silent, broken: out of the hub, abort
the socket, cancel the scope) or *disconnect* (asked: out of the hub, cancel the reading, and the
handler says goodbye under a deadline). Both are sync, so nothing can come between their halves.

A client knows no node: what it may ask of one is `Home`. Both are in this file, which is longer
than others for it, because each names the other.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import trio

from repeater.access.grants import Caller, ConnectionGrant
from repeater.backend import headers
from repeater.clients.subscription import Subscription
from repeater.errors import (
    CLIENT_UNSUBSCRIBE,
    CONNECTION_CLOSED,
    EXPIRED,
    INSUFFICIENT_STATE,
    NO_PONG,
    POSITION_LOST,
    STALE,
    SUBSCRIPTION_EXPIRED,
    UNSUBSCRIBED_EXPIRED,
    Disconnect,
    Unsubscribed,
)
from repeater.fanout.outbox import BacklogRoom, Outbox
from repeater.protocol.centrifugo.replies import Push

if TYPE_CHECKING:
    from repeater.clients.heartbeat import Heartbeat
    from repeater.clients.limits import Place
    from repeater.fanout.hub import Hub
    from repeater.fanout.transport import Transport
    from repeater.options import NodeOptions
    from repeater.protocol.centrifugo.codecs import Codec

ANONYMOUS = ConnectionGrant()


class Home(Protocol):
    """What a client may ask of its node, and has to tell it. `Registry` is the real one.

    Everything here is sync and never raises for anything that a client did.
    """

    hub: Hub
    backlogs: BacklogRoom
    heartbeat: Heartbeat

    @property
    def options(self) -> NodeOptions:
        """Those in force now."""

    def unix_time(self) -> float:
        """Unix seconds."""

    def arrived(self, client: Client) -> None:
        """A connection is there, with or without a user by now."""

    def identify(self, client: Client, grant: ConnectionGrant) -> None:
        """Give a connection its grant, and find it by the user of that from now on."""

    def connected(self, client: Client) -> None:
        """A client is a subscriber from now on: tell the application."""

    def subscribed(self, client: Client, subscription: Subscription) -> None:
        """A subscription is live: tell the application."""

    def unsubscribed(self, client: Client, subscription: Subscription, why: Unsubscribed) -> None:
        """A live subscription is about to end: tell the application."""

    def departed(self, subscription: Subscription) -> None:
        """Have a `noticed` subscription leave presence, after the socket is gone."""

    def ended(self, client: Client, why: Disconnect) -> None:
        """A connection has ended: forget it everywhere. Called once for each."""

    def renewal_due(self, target: Client | Subscription) -> bool:
        """Whether the back end has yet to be asked to renew what expires."""

    def renew(self, client: Client, target: Client | Subscription) -> None:
        """Ask the back end to renew it; afterwards `Client.expiry_changed` is called."""


class Client:
    """A connected client. In the hub from its making to `leave`, a cut or a disconnect."""

    __slots__ = (
        "_departing",
        "_expires_at",
        "_heard",
        "_home",
        "_id",
        "_ping_at",
        "_pinged",
        "_since",
        "channels",
        "codec",
        "end",
        "grant",
        "headers",
        "heartbeat_slot",
        "outbox",
        "place",
        "ready",
        "scope",
        "session",
        "transport",
    )

    def __init__(
        self, home: Home, transport: Transport, scope: trio.CancelScope, *, ready: bool
    ) -> None:
        """Take a new connection into the hub.

        Args:
            home: What its node is to it.
            transport: How bytes leave for it.
            scope: Around everything the connection's handler does until the goodbye.
            ready: Whether it is a subscriber already; a Centrifugo client becomes one by its
                `connect` command and is cut as stale without one.
        """
        self._home = home
        self._id = ""
        self._heard = True
        self._pinged = False
        self._expires_at = math.inf
        self._since = trio.current_time()
        self._departing: tuple[Subscription, ...] = ()
        self.transport = transport
        self.scope = scope
        self.codec = transport.codec
        self.outbox = Outbox(transport, home.backlogs, self.cut)
        self.channels: dict[str, Subscription] = {}
        self.grant = ANONYMOUS
        self.headers = headers.NONE
        self.place: Place | None = None
        """What it holds of the node's limits, if it came in by a way that has some."""
        self.ready = ready
        self.session = ""
        """What addresses this connection from outside; empty where nothing does. A secret."""
        self.end: Disconnect | None = None
        self.heartbeat_slot = -1
        home.arrived(self)
        self._ping_at = self._since + self._first_turn()
        home.heartbeat.schedule(self, self._ping_at)
        if ready:
            home.connected(self)

    @property
    def id(self) -> str:
        """The connection's id, a random UUID made when first asked for."""
        if not self._id:
            self._id = str(uuid4())
        return self._id

    @property
    def user(self) -> str:
        """The user's id, empty for an anonymous connection."""
        return self.grant.user

    @property
    def known_id(self) -> str:
        """The connection's id if anybody asked for it; else empty, and none is made."""
        return self._id

    def age(self) -> float:
        """Seconds since it came."""
        return trio.current_time() - self._since

    def caller(self) -> Caller:
        """What the application's back end is told of it."""
        return Caller(self.id, self.transport.name, self.user, self.grant.meta, self.headers)

    def heard(self) -> None:
        """Something arrived, whatever it was: the peer is alive."""
        self._heard = True

    def subscribe(self, channel: str) -> None:
        """Hear a channel from now on: a plain subscriber, without positions or presence."""
        subscription = Subscription(self, self.codec)
        subscription.channel = self._home.hub.listen(channel, subscription)
        self.channels[channel] = subscription
        self._home.subscribed(self, subscription)

    def join(self, channel: str, codec: Codec) -> Subscription:
        """Let a channel's publications gather until its history is read; see `joining`."""
        subscription = Subscription(self, codec)
        subscription.channel = self._home.hub.join(channel, subscription)
        self.channels[channel] = subscription
        return subscription

    def unsubscribe(self, channel: str, why: Unsubscribed = CLIENT_UNSUBSCRIBE) -> bool:
        """Stop hearing it; False if it was not heard."""
        subscription = self.channels.get(channel)
        if subscription is None:
            return False
        if not subscription.joining:  # else the application was never told that it began
            self._home.unsubscribed(self, subscription, why)
        self.forget(subscription)
        if subscription.noticed:
            self._home.departed(subscription)
        return True

    def forget(self, subscription: Subscription) -> None:
        """End a subscription without telling anybody."""
        del self.channels[subscription.channel.name]
        self._home.hub.leave(subscription.channel, subscription)

    def end_subscription(self, subscription: Subscription, why: Unsubscribed) -> None:
        """Stop a subscription by the server's will, and tell the client.

        One that joins is told of later, by `Joining.finish`: a client takes no notice of the end
        of what it does not know to have begun.
        """
        channel, joining = subscription.channel, subscription.joining
        self.unsubscribe(channel.name, why)
        if joining:
            subscription.why_ended = why
        elif self.codec.pushes:
            self.outbox.send(self.codec.push(Push(channel.name, unsubscribe=why)))

    def lose_position(self, subscription: Subscription) -> None:
        """Something is missing in a stream: have the client come back for it (section 9.4)."""
        if subscription.server_side:
            self.disconnect(INSUFFICIENT_STATE)
        else:
            self.end_subscription(subscription, POSITION_LOST)

    def identify(self, grant: ConnectionGrant) -> None:
        """It is known whose connection this is. One that was ended meanwhile stays forgotten."""
        if self.end is None:
            self._home.identify(self, grant)

    def became_ready(self) -> None:
        """The `connect` command succeeded: pings begin."""
        self.ready = True
        self._ping_at = trio.current_time() + self._first_turn()
        self.expiry_changed()
        self._home.connected(self)

    def _first_turn(self) -> float:
        options = self._home.options
        if not self.ready:
            return options.stale_timeout
        # Jittered over half an interval, so that a mass reconnect is not pinged at once.
        return options.ping_interval * random.uniform(0.5, 1.0)

    def expiry_changed(self) -> None:
        """The connection or a subscription expires at another time than before."""
        if self.end is not None:
            return  # Ended in the very turn in which its command went on.
        targets: list[Client | Subscription] = [self, *self.channels.values()]
        times = [self._expiry_due(one) for one in targets if one.expire_at]
        self._expires_at = math.inf
        if times:
            left = min(times) - self._home.unix_time()
            self._expires_at = trio.current_time() + left
        self._home.heartbeat.forget(self)
        self._home.heartbeat.schedule(self, min(self._ping_at, self._expires_at))

    @property
    def expire_at(self) -> int:
        """When the connection expires, Unix seconds; 0 for never."""
        return self.grant.expire_at

    def _expiry_due(self, target: Client | Subscription) -> float:
        """When something is to be done about an expiry, Unix seconds."""
        if self._home.renewal_due(target):
            return target.expire_at
        return target.expire_at + self._home.options.expired_close_delay

    def heartbeat(self) -> float | None:
        """This client's turn: ping it, or cut it for its silence; when its next turn is."""
        now = trio.current_time()
        if now >= self._ping_at and not self._ping(now):
            return None
        if now >= self._expires_at:
            self._expire()
            if self.end is not None:
                return None
            self.expiry_changed()
            return None  # It has scheduled its next turn.
        return min(self._ping_at, self._expires_at)

    def _ping(self, now: float) -> bool:
        """The ping or the judgement that is due; False if the client was ended."""
        options = self._home.options
        if not self.ready:
            self.disconnect(STALE)
            return False
        if self.codec.ping is None:
            self._ping_at = now + options.ping_interval
        elif not self.codec.answered:
            self.outbox.send(self.codec.ping)
            self._ping_at = now + options.ping_interval
        elif not self._pinged:
            self._pinged, self._heard = True, False
            self.outbox.send(self.codec.ping)
            self._ping_at = now + options.pong_timeout
        elif not self._heard:
            self.cut(NO_PONG)
            return False
        else:
            self._pinged = False
            self._ping_at = now + max(0.0, options.ping_interval - options.pong_timeout)
        return True

    def _expire(self) -> None:
        """Have renewed, or end, what expires: the connection or subscriptions."""
        now = self._home.unix_time()
        if self._judge(self, now):
            self.disconnect(EXPIRED)
            return
        for subscription in tuple(self.channels.values()):
            # One that joins still has to be answered first; `finish` looks at its expiry again.
            if not subscription.joining and self._judge(subscription, now):
                self.expire_subscription(subscription)
                if self.end is not None:
                    return

    def _judge(self, target: Client | Subscription, now: float) -> bool:
        """Whether it is to end: it was not refreshed within the delay."""
        if not target.expire_at or self._expiry_due(target) > now:
            return False
        if not self._home.renewal_due(target):
            return True
        self._home.renew(self, target)
        return False

    def expire_subscription(self, subscription: Subscription) -> None:
        """End a subscription whose time is over."""
        if subscription.server_side:
            self.disconnect(SUBSCRIPTION_EXPIRED)
        else:
            self.end_subscription(subscription, UNSUBSCRIBED_EXPIRED)

    def cut(self, disconnect: Disconnect) -> None:
        """End it now, without a word: out of the hub, abort the socket, cancel. Idempotent."""
        if self._remove(disconnect):
            self.outbox.close()
            self.transport.abort()
            self.scope.cancel()

    def disconnect(self, disconnect: Disconnect) -> None:
        """Ask it to leave: out of the hub, then its handler says goodbye. Idempotent."""
        if self._remove(disconnect):
            self.scope.cancel()

    def _remove(self, disconnect: Disconnect) -> bool:
        if self.end is not None:
            return False
        self.end = disconnect
        self._departing = tuple(one for one in self.channels.values() if one.noticed)
        self._home.ended(self, disconnect)
        return True

    def depart(self) -> None:
        """The peer said goodbye: nothing more for it, but what is on its way. Idempotent."""
        self._remove(CONNECTION_CLOSED)

    async def leave(self) -> None:
        """The handler's last word: out of the hub, then the goodbye if one is owed.

        Shielded, with the close timeout: a cancelled handler still says why. The connection
        is gone afterwards in any case.
        """
        self._remove(CONNECTION_CLOSED)
        if not self.outbox.closed:  # else it was cut, and there is nobody to speak to
            await self._part()
        # Only now: a mass reconnect must not wait for the leaves of the connections it replaces.
        for subscription in self._departing:
            self._home.departed(subscription)

    async def _part(self) -> None:
        with trio.CancelScope(shield=True) as goodbye:
            goodbye.deadline = trio.current_time() + self._home.options.close_timeout
            await self._say_goodbye()
        self.outbox.close()
        if goodbye.cancelled_caught:
            self.transport.abort()
        else:
            self.transport.release()

    async def _say_goodbye(self) -> None:
        try:
            await self.outbox.wait_empty()
            if self.end is not None and self.end is not CONNECTION_CLOSED:
                await self.transport.close(self.end)
        except (OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            return  # The peer went first.
