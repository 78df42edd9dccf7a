"""Which channels a node holds: subscribed to on the bus, and followed, from the first listener on.

A channel is held some time longer than it has listeners. So a client that comes back soon costs
nothing, and whoever saw the end of a stream that a failover lost is still there to tell.

A channel that is asked for while the engine is not there is held as soon as it is. What the bus
refuses is asked for again with each look at the channels.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.receipts import Receipt
from repeater.brokers.valkey.follower import Followed, Room
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.valkey.pipe import Lost

if TYPE_CHECKING:
    from repeater.brokers.receipts import Answer
    from repeater.brokers.valkey.engine import Engine

_log = get_logger("engine")

LINGER: Final = 60.0
"""Seconds for which a channel is held after its last listener has gone."""
LINGERING: Final = 100_000
"""Most channels without a listener; beyond, the oldest are let go."""
TOGETHER: Final = 512
"""Most names in one command."""
_TURN: Final = 1.0  # seconds between two looks at channels without listeners; the first one's wait


class Held(Followed):
    """One channel that a node holds."""

    __slots__ = ("asked", "given_up", "headless", "listened", "partition", "subscribed")

    def __init__(self, channel: str, room: Room, partition: int) -> None:
        super().__init__(channel, room)
        self.partition = partition
        self.asked = False
        """Whether the engine was asked to subscribe to it, and has not refused."""
        self.subscribed = False
        """Whether the engine has done so."""
        self.headless = False
        """Whether the top could not be told, or was too early, before the subscription was
        confirmed: then it is asked for once more."""
        self.listened = True
        """Whether somebody listens: else its events go nowhere."""
        self.given_up = False
        """Whether the node holds it no more; what is under way for it ends."""


class Holds:
    """Lives inside a `Bus`, whose nursery runs `run`."""

    def __init__(
        self,
        engine: Engine,
        take: Callable[[Held, bytes], None],
        look: Callable[[Collection[Held]], None],
    ) -> None:
        """Have `take` called with each message, and `look` with channels that were subscribed to.

        `look` is called right behind the subscription, before it is confirmed.
        """
        self._engine = engine
        self._take = take
        self._look = look
        self._room = Room()
        self._lingering: OrderedDict[Held, float] = OrderedDict()
        self._open: dict[str, Receipt[None]] = {}
        self._new: list[Held] = []
        self._came = trio.Event()
        self._known = False  # whether the engine is there; not known in the first second
        self._ended = False
        self.held: dict[str, Held] = {}
        """All channels that are held, or are to be held."""

    @property
    def lingering(self) -> int:
        """The number of channels without a listener."""
        return len(self._lingering)

    @property
    def kept_bytes(self) -> int:
        """The weight of messages that wait for reads."""
        return self._room.bytes

    def hold(self, channel: str) -> Answer[None]:
        """Hold a channel from now on until `release`; settled when its events come.

        Raises:
            BrokerError: its partition is not there. It is held all the same when that is back. In
                the first second after `run` has begun nobody is told of what was never there: it
                is not known yet.
        """
        one = self.held.get(channel)
        if one is None:
            one = Held(channel, self._room, self._engine.partition_of(channel))
            self.held[channel] = one
        elif not one.listened:
            one.listened = True
            del self._lingering[one]
        why = self._engine.why(one.partition)
        if (why and self._known) or self._ended:
            raise BrokerError(why or "the broker has ended")
        if one.subscribed and one.place is not None:
            return None
        if not one.asked and not why:
            self._want(one)
        receipt = self._open.get(channel)
        if receipt is None:
            receipt = self._open[channel] = Receipt[None]()
        return receipt

    def _want(self, one: Held) -> None:
        one.asked = True
        self._new.append(one)
        self._came.set()

    def release(self, channel: str) -> None:
        """Hold a channel for some time only."""
        one = self.held.get(channel)
        if one is None or not one.listened:
            return
        one.listened = False
        self._lingering[one] = trio.current_time() + LINGER
        if len(self._lingering) > LINGERING:
            self._let_go([next(iter(self._lingering))])

    def answered(self, one: Held) -> None:
        """Its top is known: if its events come as well, whoever waits is told."""
        if one.subscribed and one.place is not None:
            receipt = self._open.pop(one.channel, None)
            if receipt is not None:
                receipt.settle(None)

    def ask_again(self) -> None:
        """Subscribe to what the engine has refused, or what was asked for while it was away."""
        for one in self.held.values():
            if not one.asked and not self._engine.why(one.partition):
                self._want(one)

    def up(self, partitions: Collection[int]) -> list[Held]:
        """Some partitions have come back; returns what the engine has subscribed to again."""
        again = []
        for one in self.held.values():
            if one.partition in partitions:
                if one.subscribed:
                    again.append(one)
                elif not one.asked:
                    self._want(one)
        return again

    def down(self, partitions: Collection[int]) -> None:
        """Some partitions are not there any more: what waits for them fails, the rest is in doubt.

        It is in doubt from now on. What the next connection brings before `up` could be of a stream
        that has lost its end and numbered it again.
        """
        for one in self.held.values():
            if one.partition in partitions:
                one.cut_off()
        self._known = True
        self._fail(
            [one for one in self._open if self.held[one].partition in partitions or self._why(one)]
        )

    def _why(self, channel: str) -> str:
        return self._engine.why(self.held[channel].partition)

    def _fail(self, channels: Iterable[str]) -> None:
        for channel in channels:
            why = self._why(channel)
            self._open.pop(channel).settle(BrokerError(why or "the engine is not there"))

    async def run(self) -> None:
        """Subscribe to what gathers in a pass of the loop, let go of the old, until cancelled."""
        begun = trio.current_time()
        try:
            while True:
                with trio.move_on_after(_TURN):
                    await self._came.wait()
                self._came = trio.Event()
                new, self._new = self._new, []
                self._subscribe(one for one in new if not one.given_up)
                self._let_go(self._old())
                if not self._known and trio.current_time() >= begun + _TURN:
                    self._known = True
                    self._fail([one for one in self._open if self._why(one)])
        finally:
            self._ended = True
            for receipt in self._open.values():
                receipt.settle(BrokerError("the broker has ended"))
            self._open.clear()

    def _subscribe(self, new: Iterable[Held]) -> None:
        for partition, some in _in_parts(new):
            takes = {one.channel: partial(self._take, one) for one in some}
            try:
                self._engine.subscribe(partition, takes, partial(self._subscribed, some))
            except Lost as error:
                self._subscribed(some, error)
            else:
                self._look(some)

    def _subscribed(self, some: Collection[Held], answer: object) -> None:
        if isinstance(answer, Exception):
            self._refused(some, answer)
            return
        for one in some:
            one.subscribed = True
        headless = [one for one in some if one.headless]
        for one in headless:
            one.headless = False
        self._look(headless)

    def _refused(self, some: Collection[Held], error: Exception) -> None:
        _log.info("channels could not be held", channels=len(some), reason=str(error))
        for one in some:
            one.asked = False
            receipt = None if one.given_up else self._open.pop(one.channel, None)
            if receipt is not None:
                receipt.settle(BrokerError("the engine does not hold the channel"))

    def _old(self) -> list[Held]:
        now, old = trio.current_time(), []
        for one, until in self._lingering.items():
            if until > now:
                break
            old.append(one)
        return old

    def _let_go(self, gone: Iterable[Held]) -> None:
        asked = []
        for one in gone:
            del self._lingering[one]
            del self.held[one.channel]
            one.given_up = True
            one.forget()
            receipt = self._open.pop(one.channel, None)
            if receipt is not None:
                receipt.settle(BrokerError("the channel is held no more"))
            if one.asked:
                asked.append(one)
        for partition, some in _in_parts(asked):
            self._engine.unsubscribe(partition, [one.channel for one in some])


def _in_parts(many: Iterable[Held]) -> Iterable[tuple[int, list[Held]]]:
    """Of one partition each, and few enough for one command."""
    parts: defaultdict[int, list[Held]] = defaultdict(list)
    for one in many:
        parts[one.partition].append(one)
    for partition, all_of_it in parts.items():
        for start in range(0, len(all_of_it), TOGETHER):
            yield partition, all_of_it[start : start + TOGETHER]
