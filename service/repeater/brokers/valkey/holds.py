"""Which channels a node holds: subscribed to on the bus, and followed, from the first listener on.

A channel is held some time longer than it has listeners. So a client that comes back soon costs
nothing, and whoever saw the end of a stream that a failover lost is still there to tell.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.receipts import Receipt
from repeater.brokers.valkey.follower import Followed
from repeater.errors import BrokerError

if TYPE_CHECKING:
    from repeater.brokers.receipts import Answer

LINGER: Final = 60.0
"""Seconds for which a channel is held after its last listener has gone."""
_LINGERING: Final = 100_000  # most channels without a listener; beyond, the oldest are let go
_TOGETHER: Final = 512  # names in one command

Order = Callable[[Sequence[str]], None]
"""Subscribes to channels on the bus, or unsubscribes. Raises `BrokerError` if it is not there."""


class Holds:
    """Lives inside the broker, whose nursery runs `run`."""

    def __init__(self, subscribe: Order, unsubscribe: Order) -> None:
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self.followed: dict[str, Followed] = {}
        """All channels that are held, or will be when the bus has confirmed it."""
        self._lingering: OrderedDict[str, float] = OrderedDict()
        self._open: dict[str, Receipt[None]] = {}
        self._new: list[str] = []
        self._came = trio.Event()

    def hold(self, channel: str) -> Answer[None]:
        """Hold a channel from now on; settled when its events come."""
        self._lingering.pop(channel, None)
        if channel in self.followed:
            return self._open.get(channel)
        self.followed[channel] = Followed(channel)
        receipt = self._open[channel] = Receipt[None]()
        self._new.append(channel)
        self._came.set()
        return receipt

    def release(self, channel: str) -> None:
        """Hold a channel for some time only."""
        if channel not in self.followed:
            return
        self._lingering[channel] = trio.current_time() + LINGER
        self._lingering.move_to_end(channel)
        if len(self._lingering) > _LINGERING:
            self._let_go([next(iter(self._lingering))])

    def held(self, channel: str) -> None:
        """The channel's events come, and its top was read."""
        receipt = self._open.pop(channel, None)
        if receipt is not None:
            receipt.settle(None)

    def lost(self, error: BrokerError) -> None:
        """The engine is not there: what waits for it fails, and is asked for again later."""
        self._new.clear()
        waiting, self._open = self._open, {}
        for channel, receipt in waiting.items():
            del self.followed[channel]
            receipt.settle(error)

    def subscribe_all(self) -> None:
        """The engine has come back: hold everything again."""
        self._order(self._subscribe, self.followed)

    async def run(self) -> None:
        """Subscribe to what gathers in a pass of the loop, and let go of the old, until cancelled."""
        while True:
            with trio.move_on_after(1.0):
                await self._came.wait()
            self._came = trio.Event()
            new, self._new = self._new, []
            try:
                self._order(self._subscribe, new)
            except BrokerError as error:
                self.lost(error)
            now = trio.current_time()
            old = []
            for channel, until in self._lingering.items():
                if until > now or len(old) >= _TOGETHER:
                    break
                old.append(channel)
            self._let_go(old)

    def _let_go(self, channels: Iterable[str]) -> None:
        gone = list(channels)
        for channel in gone:
            del self._lingering[channel]
            self.followed.pop(channel).given_up = True
            receipt = self._open.pop(channel, None)
            if receipt is not None:
                receipt.settle(BrokerError("the channel is held no more"))
        try:
            self._order(self._unsubscribe, gone)
        except BrokerError:
            pass  # The connection has ended, and with it all that was subscribed to.

    def _order(self, order: Order, channels: Iterable[str]) -> None:
        names = list(channels)
        for start in range(0, len(names), _TOGETHER):
            order(names[start : start + _TOGETHER])
