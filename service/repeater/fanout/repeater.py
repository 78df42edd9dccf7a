"""The repeater task: takes events in batches and gives each to every listener.

It owns no connection and knows no broker. Nothing here waits for a client: an outbox takes a
chunk without awaiting, and cuts a client that cannot keep up. A crash here ends the process
loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import trio

from repeater.failures import Failures
from repeater.fanout.chunks import PART, Chunks
from repeater.fanout.groups import SLICE
from repeater.fanout.left_out import LeftOut
from repeater.fanout.outbox import send_to_all
from repeater.histogram import EVENTS, SECONDS, Histogram, HistogramStatistics
from repeater.publication import Announcement, Event, Publication, Rupture

if TYPE_CHECKING:
    from repeater.fanout.channel import Channel, Run
    from repeater.fanout.groups import Audience
    from repeater.fanout.hub import Hub
    from repeater.fanout.intake import Intake
    from repeater.fanout.listener import Listener
    from repeater.fanout.outbox import Outbox
    from repeater.protocol.centrifugo.codecs import Codec


class RepeaterStatistics(msgspec.Struct, frozen=True):
    """What the repeater did since it started, and what waits."""

    publications: int
    deliveries: int
    batches: int
    bytes_out: int
    gaps: int
    left_out: int
    """Deliveries of binary publications to clients that speak JSON, which do not get them."""
    waiting: int
    """Events in the intake."""
    waiting_bytes: int
    """Their weight."""
    publishers: int
    """Publishers that wait for room in the intake."""
    batch_events: HistogramStatistics
    """Events in a batch."""
    fanout_seconds: HistogramStatistics
    """From the moment when a batch is taken to the last of its listeners."""
    publish_to_write_seconds: HistogramStatistics
    """From the broker's hand-over to the end of fan-out. Each event counts with the age of the
    oldest event in its batch, so the real times are a little shorter."""


class Repeater:
    """Distributes what the intake holds. Lives inside the node; ends when the intake closes."""

    def __init__(
        self, hub: Hub, intake: Intake, fanout_budget: float, failures: Failures | None = None
    ) -> None:
        """Note in `failures` what could not be encoded, if it is given."""
        self._failures = failures or Failures()
        self._hub = hub
        self._intake = intake
        self._budget = fanout_budget
        self._turn_ends = 0.0
        self._publications = 0
        self._deliveries = 0
        self._batches = 0
        self._bytes_out = 0
        self._gaps = 0
        self._left_out = LeftOut()
        self._batch_events = Histogram(EVENTS)
        self._fanout_seconds = Histogram(SECONDS)
        self._publish_to_write = Histogram(SECONDS)

    def statistics(self) -> RepeaterStatistics:
        """A snapshot of the counters."""
        return RepeaterStatistics(
            self._publications,
            self._deliveries,
            self._batches,
            self._bytes_out,
            self._gaps,
            self._left_out.count,
            len(self._intake),
            self._intake.bytes,
            self._intake.publishers,
            self._batch_events.statistics(),
            self._fanout_seconds.statistics(),
            self._publish_to_write.statistics(),
        )

    async def run(self) -> None:
        """Distribute until the intake is closed and empty.

        While one batch is written the next one gathers, so a burst costs each client one write.
        """
        while batch := await self._intake.take_batch():
            since, taken_at = self._intake.batch_since, perf_counter()
            self._turn_ends = taken_at + self._budget
            self._batches += 1
            await self._distribute(batch)
            self._measure(len(batch), since, taken_at)
            if self._hub.distributed:
                self._hub.distributed.unpark_all()
            if len(self._intake):
                await trio.lowlevel.checkpoint()  # Else `take_batch` waits, which is a checkpoint.

    def _measure(self, events: int, since: float, taken_at: float) -> None:
        """Measure a distributed batch: one more clock reading, however many events it had."""
        now = perf_counter()
        self._batch_events.observe(events)
        self._fanout_seconds.observe(now - taken_at)
        self._publish_to_write.observe(now - since, events)

    async def _distribute(self, batch: Sequence[Event]) -> None:
        publications = [event for event in batch if type(event) is Publication]
        self._publications += len(publications)
        if len(publications) < len(batch):
            await self._distribute_mixed(batch)
            return
        if len(publications) == 1:  # as nearly always, while the server is not busy
            channel = self._hub.channels.get(publications[0].channel)
            if channel is not None:
                await self._advance(channel, publications)
            return
        groups = self._by_channel(publications)
        if len(groups) == 1:
            await self._advance(*groups[0])
        elif groups:
            touched: dict[Outbox, None] = {}
            for channel, group in groups:
                await self._advance(channel, group, touched)
            await self._flush(tuple(touched))

    async def _distribute_mixed(self, batch: Sequence[Event]) -> None:
        """Distribute a batch that has other events than publications, in order in each channel.

        A member's join comes before its first publication, and its last one before its leave.
        """
        before: list[Publication | Announcement] = []
        for event in batch:
            if isinstance(event, Rupture):
                await self._distribute_parts(before)
                before = []
                await self._rupture(event)
            else:
                before.append(event)
        await self._distribute_parts(before)

    async def _rupture(self, rupture: Rupture) -> None:
        """End the positions in a channel, or in all; whoever has none hears nothing of it."""
        channels = self._hub.channels
        names = (rupture.channel,) if rupture.channel else tuple(channels)
        for name in names:
            channel = channels.get(name)
            if channel is not None:
                self._gaps += 1
                await self._lose_positions(channel.break_off())

    async def _distribute_parts(self, batch: Sequence[Publication | Announcement]) -> None:
        """Distribute publications and announcements."""
        parts: dict[Channel, list[Announcement | list[Publication]]] = {}
        for event in batch:
            channel = self._hub.channels.get(event.channel)
            if channel is None:
                continue
            of_channel = parts.setdefault(channel, [])
            if isinstance(event, Announcement):
                of_channel.append(event)
            elif of_channel and isinstance(of_channel[-1], list):
                of_channel[-1].append(event)
            else:
                of_channel.append([event])
        # A part alone is written at once, without a flush.
        touched: dict[Outbox, None] | None = {} if sum(map(len, parts.values())) > 1 else None
        for channel, of_channel in parts.items():
            for part in of_channel:
                if isinstance(part, Announcement):
                    await self._announce(channel, part, touched)
                else:
                    await self._advance(channel, part, touched)
        await self._flush(tuple(touched or ()))

    def _by_channel(
        self, publications: Sequence[Publication]
    ) -> list[tuple[Channel, Sequence[Publication]]]:
        """Publications by channel, in order within each; without channels that have no listener."""
        names: dict[str, list[Publication]] = {}
        for publication in publications:
            names.setdefault(publication.channel, []).append(publication)
        channels = self._hub.channels
        return [(channels[name], group) for name, group in names.items() if name in channels]

    async def _advance(
        self,
        channel: Channel,
        publications: Sequence[Publication],
        touched: dict[Outbox, None] | None = None,
    ) -> None:
        """Move the channel on; at a gap, end the live listeners that are `positioned`.

        Listeners that are joining or ahead have a position of their own, which the gap may not
        affect. With `touched` the chunks are only pushed, and each outbox is noted for one flush.
        """
        for run in channel.advance(publications):
            await self._deliver(channel, run, touched)

    async def _deliver(
        self, channel: Channel, run: Run, touched: dict[Outbox, None] | None
    ) -> None:
        """Encode once per codec, and give the chunks to every live listener of this moment.

        A listener that joins while this gives way to other tasks has the run in its history.
        """
        publications = run.publications
        disturbed = [one for one in channel.live() if one.positioned] if run.gap_before else ()
        caught_up = channel.catch_up(publications) if channel.ahead else None
        groups = [(codec, group.audience()) for codec, group in channel.listeners.items()]
        base, channel.base, version = channel.base, publications[-1], channel.version
        for publication in publications:
            if publication.binary:
                self._left_out.note(channel, publications)
                break
        for listener in caught_up.reached if caught_up is not None else ():
            channel.add(listener)
        # Nothing above waits, so every listener has its place before others come or leave.
        if run.gap_before:
            self._gaps += 1
            await self._lose_positions(disturbed)
        if caught_up is not None:
            await self._lose_positions(caught_up.lost)
            for codec, group, piece in caught_up.pieces:
                # Without a base, since fan-out gave these listeners none. They keep their codec:
                # not all of them get the run's last publication, which is the next base.
                chunks = await self._encoded(codec, piece, None)
                await self._give_group(channel, version, group.audience(), chunks, touched)
        for codec, audience in groups:
            if len(publications) > PART or codec.compresses:
                chunks = await self._encoded(codec, publications, base)
            else:
                chunks = self._encode(codec, publications, base)
            await self._give_group(channel, version, audience, chunks, touched)
            if codec.following is not codec:
                await self._recode(channel, audience, codec.following)

    async def _lose_positions(self, listeners: Sequence[Listener]) -> None:
        for number, listener in enumerate(listeners):
            if not listener.ended:
                try:
                    listener.lose_position()
                except Exception as error:  # the boundary of one listener
                    self._failures.note("fanout", error)
            if number % SLICE == 0:
                await self._give_way_if_due()

    async def _give_group(
        self,
        channel: Channel,
        version: int,
        audience: Audience,
        chunks: Chunks | None,
        touched: dict[Outbox, None] | None,
    ) -> None:
        """Give chunks to a group's listeners, except to those that leave meanwhile.

        `audience` has the group's listeners at this `version` of the channel. Without chunks the
        group misses these publications, and who has a position is told.
        """
        if chunks is None:
            await self._lose_positions([one for one in audience.listeners if one.positioned])
            return
        given = 0  # outboxes that are not counted yet
        for number, everybody in enumerate(audience.slices):
            # Listeners that left meanwhile must not hear the channel any more. Only this slice is
            # made anew: in a mass leave every slice finds that somebody has left.
            outboxes = everybody if channel.version == version else audience.present(number)
            if touched is None:
                for chunk in chunks.bytes:
                    send_to_all(outboxes, chunk)
            else:
                _push_to_all(outboxes, chunks, touched)
            given += len(outboxes)
            if perf_counter() >= self._turn_ends:
                self._count(given, chunks)
                given = 0
                await self._give_way()
        self._count(given, chunks)

    def _count(self, outboxes: int, chunks: Chunks) -> None:
        """Count what was given to so many outboxes: not for each slice, which costs more."""
        self._deliveries += outboxes * chunks.publications
        self._bytes_out += outboxes * chunks.size

    async def _recode(self, channel: Channel, audience: Audience, codec: Codec) -> None:
        """Move the listeners that are still there to the codec of the next publication."""
        for number, listener in enumerate(audience.listeners):
            if not listener.ended:
                channel.recode(listener, codec)
            if number % SLICE == 0:
                await self._give_way_if_due()

    async def _announce(
        self, channel: Channel, announcement: Announcement, touched: dict[Outbox, None] | None
    ) -> None:
        """Push a join or leave to the listeners that asked for joins and leaves."""
        chunks: dict[Codec, bytes] = {}  # empty if the codec failed
        audiences = [group.audience().listeners for group in channel.listeners.values()]
        for number, listener in enumerate(chain(*audiences, tuple(channel.ahead))):
            if listener.join_leave and not listener.ended:
                chunk = chunks.get(listener.codec)
                if chunk is None:
                    chunk = chunks[listener.codec] = self._say(listener.codec, announcement)
                if not chunk:
                    continue
                if touched is None:
                    listener.outbox.send(chunk)
                else:
                    listener.outbox.push(chunk)
                    touched[listener.outbox] = None
            if number % SLICE == 0:
                await self._give_way_if_due()

    async def _encoded(
        self, codec: Codec, run: Sequence[Publication], base: Publication | None
    ) -> Chunks | None:
        """As `_encode`; gives way while a long run is filtered, compressed or made Protobuf."""
        slow = codec.compresses or (len(run) > PART and (codec.format.binary or codec.tags))
        if not slow or len(run) == 1:
            return self._encode(codec, run, base)
        try:
            return await Chunks.in_parts(codec, run, base, self._give_way_if_due)
        except Exception as error:
            self._failures.note("fanout", error)
            return None

    def _encode(
        self, codec: Codec, run: Sequence[Publication], base: Publication | None
    ) -> Chunks | None:
        """Encode a run. The boundary of a codec: None, counted and logged, if it fails."""
        try:
            return Chunks.of(codec, run, base)
        except Exception as error:
            self._failures.note("fanout", error)
            return None

    def _say(self, codec: Codec, announcement: Announcement) -> bytes:
        try:
            return codec.announcement(announcement)
        except Exception as error:  # the boundary of a codec
            self._failures.note("fanout", error)
            return b""

    async def _flush(self, touched: Sequence[Outbox]) -> None:
        for start in range(0, len(touched), SLICE):
            for outbox in touched[start : start + SLICE]:
                outbox.flush()
            await self._give_way_if_due()

    async def _give_way_if_due(self) -> None:
        if perf_counter() >= self._turn_ends:
            await self._give_way()

    async def _give_way(self) -> None:
        """Give pings, accepts and REST calls a turn, because the time budget is used up."""
        await trio.lowlevel.checkpoint()
        self._turn_ends = perf_counter() + self._budget


def _push_to_all(outboxes: tuple[Outbox, ...], chunks: Chunks, touched: dict[Outbox, None]) -> None:
    for outbox in outboxes:
        for chunk in chunks.bytes:
            outbox.push(chunk)
    # Also outboxes in which a reply waits already: the reply's command may take long.
    touched.update(dict.fromkeys(outboxes))
