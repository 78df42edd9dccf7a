"""Every connection of this node, and everything to do when one comes or goes. All sync.

`Registry` is the `Home` of every client. Whatever ends a client, `ended` is the one place that
makes every part of the node forget the client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from repeater.causes import Cause, Why
from repeater.errors import DISCONNECTED, INSUFFICIENT_STATE, POSITION_LOST

if TYPE_CHECKING:
    from repeater.access.grants import ConnectionGrant
    from repeater.backend.contract import Events
    from repeater.clients.client import Client
    from repeater.clients.connection_log import ConnectionLog
    from repeater.clients.heartbeat import Heartbeat
    from repeater.clients.presence import Attendance
    from repeater.clients.refusals import Refusals
    from repeater.clients.renewals import Renewals
    from repeater.clients.subscription import Subscription
    from repeater.errors import Disconnect, Unsubscribed
    from repeater.fanout.hub import Hub
    from repeater.fanout.outbox import BacklogRoom
    from repeater.options import NodeOptions


_LOST: Final = Why(
    Cause.RECOVERY,
    "publications of the channel did not reach this server, or could not be written",
    "the client comes back for them; if it happens often, look at the engine",
)


class Registry:
    """Implements `Home`. Lives inside the node; needs no end.

    Counts are updated with each change, so a snapshot of a full node needs no walk over clients.
    """

    def __init__(
        self,
        hub: Hub,
        backlogs: BacklogRoom,
        heartbeat: Heartbeat,
        attendance: Attendance,
        renewals: Renewals,
        connection_log: ConnectionLog,
        refusals: Refusals,
        events: Events | None,
        options: NodeOptions,
        unix_time: Callable[[], float],
        tell_user: Callable[[str, str], None] | None = None,
    ) -> None:
        """Take the node's parts.

        Args:
            hub: Every channel.
            backlogs: Where clients wait whose peers do not read.
            heartbeat: Gives each client its turns.
            attendance: Keeps presence.
            renewals: Asks the back end about what expires.
            connection_log: Has a line for each connection.
            refusals: Has a line for each position that is lost.
            events: Tells the application.
            options: The options in force.
            unix_time: Gives Unix seconds.
            tell_user: Tells the node's server of each connection of a user, `user_arrived` and
                `user_left`. None where the server is this node.
        """
        self.hub = hub
        self.backlogs = backlogs
        self.heartbeat = heartbeat
        self._attendance = attendance
        self._renewals = renewals
        self._connection_log = connection_log
        self._refusals = refusals
        self._events = events
        self.options = options
        """The options in force now; the node replaces them at a reload."""
        self.unix_time = unix_time
        self._tell_user = tell_user
        self.clients: dict[Client, None] = {}
        self.users: dict[str, dict[Client, None]] = {}
        """Connections by user id, once their user is known. An anonymous user's id is empty."""
        self.kinds: Counter[tuple[str, str]] = Counter()
        """The number of clients by names of transport and codec."""
        self.ends: Counter[int] = Counter()
        """Connections that ended, by disconnect code."""

    def arrived(self, client: Client) -> None:
        """Register a connection. One that is ready already counts as an anonymous user's."""
        self.clients[client] = None
        self.kinds[_kind(client)] += 1
        if client.ready:
            self._index(client)

    def identify(self, client: Client, grant: ConnectionGrant) -> None:
        """Give a connection its grant, and list the connection under the grant's user."""
        self._forget_user(client)
        client.grant = grant
        self._index(client)

    def _index(self, client: Client) -> None:
        user = client.grant.user
        self.users.setdefault(user, {})[client] = None
        if self._tell_user is not None and user:
            self._tell_user("user_arrived", user)

    def _forget_user(self, client: Client) -> None:
        user = client.grant.user
        connections = self.users.get(user, {})
        if client in connections:
            del connections[client]
            if not connections:
                del self.users[user]
            if self._tell_user is not None and user:
                self._tell_user("user_left", user)

    def connected(self, client: Client) -> None:
        """Log that a client is a subscriber from now on, and tell the application."""
        self._connection_log.connected(client)
        if self._events is not None:
            self._events.connected(client.caller())

    def subscribed(self, client: Client, subscription: Subscription) -> None:
        """Tell the application that a subscription is live."""
        if self._events is not None:
            self._events.subscribed(client.caller(), subscription.channel.name)

    def unsubscribed(self, client: Client, subscription: Subscription, why: Unsubscribed) -> None:
        """Tell the application that a live subscription is about to end."""
        if self._events is not None:
            self._events.unsubscribed(client.caller(), subscription.channel.name, why)

    def position_lost(self, client: Client, subscription: Subscription) -> None:
        """Log that a live subscription has to end, because publications are missing."""
        code = INSUFFICIENT_STATE.code if subscription.server_side else POSITION_LOST.code
        channel = subscription.channel.name
        self._refusals.note(_LOST, "position", client, code=code, channel=channel)

    def departed(self, subscription: Subscription) -> None:
        """Have a `noticed` subscription leave presence."""
        self._attendance.leave_soon(subscription)

    def ended(self, client: Client, why: Disconnect) -> None:
        """Forget a connection that has ended everywhere, count it and log it."""
        if self._events is not None:
            for subscription in client.channels.values():
                if not subscription.joining:
                    self.unsubscribed(client, subscription, DISCONNECTED)
            self._events.disconnected(client.caller(), why)
        for subscription in tuple(client.channels.values()):
            client.forget(subscription)
        del self.clients[client]
        self.kinds[_kind(client)] -= 1
        self._forget_user(client)
        self.heartbeat.forget(client)
        self.ends[why.code] += 1
        self._connection_log.ended(client, why)

    def expiry_due(self, client: Client, target: Client | Subscription) -> float:
        """The Unix time at which to act on an expiry: to ask the back end, or to end the target."""
        return self._renewals.acts_at(client, target, self.options)

    def renewal_due(self, target: Client | Subscription) -> bool:
        """Whether the back end renews this target and is not being asked already."""
        return self._renewals.due_at(target)

    def renew(self, client: Client, target: Client | Subscription) -> None:
        """Ask the back end to renew the target, then call `Client.expiry_changed`."""
        self._renewals.begin(client, target)


def _kind(client: Client) -> tuple[str, str]:
    return client.transport.name, client.transport.codec.name
