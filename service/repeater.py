"""The repeater task: takes publications in batches and gives each to every listener.

It owns no connection and knows no broker. Nothing here waits for a client: an outbox takes a
chunk without awaiting, and one that can't keep up is cut by its own bounds. A crash here ends the
process loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import trio

if TYPE_CHECKING:
    from service.hub import Channel, Hub
    from service.intake import Intake
    from service.outbox import Outbox
    from service.protocol.codecs import Codec
    from service.publication import Publication

_SLICE = 32  # outboxes between two looks at the clock: about 0.3 ms of writing


class RepeaterStatistics(msgspec.Struct, frozen=True):
    """What the repeater did since it started, and what waits."""

    publications: int
    deliveries: int
    batches: int
    bytes_out: int
    waiting: int


class Repeater:
    """Distributes what the intake holds. Lives inside the node; ends when the intake closes."""

    def __init__(self, hub: Hub, intake: Intake, fanout_budget: float) -> None:
        self._hub = hub
        self._intake = intake
        self._budget = fanout_budget
        self._turn_ends = 0.0
        self._publications = 0
        self._deliveries = 0
        self._batches = 0
        self._bytes_out = 0

    def statistics(self) -> RepeaterStatistics:
        """A snapshot of the counters."""
        return RepeaterStatistics(
            self._publications,
            self._deliveries,
            self._batches,
            self._bytes_out,
            len(self._intake),
        )

    async def run(self) -> None:
        """Distribute until the intake is closed and empty.

        While one batch is written the next one gathers, so a burst costs each client one write.
        """
        while batch := await self._intake.take_batch():
            self._batches += 1
            self._publications += len(batch)
            await self._distribute(batch)
            await trio.lowlevel.checkpoint()

    async def _distribute(self, batch: Sequence[Publication]) -> None:
        self._turn_ends = perf_counter() + self._budget
        groups = self._by_channel(batch)
        if len(groups) == 1:
            await self._deliver(*groups[0])
            return
        touched: list[Outbox] = []
        for channel, publications in groups:
            await self._deliver(channel, publications, touched)
        await self._flush(touched)

    def _by_channel(
        self, batch: Sequence[Publication]
    ) -> list[tuple[Channel, Sequence[Publication]]]:
        """The batch by channel, order kept within each; channels that nobody hears left out."""
        if batch[0].channel == batch[-1].channel and len({p.channel for p in batch}) == 1:
            channel = self._hub.channels.get(batch[0].channel)
            return [] if channel is None else [(channel, batch)]
        names: dict[str, list[Publication]] = {}
        for publication in batch:
            names.setdefault(publication.channel, []).append(publication)
        channels = self._hub.channels
        return [(channels[name], group) for name, group in names.items() if name in channels]

    async def _deliver(
        self,
        channel: Channel,
        publications: Sequence[Publication],
        touched: list[Outbox] | None = None,
    ) -> None:
        """Encode once per codec, and give the chunks to every listener.

        With `touched` the chunks are only pushed, and the outboxes listed for one flush each.
        """
        for codec, group in tuple(channel.listeners.items()):
            chunks = codec.publications(publications)
            outboxes, version, start = tuple(group), channel.version, 0
            while start < len(outboxes):
                some = outboxes[start : start + _SLICE]
                self._give(some, chunks, touched)
                self._count(len(some), publications, chunks)
                start += _SLICE
                if await self._gave_way() and channel.version != version:
                    # Somebody left meanwhile: they must not hear what they left.
                    outboxes = self._remaining(channel, codec, outboxes[start:])
                    version, start = channel.version, 0

    @staticmethod
    def _give(
        outboxes: Sequence[Outbox], chunks: Sequence[bytes], touched: list[Outbox] | None
    ) -> None:
        if touched is None:
            for outbox in outboxes:
                for chunk in chunks:
                    outbox.send(chunk)
            return
        for outbox in outboxes:
            for chunk in chunks:
                if outbox.push(chunk):
                    touched.append(outbox)

    @staticmethod
    def _remaining(
        channel: Channel, codec: Codec, outboxes: Sequence[Outbox]
    ) -> tuple[Outbox, ...]:
        group = channel.listeners.get(codec, {})
        return tuple(outbox for outbox in outboxes if outbox in group)

    async def _flush(self, touched: Sequence[Outbox]) -> None:
        for start in range(0, len(touched), _SLICE):
            for outbox in touched[start : start + _SLICE]:
                outbox.flush()
            await self._gave_way()

    async def _gave_way(self) -> bool:
        """Let pings, accepts and REST calls have a turn once the time budget is used up."""
        if perf_counter() < self._turn_ends:
            return False
        await trio.lowlevel.checkpoint()
        self._turn_ends = perf_counter() + self._budget
        return True

    def _count(
        self, outboxes: int, publications: Sequence[object], chunks: Sequence[bytes]
    ) -> None:
        self._deliveries += outboxes * len(publications)
        self._bytes_out += outboxes * sum(map(len, chunks))
