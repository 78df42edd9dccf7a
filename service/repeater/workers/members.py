"""What one worker has said of its clients, so that it can be taken back when the worker dies.

A worker that ends in order takes everything back itself. For one that does not, the supervisor
removes its entries from presence, announces the leaves, and tells the application that its clients
have ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from repeater.errors import CONNECTION_CLOSED, DISCONNECTED, BrokerError
from repeater.log import get_logger
from repeater.publication import Announcement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from repeater.access.grants import Caller
    from repeater.backend.contract import Events
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.errors import Disconnect, Unsubscribed
    from repeater.publication import ClientInfo

_log = get_logger("workers")

_PER_TURN: Final = 256  # clients or entries taken back before others have a turn: about 1 ms


class Members:
    """Entries in presence, and announced joins, of one worker. Lives inside its `Attachment`."""

    def __init__(self, presence: PresenceStore, broker: Broker) -> None:
        self._presence = presence
        self._broker = broker
        self._present: dict[tuple[str, str], None] = {}
        self._joined: dict[tuple[str, str], ClientInfo] = {}

    def added(self, channel: str, client: str) -> None:
        """Note that the worker added a client to presence."""
        self._present[channel, client] = None

    def removed(self, channel: str, client: str) -> None:
        """Note that the worker removed it."""
        self._present.pop((channel, client), None)

    def announced(self, announcement: Announcement) -> None:
        """Note that the worker announced a join or leave."""
        key = (announcement.channel, announcement.info.client)
        if announcement.joined:
            self._joined[key] = announcement.info
        else:
            self._joined.pop(key, None)

    async def take_back(self) -> None:
        """Remove all entries, and announce a leave for each join, after the worker's end."""
        for number, (channel, client) in enumerate(self._present):
            try:
                self._presence.remove(channel, client)
            except BrokerError as error:  # The store's own expiry removes it later.
                _log.warning("presence was not removed", reason=str(error))
                break
            if number % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        self._present.clear()
        try:
            for number, ((channel, _client), info) in enumerate(self._joined.items()):
                await self._announce(Announcement(channel, info, joined=False))
                if number % _PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
        except (BrokerError, trio.ClosedResourceError) as error:
            _log.warning("leaves were not announced", reason=str(error))
        self._joined.clear()

    async def _announce(self, announcement: Announcement) -> None:
        while True:
            try:
                self._broker.announce(announcement)
            except trio.WouldBlock:
                await self._broker.wait_room()
            else:
                return


class Callers:
    """The connected clients of one worker or node, as the application knows them."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._clients: dict[str, tuple[Caller, dict[str, None]]] = {}

    def connected(self, caller: Caller) -> None:
        """As `Events.connected`."""
        self._clients[caller.client] = caller, {}
        self._events.connected(caller)

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        """As `Events.disconnected`."""
        self._clients.pop(caller.client, None)
        self._events.disconnected(caller, why)

    def subscribed(self, caller: Caller, channel: str) -> None:
        """As `Events.subscribed`."""
        known = self._clients.get(caller.client)
        if known is not None:
            known[1][channel] = None
            self._clients[caller.client] = caller, known[1]  # Its user's data may be newer.
        self._events.subscribed(caller, channel)

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        """As `Events.unsubscribed`."""
        known = self._clients.get(caller.client)
        if known is not None:
            known[1].pop(channel, None)
        self._events.unsubscribed(caller, channel, why)

    async def tell_again(
        self, knows: Callable[[str], bool], wait_room: Callable[[], Awaitable[None]]
    ) -> None:
        """Tell the application anew of all clients that it does not know by then.

        Cancelled, some are told.

        Args:
            knows: Whether it knows a client by its id.
            wait_room: Waits until some more events are not dropped.
        """
        for number, client in enumerate(tuple(self._clients)):
            await wait_room()  # However long it takes, what is told then is how things are then.
            known = self._clients.get(client)
            if known is not None and not knows(client):
                caller, channels = known
                self._events.connected(caller)
                for channel in channels:
                    self._events.subscribed(caller, channel)
            if number % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    async def take_back(self) -> None:
        """Tell the application that every client has ended, after the worker's end."""
        for number, (caller, channels) in enumerate(self._clients.values()):
            for channel in channels:
                self._events.unsubscribed(caller, channel, DISCONNECTED)
            self._events.disconnected(caller, CONNECTION_CLOSED)
            if number % _PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        self._clients.clear()
