"""One connection from its first byte to its end, for every transport and protocol.

Owned by the handler of its connection, which reads inside `scope` and calls `leave` at the end.
Other code ends a client in one of two ways. *Cut*, for a slow, silent or broken client: leave
the hub, abort the socket, cancel the scope. *Disconnect*, for a client that is asked to go: leave
the hub, cancel the reading, and the handler says goodbye under a deadline. Both are sync, so
nothing can come between their halves.

A client does not know the node. `Home` is what a client may ask of the node. `Client` and `Home`
name each other, so both are in this file, which is therefore longer than others.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from repeater.access.grants import Caller, ConnectionGrant
from repeater.backend import headers
from repeater.clients.addresses import party_of
from repeater.clients.subscription import Subscription
from repeater.deadlines import within
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
from repeater.random_id import random_id

if TYPE_CHECKING:
    from repeater.clients.heartbeat import Heartbeat
    from repeater.clients.limits import Place
    from repeater.clients.throttle import Throttle
    from repeater.fanout.hub import Hub
    from repeater.fanout.recovery import Room
    from repeater.fanout.transport import Transport
    from repeater.options import NodeOptions
    from repeater.protocol.centrifugo.codecs import Codec

ANONYMOUS = ConnectionGrant()

_NO_PING, _PING_SENT, _PING_ANSWERED = range(3)


class Home(Protocol):
    """What a client asks of its node and tells its node. `Registry` implements it.

    Every method is sync, and no action of a client makes a method raise.
    """

    hub: Hub
    backlogs: BacklogRoom
    heartbeat: Heartbeat
    options: NodeOptions
    """The options in force now."""

    def unix_time(self) -> float:
        """Unix seconds."""

    def arrived(self, client: Client) -> None:
        """Register a new connection, whether its user is known yet or not."""

    def identify(self, client: Client, grant: ConnectionGrant) -> None:
        """Give a connection its grant, and list the connection under the grant's user."""

    def connected(self, client: Client) -> None:
        """Tell the application that a client is a subscriber from now on."""

    def subscribed(self, client: Client, subscription: Subscription) -> None:
        """Tell the application that a subscription is live."""

    def unsubscribed(self, client: Client, subscription: Subscription, why: Unsubscribed) -> None:
        """Tell the application that a live subscription is about to end."""

    def position_lost(self, client: Client, subscription: Subscription) -> None:
        """Log that a live subscription has to end, because publications are missing."""

    def departed(self, subscription: Subscription) -> None:
        """Have a `noticed` subscription leave presence, after the socket is gone."""

    def ended(self, client: Client, why: Disconnect) -> None:
        """Forget a connection that has ended, everywhere. Called once for each connection."""

    def expiry_due(self, client: Client, target: Client | Subscription) -> float:
        """The Unix time at which to act on an expiry: to ask the back end, or to end the target."""

    def renewal_due(self, target: Client | Subscription) -> bool:
        """Whether the back end renews this target and is not being asked already."""

    def renew(self, client: Client, target: Client | Subscription) -> None:
        """Ask the back end to renew the target, then call `Client.expiry_changed`."""


