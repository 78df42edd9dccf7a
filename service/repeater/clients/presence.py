"""Presence of subscriptions in channels, and their joins and leaves (protocol, section 12).

The subscribing task awaits the arrival, because the reply must come after it. A departure begins in
sync code (a sweep, a cut, another client's command), so it waits here for the one task that
carries departures out. That happens after the socket is gone, never before.

Joins and leaves go through `Announcements`, which leaves out those that cancel each other.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from repeater.clients.announcements import Announcements
from repeater.errors import BrokerError
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.clients.subscription import Subscription

_log = get_logger("presence")

_AT_ONCE: Final = 64  # entries renewed at a time, so that one client does not fill the store's pool


class Attendance:
    """Carries out arrivals and departures. Lives inside the node; its task is ended by the node.

    The waiting departures have no bound of their own: each was a subscription, so there are
    never more than connections times channels.
    """

    def __init__(
        self, store: PresenceStore, broker: Broker, errors: Counter[str], timeout: float
    ) -> None:
        """Use a node's store and broker, and count their failures in `errors`.

        An announcement that the broker does not take within `timeout` seconds is dropped.
        """
        self._store = store
        self._errors = errors
        self._announcements = Announcements(broker, errors, timeout)
        # The oldest is first; a plain dictionary would be slow to find it after many have gone.
        self._leaving: OrderedDict[tuple[str, str], tuple[Subscription, trio.Event]] = OrderedDict()
        self._woken = trio.Event()

    async def enter(self, subscription: Subscription) -> None:
        """Add a subscription to its channel's presence, if the channel keeps presence.

        Cancelled, the subscription may be in the store or not; its departure removes it. If other
        code ends the subscription meanwhile, it departs after this call, so that no ended
        subscription stays in the store. A connection that comes back to a channel first waits
        until its last departure from that channel is done; the store sets that deadline.

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
        """Start the departure of a subscription that ended while it was being added."""
        if subscription.ended and subscription.noticed:
            following = subscription.client.channels.get(subscription.channel.name)
            # Otherwise the store's entry belongs to the client's next subscription by now.
            if following is None or not following.presence:
                self.leave_soon(subscription)

    async def wait_departed(self, client: str, channel: str) -> None:
        """Wait until a client's last departure from a channel is done; the store has a deadline.

        So whoever has just ended a subscription does not find it in presence.
        """
        leaving = self._leaving.get((client, channel))
        if leaving is not None:
            await leaving[1].wait()

    async def renew(self, subscriptions: Sequence[Subscription]) -> bool:
        """Give presence the subscriptions' present info; False if the store failed for some.

        Ended subscriptions, and those without presence, are left as they are. Each failure is
        counted and logged. Cancelled, some have the new info.
        """
        failures: list[BrokerError] = []

        async def renew_one(subscription: Subscription) -> None:
            try:
                await self.enter(subscription)
            except BrokerError as error:
                failures.append(error)

        present = [one for one in subscriptions if one.presence and not one.ended]
        for start in range(0, len(present), _AT_ONCE):
            async with trio.open_nursery() as nursery:
                for subscription in present[start : start + _AT_ONCE]:
                    nursery.start_soon(renew_one, subscription)
        if failures:
            self._errors["presence"] += len(failures)
            _log.warning("presence was not renewed", reason=str(failures[0]))
        return not failures

    def announce_join(self, subscription: Subscription) -> None:
        """Announce a join soon, if the channel announces joins."""
        if subscription.announced and not subscription.ended:
            self._announcements.join(subscription)

    async def announce_at_once(self, subscription: Subscription) -> None:
        """Announce a join that is held now, because its client is about to publish."""
        await self._announcements.join_at_once(subscription)

    def leave_soon(self, subscription: Subscription) -> None:
        """Queue the departure of a `noticed` subscription.

        While an earlier departure of the same client and channel waits, a second one is dropped.
        """
        # The second subscription waited in `enter`: it is neither in the store nor announced.
        key = (subscription.client.id, subscription.channel.name)
        self._leaving.setdefault(key, (subscription, trio.Event()))
        self._woken.set()

    async def run(self) -> None:
        """Carry out departures until cancelled, oldest first, and announce joins and leaves."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announcements.run)
            while True:
                await self._woken.wait()
                self._woken = trio.Event()
                while self._leaving:
                    await self._leave_first()

    async def _leave_first(self) -> None:
        # In a function of its own: a variable of `run` would keep the last client alive.
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
                # The store's own expiry removes the entry later.
                self._errors["presence"] += 1
                _log.warning("presence was not removed", reason=str(error))
        if subscription.announced:
            self._announcements.leave(subscription)
