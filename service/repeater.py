"""The repeater task: takes events in batches and gives each to every listener.

It owns no connection and knows no broker. Nothing here waits for a client: an outbox takes a
chunk without awaiting, and one that can't keep up is cut by its own bounds. A crash here ends the
process loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Self

import msgspec
import trio

from service.publication import Announcement, Event, Publication

if TYPE_CHECKING:
    from service.hub import Channel, Hub, Subscription
    from service.intake import Intake
    from service.outbox import Outbox
    from service.protocol.codecs import Codec

_SLICE = 32  # outboxes between two looks at the clock: about 0.3 ms of writing

Group = dict["Outbox", "Subscription"]


class RepeaterStatistics(msgspec.Struct, frozen=True):
    """What the repeater did since it started, and what waits."""

    publications: int
    deliveries: int
    batches: int
    bytes_out: int
    gaps: int
    waiting: int


class Chunks(msgspec.Struct, frozen=True):
    """What a group of listeners is written, and how many publications and bytes that is."""

    bytes: Sequence[bytes]
    publications: int
    size: int

    @classmethod
    def of(cls, codec: Codec, run: Sequence[Publication], base: Publication | None) -> Self:
        """Encode a run; a filter may let nothing of it through, and is counted as all or none."""
        chunks = codec.publications(run, base)
        return cls(chunks, len(run) if chunks else 0, sum(map(len, chunks)))


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
        self._gaps = 0

    def statistics(self) -> RepeaterStatistics:
        """A snapshot of the counters."""
        return RepeaterStatistics(
            self._publications,
            self._deliveries,
            self._batches,
            self._bytes_out,
            self._gaps,
            len(self._intake),
        )

    async def run(self) -> None:
        """Distribute until the intake is closed and empty.

        While one batch is written the next one gathers, so a burst costs each client one write.
        """
        while batch := await self._intake.take_batch():
            self._batches += 1
            await self._distribute(batch)
            self._hub.distributed.unpark_all()
            await trio.lowlevel.checkpoint()

    async def _distribute(self, batch: Sequence[Event]) -> None:
        self._turn_ends = perf_counter() + self._budget
        groups = self._by_channel([event for event in batch if type(event) is Publication])
        if len(groups) == 1:
            await self._advance(*groups[0])
        elif groups:
            touched: list[Outbox] = []
            for channel, publications in groups:
                await self._advance(channel, publications, touched)
            await self._flush(touched)
        for event in batch:
            if type(event) is Announcement:
                await self._announce(event)

    def _by_channel(
        self, publications: Sequence[Publication]
    ) -> list[tuple[Channel, Sequence[Publication]]]:
        """By channel, order kept within each; channels that nobody hears left out."""
        self._publications += len(publications)
        names: dict[str, list[Publication]] = {}
        for publication in publications:
            names.setdefault(publication.channel, []).append(publication)
        channels = self._hub.channels
        return [(channels[name], group) for name, group in names.items() if name in channels]

    async def _advance(
        self,
        channel: Channel,
        publications: Sequence[Publication],
        touched: list[Outbox] | None = None,
    ) -> None:
        """Move the channel on; before a gap in its stream, end the subscriptions that promise one.

        With `touched` the chunks are only pushed, and the outboxes listed for one flush each.
        """
        for run in channel.advance(publications):
            if run.gap_before:
                self._gaps += 1
                for subscription in tuple(channel.subscriptions()):
                    if subscription.positioned:
                        subscription.client.lose_position(subscription)
            await self._deliver(channel, run.publications, touched)

    async def _deliver(
        self, channel: Channel, run: Sequence[Publication], touched: list[Outbox] | None
    ) -> None:
        """Encode once per codec, and give the chunks to every live listener of this moment.

        Whoever joins while this gives way to others has the run in its history already.
        """
        caught_up = channel.catch_up(run) if channel.ahead else None
        groups = [(codec, group.copy()) for codec, group in channel.listeners.items()]
        base, channel.base, version = channel.base, run[-1], channel.version
        if caught_up is not None:
            for subscription in caught_up.lost:
                subscription.client.lose_position(subscription)
            for subscription, piece in caught_up.pieces:
                self._give_piece(subscription, piece, touched)
            for subscription in caught_up.reached:
                channel.add(subscription)
        for codec, group in groups:
            if channel.version != version:
                group = self._remaining(channel, codec, group)
            await self._give_group(channel, codec, group, Chunks.of(codec, run, base), touched)

    def _give_piece(
        self, subscription: Subscription, piece: Sequence[Publication], touched: list[Outbox] | None
    ) -> None:
        """One listener gets what it has not had from its history; without a base to rely on."""
        chunks = Chunks.of(subscription.codec, piece, None)
        self._give((subscription.client.outbox,), chunks, touched)

    async def _give_group(
        self,
        channel: Channel,
        codec: Codec,
        group: Group,
        chunks: Chunks,
        touched: list[Outbox] | None,
    ) -> None:
        outboxes, version, start = tuple(group), channel.version, 0
        while start < len(outboxes):
            self._give(outboxes[start : start + _SLICE], chunks, touched)
            start += _SLICE
            if await self._gave_way() and channel.version != version:
                # Somebody left meanwhile: they must not hear what they left.
                due = {outbox: group[outbox] for outbox in outboxes[start:]}
                outboxes = tuple(self._remaining(channel, codec, due))
                version, start = channel.version, 0
        if codec.following is not codec:
            for subscription in self._remaining(channel, codec, group).values():
                channel.recode(subscription, codec.following)

    def _give(
        self, outboxes: Sequence[Outbox], chunks: Chunks, touched: list[Outbox] | None
    ) -> None:
        if touched is None:
            for chunk in chunks.bytes:
                for outbox in outboxes:
                    outbox.send(chunk)
        else:
            for outbox in outboxes:
                for chunk in chunks.bytes:
                    if outbox.push(chunk):
                        touched.append(outbox)
        self._deliveries += len(outboxes) * chunks.publications
        self._bytes_out += len(outboxes) * chunks.size

    @staticmethod
    def _remaining(channel: Channel, codec: Codec, group: Group) -> Group:
        """Those who listen still, and by the same subscription."""
        now = channel.listeners.get(codec, {})
        return {outbox: one for outbox, one in group.items() if now.get(outbox) is one}

    async def _announce(self, announcement: Announcement) -> None:
        """Push a join or leave to those who asked for it."""
        channel = self._hub.channels.get(announcement.channel)
        if channel is None:
            return
        chunks: dict[Codec, bytes] = {}
        for number, subscription in enumerate(tuple(channel.answered())):
            client = subscription.client
            if subscription.join_leave and client.channels.get(channel.name) is subscription:
                chunk = chunks.get(client.codec)
                if chunk is None:
                    chunk = chunks[client.codec] = client.codec.announcement(announcement)
                client.outbox.send(chunk)
            if number % _SLICE == 0:
                await self._gave_way()

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
