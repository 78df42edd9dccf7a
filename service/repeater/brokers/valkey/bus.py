"""The bus: what comes by it goes through the follower to fan-out, and what is missing is read.

`hold` has a channel subscribed to and followed. Its messages and its tops come here in one order.
What does not fit goes to `Repairs`, what fits to the `Outlet`.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from repeater.brokers.valkey.engine import ForeignError
from repeater.brokers.valkey.envelope import behind, received
from repeater.brokers.valkey.heads import Heads
from repeater.brokers.valkey.holds import Holds
from repeater.brokers.valkey.outlet import Outlet
from repeater.brokers.valkey.repairs import Repairs
from repeater.brokers.valkey.values import NO_STREAM
from repeater.valkey.pipe import Lost

if TYPE_CHECKING:
    from repeater.brokers.contract import EventSink
    from repeater.brokers.receipts import Answer
    from repeater.brokers.valkey.engine import Engine
    from repeater.brokers.valkey.holds import Held
    from repeater.brokers.valkey.values import Place


class BusStatistics(msgspec.Struct, frozen=True):
    """What a node holds, and what had to be repaired."""

    held: int
    """Channels that are held, those without listeners included."""
    lingering: int
    """Channels among them without listeners."""
    in_doubt: int
    """Channels whose streams are to be read, or are being read."""
    kept_bytes: int
    """The weight of messages that wait for these reads."""
    late: int
    """Events that wait for room in fan-out's intake."""
    reads: int
    """Reads of streams so far."""
    forks: int
    """Streams that had forked."""
    ruptures: int
    """Streams whose listeners were told that publications are missing."""
    foreign: int
    """Messages, entries and tops that no node has written."""


class Bus:
    """Lives inside a broker, whose nursery runs `run`. Listens to its engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._outlet = Outlet()
        self._heads = Heads(engine, self._headed, self._outlet.wait_empty)
        self._holds = Holds(engine, self._take, self._heads.ask)
        self._repairs = Repairs(engine, self._outlet, self._holds.answered)

    async def run(self, intake: EventSink) -> None:
        """Hand events on to the intake until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._outlet.run, intake)
            nursery.start_soon(self._repairs.run)
            nursery.start_soon(self._heads.run, self._holds)
            await self._holds.run()

    def hold(self, channel: str) -> Answer[None]:
        """Have the events of a channel come; see `Broker.hold`.

        Raises:
            BrokerError: the engine is not there. The channel is held when it is back, until
                `release`.
        """
        return self._holds.hold(channel)

    def release(self, channel: str) -> None:
        """Note that no listener is left; see `Broker.release`."""
        self._holds.release(channel)

    def up(self, partitions: Collection[int]) -> None:
        """Partitions of the engine have come back, and their subscriptions: all tops are asked for.

        `down` was called before, and no message has been trusted since.
        """
        self._heads.want(self._holds.up(frozenset(partitions)))

    def down(self, partitions: Collection[int]) -> None:
        """Partitions of the engine are not there any more."""
        self._holds.down(frozenset(partitions))

    async def wait_room(self) -> None:
        """Wait until the bus may be read on: until fan-out has taken what came."""
        await self._outlet.wait_empty()

    async def finish(self) -> None:
        """Wait until what was published by now has come and is handed on.

        The caller sets the deadline.
        """
        partitions = {one.partition for one in self._holds.held.values()}
        for partition in partitions:
            came = trio.Event()
            try:
                self._engine.mark(partition, partial(_set, came))
            except Lost:
                continue  # Nothing comes from there any more.
            await came.wait()
        await self._repairs.wait_done()
        await self._outlet.wait_empty()

    def statistics(self) -> BusStatistics:
        """What is held now, and what was repaired so far."""
        return BusStatistics(
            held=len(self._holds.held),
            lingering=self._holds.lingering,
            in_doubt=len(self._repairs),
            kept_bytes=self._holds.kept_bytes,
            late=len(self._outlet),
            reads=self._repairs.reads,
            forks=self._repairs.forks,
            ruptures=self._repairs.ruptures,
            foreign=self._repairs.foreign,
        )

    def _take(self, held: Held, payload: bytes) -> None:
        """Take a message of the bus. By far the most are the next ones of their streams."""
        in_doubt, here = held.reading, held.place
        if not in_doubt and here is not None:
            found = behind(here, held.channel, payload)
            if found is not None:
                publication, held.place = found
                if held.listened:
                    self._outlet.put(publication)
                return
        try:
            message = received(held.channel, payload)
        except ForeignError as error:
            self._repairs.note_foreign(error)
            held.miss()
        else:
            if held.take(message):
                if held.listened:
                    event = message.event
                    assert event is not None
                    self._outlet.put(event)
                return
        if held.reading and not in_doubt:
            self._repairs.want(held)

    def _headed(self, held: Held, answer: Place | Exception) -> None:
        """Take the top of a stream, told in its turn among the messages."""
        if held.given_up:
            return
        if not held.subscribed:
            held.headless = True
            return
        if isinstance(answer, Lost):
            return  # The top is asked for by the next connection.
        if isinstance(answer, ForeignError):
            self._repairs.note_foreign(answer)
            answer = NO_STREAM
        if isinstance(answer, Exception):
            held.doubt()
        else:
            self._repairs.hand_on(held, held.head(answer))
            self._holds.answered(held)
            if answer.epoch and not answer.offset:
                self._engine.renew(held.channel)
        if held.reading:
            self._repairs.want(held)


def _set(event: trio.Event, _answer: object) -> None:
    event.set()
