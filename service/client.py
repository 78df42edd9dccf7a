"""One connection's life, whatever its transport and protocol.

Owned by the handler of its connection, which reads inside `scope` and calls `leave` at the end.
Ending a client from elsewhere is one of two: *cut* (slow, silent, broken: out of the hub, abort
the socket, cancel the scope) or *disconnect* (asked: out of the hub, cancel the reading, and the
handler says goodbye under a deadline). Both are sync, so nothing can come between their halves.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING
from uuid import uuid4

import trio

from service.credentials import ConnectionGrant
from service.errors import (
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
from service.log import get_logger
from service.outbox import Outbox
from service.protocol.replies import Push

if TYPE_CHECKING:
    from service.hub import Subscription
    from service.interfaces import Transport
    from service.node import Node

_log = get_logger("client")

ANONYMOUS = ConnectionGrant()


class Client:
    """A connected client. In the hub from its making to `leave`, a cut or a disconnect."""

    __slots__ = (
        "_departing",
        "_expires_at",
        "_heard",
        "_id",
        "_node",
        "_ping_at",
        "_pinged",
        "channels",
        "codec",
        "end",
        "grant",
        "heartbeat_slot",
        "outbox",
        "ready",
        "scope",
        "session",
        "transport",
    )

    def __init__(
        self, node: Node, transport: Transport, scope: trio.CancelScope, *, ready: bool
    ) -> None:
        """Take a new connection into the hub.

        Args:
            node: Where it belongs.
            transport: How bytes leave for it.
            scope: Around everything the connection's handler does until the goodbye.
            ready: Whether it is a subscriber already; a Centrifugo client becomes one by its
                `connect` command and is cut as stale without one.
        """
        self._node = node
        self._id = ""
        self._heard = True
        self._pinged = False
        self._expires_at = math.inf
        self._departing: tuple[Subscription, ...] = ()
        self.transport = transport
        self.scope = scope
        self.codec = transport.codec
        self.outbox = Outbox(transport, node.backlogs, self.cut)
        self.channels: dict[str, Subscription] = {}
        self.grant = ANONYMOUS
        self.ready = ready
        self.session = ""
        """What addresses this connection from outside; empty where nothing does. A secret."""
        self.end: Disconnect | None = None
        self.heartbeat_slot = -1
        node.hub.add(self)
        self._ping_at = trio.current_time() + self._first_turn()
        node.heartbeat.schedule(self, self._ping_at)

    @property
    def id(self) -> str:
        """The connection's id, a random UUID made when first asked for."""
        if not self._id:
            self._id = str(uuid4())
        return self._id

    @property
    def node(self) -> Node:
        """The node that it is connected to."""
        return self._node

    @property
    def user(self) -> str:
        """The user's id, empty for an anonymous connection."""
        return self.grant.user

    def heard(self) -> None:
        """Something arrived, whatever it was: the peer is alive."""
        self._heard = True

    def subscribe(self, channel: str) -> None:
        """Hear a channel from now on: a plain subscriber, without positions or presence."""
        self._node.hub.subscribe(self, channel)

    def unsubscribe(self, channel: str) -> bool:
        """Stop hearing it; False if it was not heard."""
        subscription = self._node.hub.unsubscribe(self, channel)
        if subscription is None:
            return False
        if subscription.noticed:
            self._node.attendance.leave_soon(subscription)
        return True

    def end_subscription(self, subscription: Subscription, why: Unsubscribed) -> None:
        """Stop a subscription by the server's will, and tell the client."""
        name = subscription.channel.name
        self.unsubscribe(name)
        self.outbox.send(self.codec.push(Push(name, unsubscribe=why)))

    def lose_position(self, subscription: Subscription) -> None:
        """Something is missing in a stream: have the client come back for it (section 9.4)."""
        if subscription.server_side:
            self.disconnect(INSUFFICIENT_STATE)
        else:
            self.end_subscription(subscription, POSITION_LOST)

    def identify(self, grant: ConnectionGrant) -> None:
        """It is known whose connection this is."""
        self.grant = grant
        self._node.hub.identify(self)

    def became_ready(self) -> None:
        """The `connect` command succeeded: pings begin."""
        self.ready = True
        self._ping_at = trio.current_time() + self._first_turn()
        self.expiry_changed()

    def _first_turn(self) -> float:
        options = self._node.options
        if not self.ready:
            return options.stale_timeout
        # Jittered over half an interval, so that a mass reconnect is not pinged at once.
        return options.ping_interval * random.uniform(0.5, 1.0)

    def expiry_changed(self) -> None:
        """The connection or a subscription expires at another time than before."""
        times = [one.expire_at for one in self.channels.values() if one.expire_at]
        if self.grant.expire_at:
            times.append(self.grant.expire_at)
        self._expires_at = math.inf
        if times:
            left = min(times) + self._node.options.expired_close_delay - self._node.unix_time()
            self._expires_at = trio.current_time() + left
        self._node.heartbeat.forget(self)
        self._node.heartbeat.schedule(self, min(self._ping_at, self._expires_at))

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
        options = self._node.options
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
        """End what was not refreshed within the delay: the connection or subscriptions."""
        latest = self._node.unix_time() - self._node.options.expired_close_delay
        if 0 < self.grant.expire_at <= latest:
            self.disconnect(EXPIRED)
            return
        for subscription in tuple(self.channels.values()):
            if 0 < subscription.expire_at <= latest:
                if subscription.server_side:
                    self.disconnect(SUBSCRIPTION_EXPIRED)
                    return
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
        self._node.hub.remove(self)
        self._node.heartbeat.forget(self)
        self._node.count_end(disconnect)
        _log.debug("client left", code=disconnect.code, reason=disconnect.reason)
        return True

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
            self._node.attendance.leave_soon(subscription)

    async def _part(self) -> None:
        with trio.CancelScope(shield=True) as goodbye:
            goodbye.deadline = trio.current_time() + self._node.options.close_timeout
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