class Client:
    """A connected client. In the hub from its creation until `leave`, a cut or a disconnect."""

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
        "throttle",
        "transport",
    )

    def __init__(
        self, home: Home, transport: Transport, scope: trio.CancelScope, *, ready: bool
    ) -> None:
        """Take a new connection into the hub.

        Args:
            home: The client's view of its node.
            transport: Sends bytes to the client.
            scope: Around everything the connection's handler does until the goodbye.
            ready: Whether the client is a subscriber already. A Centrifugo client becomes one by
                its `connect` command, and is disconnected as stale if the command does not come.
        """
        self._home = home
        self._id = ""
        self._heard = True
        self._pinged = _NO_PING
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
        self.throttle: Throttle | None = None
        """What the client has used of the limits of commands; None until something counts."""
        self.session = ""
        """The id by which requests and API calls name this connection, or empty. A secret."""
        self.end: Disconnect | None = None
        self.heartbeat_slot = -1
        home.arrived(self)
        self._ping_at = self._first_turn(self._since)
        home.heartbeat.schedule(self, self._ping_at)

    @property
    def id(self) -> str:
        """The connection's id, a random UUID. Reading it for the first time makes it."""
        if not self._id:
            self._id = random_id()
        return self._id

    @property
    def user(self) -> str:
        """The user's id, empty for an anonymous connection."""
        return self.grant.user

    @property
    def known_id(self) -> str:
        """The connection's id if `id` has made one, else empty. Reading this makes no id."""
        return self._id

    def age(self) -> float:
        """Seconds since the connection came."""
        return trio.current_time() - self._since

    def caller(self) -> Caller:
        """The description of this connection that the application's back end gets."""
        return Caller(
            self.id,
            self.transport.name,
            self.user,
            self.grant.meta,
            self.headers,
            protocol="protobuf" if self.codec.format.binary else "json",
        )

    def asking(self) -> Caller:
        """`caller`, and whose share of the back end's turns its questions take."""
        party = f"user {self.user}" if self.user else party_of(self.transport.address())
        return msgspec.structs.replace(self.caller(), party=party)

    def heard(self) -> None:
        """Note that bytes arrived, of any kind: the peer is alive."""
        self._heard = True

    def answered_ping(self) -> bool:
        """Note a pong; return whether a ping had asked for it, and no pong came before."""
        asked = self._pinged == _PING_SENT
        if asked:
            self._pinged = _PING_ANSWERED
        return asked

    def subscribe(self, channel: str, codec: Codec | None = None) -> None:
        """Hear a channel from now on, without positions or presence; its broker holds it."""
        subscription = Subscription(self, codec or self.codec)
        subscription.channel = self._home.hub.listen(channel, subscription)
        self.channels[channel] = subscription
        self._home.subscribed(self, subscription)

    def join(self, channel: str, codec: Codec, room: Room | None = None) -> Subscription:
        """Begin a subscription whose publications gather until history is read; see `joining`.

        `room` bounds what gathers, as for `Hub.join`.
        """
        subscription = Subscription(self, codec)
        subscription.channel = self._home.hub.join(channel, subscription, room)
        self.channels[channel] = subscription
        return subscription

    def unsubscribe(self, channel: str, why: Unsubscribed = CLIENT_UNSUBSCRIBE) -> bool:
        """Stop hearing a channel; False if the client did not hear the channel."""
        subscription = self.channels.get(channel)
        if subscription is None:
            return False
        if not subscription.joining:  # the application is told of a subscription once it is live
            self._home.unsubscribed(self, subscription, why)
        self.forget(subscription)
        if subscription.noticed:
            self._home.departed(subscription)
        return True

    def forget(self, subscription: Subscription) -> None:
        """End a subscription without telling the client or the application."""
        del self.channels[subscription.channel.name]
        self._home.hub.leave(subscription.channel, subscription)

    def end_subscription(self, subscription: Subscription, why: Unsubscribed) -> None:
        """End a subscription on the server's decision, and tell the client.

        While the subscription joins, the client is told later, behind the subscribe reply (see
        `joining`): an SDK ignores the end of a subscription whose start it was not told.
        """
        channel, joining = subscription.channel, subscription.joining
        self.unsubscribe(channel.name, why)
        if joining:
            subscription.why_ended = why
        elif self.codec.pushes:
            self.outbox.send(self.codec.push(Push(channel.name, unsubscribe=why)))

    def lose_position(self, subscription: Subscription) -> None:
        """Have the client come back for publications that are missing (section 9.4)."""
        self._home.position_lost(self, subscription)
        if subscription.server_side:
            self.disconnect(INSUFFICIENT_STATE)
        else:
            self.end_subscription(subscription, POSITION_LOST)

    def identify(self, grant: ConnectionGrant) -> None:
        """Give the connection its grant. A connection that ended meanwhile stays forgotten."""
        if self.end is None:
            self._home.identify(self, grant)

    def became_ready(self) -> None:
        """Begin pings, because the `connect` command succeeded; nothing if the client has ended."""
        if self.end is not None:
            return
        self.ready = True
        self._ping_at = self._first_turn(trio.current_time())
        self.expiry_changed()
        self.introduce()

    def introduce(self) -> None:
        """Tell the application of a subscriber, once its user is known; not of one that ended."""
        if self.end is None:
            self._home.connected(self)

    def _first_turn(self, now: float) -> float:
        """When the first ping is due, or the end of a client that has not connected."""
        options = self._home.options
        if not self.ready:
            return within(options.stale_timeout)
        # Jittered over half an interval, so that a mass reconnect is not pinged at once.
        return now + options.ping_interval * random.uniform(0.5, 1.0)

    def expiry_changed(self) -> None:
        """Schedule again, because the connection or a subscription got another expiry."""
        if self.end is not None:
            return  # The client ended in the same turn of the loop in which its command went on.
        targets: list[Client | Subscription] = [self, *self.channels.values()]
        times = [self._home.expiry_due(self, one) for one in targets if one.expire_at]
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

    def heartbeat(self) -> float | None:
        """Ping, cut for silence, or expire; return the next turn, as `Timed.heartbeat`."""
        if self.end is None:
            return self._take_turn()
        self.transport.abort()  # the goodbye's time is over, see `_part`
        return None

    def _take_turn(self) -> float | None:
        now = trio.current_time()
        if now >= self._ping_at and not self._ping(now):
            return None
        if now >= self._expires_at:
            self._expire()
            if self.end is not None:
                return None
            self.expiry_changed()
            return None  # `expiry_changed` has scheduled the next turn.
        return min(self._ping_at, self._expires_at)

    def _ping(self, now: float) -> bool:
        """Send a ping, or end a client that did not answer; False if the client was ended."""
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
            self._pinged, self._heard = _PING_SENT, False
            self.outbox.send(self.codec.ping)
            self._ping_at = now + options.pong_timeout
        elif not self._heard:
            self.cut(NO_PONG)
            return False
        else:
            self._pinged = _NO_PING
            self._ping_at = now + max(0.0, options.ping_interval - options.pong_timeout)
        return self.end is None  # the write of the ping may have found the peer gone

    def _expire(self) -> None:
        """Renew or end the connection and the subscriptions whose expiry has come."""
        now = self._home.unix_time()
        if self._judge(self, now):
            self.disconnect(EXPIRED)
            return
        for subscription in tuple(self.channels.values()):
            # A joining subscription must be answered first; going live looks at its expiry again.
            if not subscription.joining and self._judge(subscription, now):
                self.expire_subscription(subscription)
                if self.end is not None:
                    return

    def _judge(self, target: Client | Subscription, now: float) -> bool:
        """Whether a target must end now. Asks the back end first, where the back end renews."""
        if not target.expire_at or self._home.expiry_due(self, target) > now:
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
        """End the client now: abort the socket, cancel. Idempotent; ends a goodbye under way."""
        self._remove(disconnect)
        if not self.outbox.closed:
            self.outbox.close()
            self.transport.abort()
            self.scope.cancel()

    def disconnect(self, disconnect: Disconnect) -> None:
        """End the client with a goodbye, which its handler says. Idempotent."""
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
        """Take the client out of the hub, because the peer said goodbye. Idempotent.

        Bytes that are already in the outbox are still sent.
        """
        self._remove(CONNECTION_CLOSED)

    async def leave(self) -> None:
        """Leave the hub, then say goodbye if the client was not cut. The handler's last call.

        Shielded, with the close timeout, so a cancelled handler still tells the client why. The
        connection is gone afterwards in any case.
        """
        self._remove(CONNECTION_CLOSED)
        if not self.outbox.closed:  # a closed outbox means that the client was cut
            await self._part()
        # Only now: a mass reconnect must not wait for the leaves of the connections it replaces.
        departing, self._departing = self._departing, ()  # each refers to this client
        for subscription in departing:
            self._home.departed(subscription)

    async def _part(self) -> None:
        with trio.CancelScope(shield=True) as goodbye:
            goodbye.deadline = within(self._home.options.close_timeout)
            if self.end is not CONNECTION_CLOSED or self.outbox.backlog_bytes:
                # An ASGI server writes under a shielded scope, which only an abort interrupts.
                self._home.heartbeat.schedule(self, goodbye.deadline)
            await self._say_goodbye()
        self._home.heartbeat.forget(self)
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
            return  # The peer closed the connection first.
