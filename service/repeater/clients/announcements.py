"""Joins and leaves on their way to the broker; those that cancel each other out are left out.

A message of 64 KB can hold 800 pairs of subscribe and unsubscribe, and each join and leave goes to
every subscriber of the channel. So a change is held for 100 ms, and the opposite change of the same
client in the same channel takes it away: nobody hears of either. A client that stays, or stays
away, is announced 100 ms late, with two exceptions: a member's join goes out at once when the
member publishes, so that it comes before the first message.

One client causes at most one announcement in 100 ms in one channel. Changes are held in the order
in which they came, and all for the same time, so one task with one timer is enough for all clients.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import Announcement

if TYPE_CHECKING:
    from repeater.brokers.contract import Broker
    from repeater.clients.subscription import Subscription

_log = get_logger("presence")

HOLD: Final = 0.1
"""Seconds for which a join or leave is held."""


class _Change(msgspec.Struct, frozen=True):
    """A join or leave that is held."""

    due: float
    subscription: Subscription
    joined: bool


class Announcements:
    """Lives inside `Attendance`, whose task runs `run`.

    The changes that are held have no bound of their own: a join belongs to a subscription that is
    there, and a leave to one that was there 100 ms ago.
    """

    def __init__(self, broker: Broker, errors: Counter[str], timeout: float) -> None:
        """Count failures in `errors`; drop what the broker does not take in `timeout` seconds."""
        self._broker = broker
        self._errors = errors
        self._timeout = timeout
        self._held: OrderedDict[tuple[str, str], _Change] = OrderedDict()
        self._woken = trio.Event()

    def join(self, subscription: Subscription) -> None:
        """Announce a join soon, or take away the leave that is held."""
        held = self._held.pop(_key(subscription), None)
        if held is not None and not held.joined:
            subscription.arrived = True  # The others never heard that it had left.
        else:
            self._hold(subscription, joined=True)

    async def join_at_once(self, subscription: Subscription) -> None:
        """Announce a join now if it is held; else no checkpoint."""
        held = self._held.get(_key(subscription))
        if held is not None and held.subscription is subscription:
            await self._announce(self._held.pop(_key(subscription)))

    async def leave_at_once(self, subscription: Subscription) -> None:
        """Announce a leave now if the join was announced, and never a join that is held."""
        self._held.pop(_key(subscription), None)
        if subscription.arrived:
            await self._announce(_Change(trio.current_time(), subscription, joined=False))

    async def flush_leaves(self) -> None:
        """Announce the leaves that are held."""
        for change in tuple(self._held.values()):
            if not change.joined and self._held.pop(_key(change.subscription), None) is not None:
                await self._announce(change)

    def leave(self, subscription: Subscription) -> None:
        """Announce a leave soon if the join was announced; else take the held join away."""
        if subscription.arrived:
            self._hold(subscription, joined=False)
            return
        held = self._held.get(_key(subscription))
        if held is not None and held.subscription is subscription:
            del self._held[_key(subscription)]

    def _hold(self, subscription: Subscription, *, joined: bool) -> None:
        change = _Change(trio.current_time() + HOLD, subscription, joined)
        self._held[_key(subscription)] = change
        self._woken.set()

    async def run(self) -> None:
        """Announce what was held for its time, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            while self._held:
                await trio.sleep_until(next(iter(self._held.values())).due)
                await self._announce_due()

    async def _announce_due(self) -> None:
        while self._held and next(iter(self._held.values())).due <= trio.current_time():
            _, change = self._held.popitem(last=False)
            await self._announce(change)

    async def _announce(self, change: _Change) -> None:
        subscription = change.subscription
        subscription.arrived = change.joined
        announcement = Announcement(subscription.channel.name, subscription.info(), change.joined)
        with trio.move_on_after(self._timeout) as waiting:
            try:
                await self._submit(announcement)
            except BrokerError as error:
                self._fail(str(error))
            except trio.ClosedResourceError:
                return  # The node is shutting down, and no subscriber is left to tell.
        if waiting.cancelled_caught:
            self._fail("no room in time")

    async def _submit(self, announcement: Announcement) -> None:
        """Hand an announcement to the broker as soon as there is room; no wait for its answer.

        An announcement is told at most once, so nothing would be done again after a failure.
        """
        again = False
        while True:
            try:
                self._broker.announce(announcement)
            except trio.WouldBlock:
                if again:  # `wait_room` itself need not be a checkpoint.
                    await trio.lowlevel.checkpoint()
                again = True
                await self._broker.wait_room()
            else:
                return

    def _fail(self, reason: str) -> None:
        self._errors["announce"] += 1
        _log.warning("a join or leave was not announced", reason=reason)


def _key(subscription: Subscription) -> tuple[str, str]:
    return subscription.client.id, subscription.channel.name
