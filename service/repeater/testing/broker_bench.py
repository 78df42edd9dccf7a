"""What the rules of a broker are checked on: a broker that runs, and the end that hears from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final
from uuid import uuid4

import msgspec
import trio

from repeater.brokers.contract import Broker, Outcome
from repeater.brokers.receipts import Answer, settled
from repeater.brokers.source_rows import SourceRow
from repeater.errors import open_service_nursery
from repeater.fanout.intake import Intake
from repeater.options import ChannelOptions
from repeater.publication import Announcement, Event, Publication, StreamPosition

OpenBroker = Callable[[], AbstractAsyncContextManager[Broker]]
"""Opens one broker. The suite calls its `run`."""

_BATCH: Final = 262_144
_BYTES: Final = 67_108_864

EXPIRING: Final = ChannelOptions(history_size=3, history_ttl=3, history_meta_ttl=8)
"""Options of a channel whose history goes within seconds."""

LASTING: Final = msgspec.structs.replace(EXPIRING, history_ttl=600, history_meta_ttl=600)
"""The same for a history that no rule waits the end of."""


class Bench:
    """A running broker, an unused channel, and the events that the broker handed on."""

    def __init__(self, broker: Broker, room: int, options: ChannelOptions) -> None:
        self.broker = broker
        self.intake = Intake(room, _BYTES, _BATCH)
        self.options = options
        self.channel = f"check:{uuid4()}"
        self._handed: list[Event] = []
        self._held: dict[str, Answer[None]] = {}

    async def publish(
        self, data: bytes = b"1", *, key: str = "", skip_history: bool = False, channel: str = ""
    ) -> StreamPosition | None:
        """Publish one event, into the bench's channel unless another is named."""
        publication = Publication(channel or self.channel, data)
        return await self.send(publication, key=key, skip_history=skip_history)

    async def send(
        self, publication: Publication, *, key: str = "", skip_history: bool = False
    ) -> StreamPosition | None:
        """Publish into a channel that is held, as soon as there is room; wait for the answer."""
        await self.hold(publication.channel)
        return await settled(await self.submit(publication, key=key, skip_history=skip_history))

    async def submit(
        self,
        publication: Publication,
        *,
        key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        """Submit as soon as there is room; a checkpoint only when it waits."""
        while True:
            try:
                return self.broker.submit(
                    publication,
                    self.options,
                    idempotency_key=key,
                    skip_history=skip_history,
                    row=row,
                )
            except trio.WouldBlock:
                await self.broker.wait_room()

    async def hold(self, channel: str = "") -> None:
        """Have the events of a channel come: of the bench's, unless another is named."""
        channel = channel or self.channel
        if channel not in self._held:
            self._held[channel] = self.broker.hold(channel)
        await settled(self._held[channel])

    async def announce(self, announcement: Announcement) -> None:
        """Announce a join or leave in a channel that is held, as soon as there is room."""
        await self.hold(announcement.channel)
        while True:
            try:
                self.broker.announce(announcement)
            except trio.WouldBlock:
                await self.broker.wait_room()
            else:
                return

    async def numbered(
        self, data: bytes = b"1", *, key: str = "", channel: str = ""
    ) -> StreamPosition:
        """Publish, where the contract promises a position."""
        position = await self.publish(data, key=key, channel=channel)
        if position is None:
            raise AssertionError("publish returned no position in a channel with history")
        return position

    async def history(
        self, since: StreamPosition | None = None, limit: int | None = None, reverse: bool = False
    ) -> tuple[Sequence[Publication], StreamPosition]:
        """What the broker keeps of the channel, and the top."""
        answer = self.broker.history(
            self.channel, self.options, since=since, limit=limit, reverse=reverse
        )
        return await settled(answer)

    async def handed_on(self, count: int) -> list[Event]:
        """The next events that reach fan-out; waits for so many."""
        while len(self._handed) < count:
            self._handed += await self.intake.take_batch()
        taken, self._handed = self._handed[:count], self._handed[count:]
        return taken


@asynccontextmanager
async def running(
    open_broker: OpenBroker, *, room: int = 8, options: ChannelOptions = LASTING
) -> AsyncIterator[Bench]:
    """Open a broker and run it, with room for so many events that wait for fan-out."""
    async with open_broker() as broker, open_service_nursery() as nursery:
        bench = Bench(broker, room, options)
        nursery.start_soon(broker.run, bench.intake)
        await broker.wait_room()  # It runs by then.
        yield bench


def data_of(events: Sequence[Event]) -> list[bytes]:
    """The data of each event; empty for an announcement."""
    return [one.data for one in events]


def offsets_of(events: Sequence[Event]) -> list[int]:
    """The offsets of the publications among them."""
    return [one.offset for one in events if isinstance(one, Publication)]
