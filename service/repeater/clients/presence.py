"""Presence of subscriptions in channels, and their joins and leaves (protocol, section 12).

Calls on the store never wait, and take effect in their order. So an arrival is sent to the store as
soon as it happens. A departure begins in sync code (a sweep, a cut, another client's command), and
very many can begin at once: they wait here for the one task that sends them to the store, some at a
time. That happens after the socket is gone, never before. Whatever needs a departure to come first
sends it at once.

Joins and leaves go through `Announcements`, which leaves out those that cancel each other.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.receipts import Receipt
from repeater.clients.announcements import Announcements
from repeater.errors import BrokerError
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.brokers.contract import Broker, PresenceStore
    from repeater.brokers.receipts import Answer
    from repeater.clients.client import Client
    from repeater.clients.subscription import Subscription

_log = get_logger("presence")

_AT_ONCE: Final = 64  # entries of one client that are renewed at a time
_DEPARTURES: Final = 512  # sent to the store at a time: about 5 ms of a remote store's work
_LOGGED: Final = 100  # failures for one line of log


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
        self._timeout = timeout
        self._sent: list[Receipt[None]] = []  # departures that are not answered yet
        self._announcements = Announcements(broker, errors, timeout)
        # The oldest is first; a plain dictionary would be slow to find it after many have gone.
        self._leaving: OrderedDict[tuple[str, str], Subscription] = OrderedDict()
        self._woken = trio.Event()

    def enter(self, subscription: Subscription) -> Answer[None]:
        """Add a subscription to its channel's presence, if the channel keeps presence.

        If the subscription ends before the answer is there, its departure follows this call.

        Raises:
            BrokerError: the store is known to be down.
        """
        self.depart(subscription.client.id, subscription.channel.name)
        if not subscription.presence or subscription.ended:
            return None
        return self._store.add(subscription.channel.name, subscription.info())

    def depart(self, client: str, channel: str) -> None:
        """Send a client's last departure from a channel to the store now, if it waits here.

        So whoever has just ended a subscription does not find it in presence, and a connection that
        comes back to a channel is not taken out again.
        """
        leaving = self._leaving.pop((client, channel), None)
        if leaving is not None:
            receipt = self._leave(leaving)
            if receipt is not None:
                self._sent.append(receipt)
                self._woken.set()

    async def renew(self, subscriptions: Sequence[Subscription]) -> bool:
        """Give presence the subscriptions' present info; False if the store failed for some.

        Ended subscriptions, and those without presence, are left as they are. Each failure is
        counted and logged. Cancelled, some have the new info.
        """
        present = [one for one in subscriptions if one.presence and not one.ended]
        failure: BrokerError | None = None
        for start in range(0, len(present), _AT_ONCE):
            answers = []
            for subscription in present[start : start + _AT_ONCE]:
                try:
                    answers.append(self.enter(subscription))
                except BrokerError as error:
                    failure = self._failed("renewed", error)
            receipts = [answer for answer in answers if isinstance(answer, Receipt)]
            failure = await self._heed_all(receipts, "renewed") or failure
        return failure is None

    def announce_join(self, subscription: Subscription) -> None:
        """Announce a join soon, if the channel announces joins."""
        if subscription.announced and not subscription.ended:
            self._announcements.join(subscription)

    async def announce_at_once(self, subscription: Subscription) -> None:
        """Announce a join that is held now, because its client is about to publish."""
        await self._announcements.join_at_once(subscription)

    async def announce_leaves(self, clients: Sequence[Client]) -> None:
        """Announce now that these clients leave all their channels. Cancelled, some are announced.

        For a node that ends beside others: its broker ends before its clients do.
        """
        for client_id, channel in tuple(self._leaving):
            self.depart(client_id, channel)
        await self._announcements.flush_leaves()
        for client in clients:
            for subscription in tuple(client.channels.values()):
                await self._announcements.leave_at_once(subscription)
            await trio.lowlevel.checkpoint()

    def leave_soon(self, subscription: Subscription) -> None:
        """Queue the departure of a `noticed` subscription."""
        key = (subscription.client.id, subscription.channel.name)
        self._leaving.setdefault(key, subscription)
        self._woken.set()

    async def run(self) -> None:
        """Carry out departures until cancelled, oldest first, and announce joins and leaves."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announcements.run)
            while True:
                await self._woken.wait()
                self._woken = trio.Event()
                while self._leaving or self._sent:
                    await self._leave_some()

    async def _leave_some(self) -> None:
        """Send some departures to the store, then await the answers to all that were sent."""
        for _ in range(min(_DEPARTURES, len(self._leaving))):
            _key, subscription = self._leaving.popitem(last=False)
            receipt = self._leave(subscription)
            if receipt is not None:
                self._sent.append(receipt)
        sent, self._sent = self._sent, []
        await self._heed_all(sent, "removed")
        await trio.lowlevel.checkpoint()

    def _leave(self, subscription: Subscription) -> Receipt[None] | None:
        """Take a subscription out of the store; its receipt, if the answer comes later."""
        answer: Answer[None] = None
        if subscription.presence:
            try:
                answer = self._store.remove(subscription.channel.name, subscription.client.id)
            except BrokerError as error:
                self._failed("removed", error)  # The store's own expiry removes it later.
        if subscription.announced:
            self._announcements.leave(subscription)
        return answer if isinstance(answer, Receipt) else None

    async def _heed_all(self, receipts: Sequence[Receipt[None]], done: str) -> BrokerError | None:
        """Wait for the store's answers; the last error, if some failed. Each is counted and logged.

        They were asked for together, so they have one deadline together.
        """
        failure: BrokerError | None = None
        deadline = trio.current_time() + self._timeout
        for receipt in receipts:
            try:
                with trio.move_on_at(deadline):
                    await receipt.wait()
                    continue
            except BrokerError as error:
                failure = self._failed(done, error)
            else:
                failure = self._failed(done, BrokerError("no answer in time"))
        return failure

    def _failed(self, done: str, error: BrokerError) -> BrokerError:
        self._errors["presence"] += 1
        if self._errors["presence"] % _LOGGED == 1:
            _log.warning(f"presence was not {done}", reason=str(error))
        return error
