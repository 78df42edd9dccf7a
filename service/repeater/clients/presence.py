"""Who is in which channel, and the announcing of it (protocol, section 12).

Coming is awaited by whoever subscribes, since the reply must not come before it. Going is decided
without awaiting anywhere (a sweep, a cut, another client's command), so departures wait here for
the one task that carries them out: after the socket is gone, never before.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio

from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import Announcement

if TYPE_CHECKING:
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.clients.subscription import Subscription

_log = get_logger("presence")


class Attendance:
    """Carries out comings and goings. Lives inside the node; its task is ended by the node.

    The departures that wait have no bound of their own: each was a subscription, so there are
    never more than connections times channels.
    """

    def __init__(self, store: PresenceStore, broker: Broker, errors: Counter[str]) -> None:
        """Of a node's store and broker, whose failures are counted in `errors`."""
        self._store = store
        self._broker = broker
        self._errors = errors
        self._leaving: dict[tuple[str, str], tuple[Subscription, trio.Event]] = {}
        self._woken = trio.Event()

    async def enter(self, subscription: Subscription) -> None:
        """Have a subscription counted as present, where its channel keeps presence.

        Cancelled, it may be counted or not; its departure mends that. Ended meanwhile by
        somebody else, it departs afterwards, so that nobody stays counted who has left. A
        connection that comes back to a channel waits until its last departure from it is done;
        the store sets the deadline of that.

        Raises:
            BrokerError: the store failed.
        """
        name = subscription.channel.name
        while (leaving := self._leaving.get((subscription.client.id, name))) is not None:
            await leaving[1].wait()
        if not subscription.presence or subscription.ended:
            return
        subscription.entering += 1
        try:
            await self._store.add(name, subscription.info())
        finally:
            subscription.entering -= 1
            self._entered(subscription)

    def _entered(self, subscription: Subscription) -> None:
        """See to its departure, if it has ended by now and nobody else did."""
        if subscription.ended and subscription.noticed:
            following = subscription.client.channels.get(subscription.channel.name)
            if following is None or not following.presence:  # else the entry is its own by now
                self.leave_soon(subscription)

    async def announce_join(self, subscription: Subscription) -> None:
        """Tell the channel, where it is to be told. At most once: a failure is logged only."""
        if subscription.announced and not subscription.ended:
            subscription.arrived = True
            await self._announce(subscription, joined=True)

    def leave_soon(self, subscription: Subscription) -> None:
        """Have the departure of a `noticed` subscription carried out.

        Behind another one of the same client and channel it has nothing to undo: it waited for
        that one in `enter`, and was neither counted nor announced.
        """
        key = (subscription.client.id, subscription.channel.name)
        self._leaving.setdefault(key, (subscription, trio.Event()))
        self._woken.set()

    async def run(self) -> None:
        """Carry out departures until cancelled, oldest first."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            while self._leaving:
                key = next(iter(self._leaving))
                subscription, done = self._leaving[key]
                await self._leave(subscription)
                del self._leaving[key]
                done.set()

    async def _leave(self, subscription: Subscription) -> None:
        if subscription.presence:
            try:
                await self._store.remove(subscription.channel.name, subscription.client.id)
            except BrokerError as error:
                # The store's own expiry mends it.
                self._errors["presence"] += 1
                _log.warning("presence was not removed", reason=str(error))
        if subscription.arrived:
            await self._announce(subscription, joined=False)

    async def _announce(self, subscription: Subscription, *, joined: bool) -> None:
        announcement = Announcement(subscription.channel.name, subscription.info(), joined)
        try:
            await self._broker.announce(announcement)
        except BrokerError as error:
            self._errors["announce"] += 1
            _log.warning("a join or leave was not announced", reason=str(error))
        except trio.ClosedResourceError:
            return  # The node is shutting down; nobody listens any more.
