"""The default broker: streams in this process's memory, which end with the process.

Numbering, history and hand-over happen without an await between them, so a channel's order in
history and in fan-out is the same. A restart makes new epochs: from a new epoch a client learns
that numbering began again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from repeater.brokers.contract import BrokerStatistics, EventSink, Outcome, Page
from repeater.brokers.first_results import FirstResults
from repeater.brokers.source_rows import SourceRow, SourceRows
from repeater.brokers.streams import Streams
from repeater.options import ChannelOptions
from repeater.publication import Announcement, Event, Publication, StreamPosition, weight_of

_SWEEP_INTERVAL: Final = 1.0  # seconds between two looks for what expired


class _ClosedSink:
    """Refuses everything: the sink of a broker that takes nothing more."""

    async def wait_room(self) -> None:
        raise trio.ClosedResourceError

    def check_room(self) -> None:
        raise trio.ClosedResourceError

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        raise trio.ClosedResourceError


_CLOSED: Final = _ClosedSink()


class MemoryBroker:
    """Implements `Broker` for one process. Lives inside `open_node`; ended with it."""

    def __init__(
        self,
        *,
        idempotency_ttl: float = 300.0,
        idempotency_bytes: int = 67_108_864,
        history_bytes: int = 268_435_456,
        history_channels: int = 250_000,
    ) -> None:
        """Bound what is kept.

        Args:
            idempotency_ttl: Seconds for which a key's first result is kept (section 9.1).
            idempotency_bytes: The most bytes of these results; beyond, the oldest are forgotten.
            history_bytes: The most bytes of all channels' publications; beyond, those of the
                channel that was published to least recently are dropped, oldest first.
            history_channels: The most channels whose offset and epoch are kept; beyond, the one
                that was published to least recently is forgotten.
        """
        self._intake: EventSink | None = None
        self._running = trio.Event()
        self._streams = Streams(byte_limit=history_bytes, limit=history_channels)
        self._results = FirstResults(ttl=idempotency_ttl, byte_limit=idempotency_bytes)
        self._rows = SourceRows()

    async def run(self, intake: EventSink) -> None:
        """Hand events to `intake`, and forget what expired, until cancelled."""
        self._intake = intake
        self._running.set()
        while True:
            await trio.sleep(_SWEEP_INTERVAL)
            await self._streams.sweep()
            await self._results.sweep()

    async def finish(self) -> None:
        """Take nothing more. What was taken is handed on already."""
        self._intake = _CLOSED
        self._running.set()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Outcome:
        """Number, keep and hand on one publication, as `Broker.submit`.

        A repeated idempotency key publishes nothing and returns the first result. A `version` that
        is not newer than the stream's publishes nothing and returns the stream's top.

        Raises:
            trio.WouldBlock: the intake is full; nothing was published.
            DeposedError, AfterError: as `Broker.submit`.
        """
        if self._intake is None:
            raise trio.WouldBlock
        self._intake.check_room()
        if row is not None:
            return self._take_row(row, publication, options, idempotency_key, skip_history)
        if idempotency_key:
            return self._take_once(publication, options, idempotency_key, skip_history)
        return self._take(publication, options, skip_history)

    def _take_row(
        self,
        row: SourceRow,
        publication: Publication,
        options: ChannelOptions,
        idempotency_key: str,
        skip_history: bool,
    ) -> Outcome:
        known = self._rows.find(row)
        if known is not None:
            return known[0]
        position = self._take_once(publication, options, idempotency_key, skip_history)
        self._rows.keep(row, position)
        return position

    def _take_once(
        self,
        publication: Publication,
        options: ChannelOptions,
        idempotency_key: str,
        skip_history: bool,
    ) -> Outcome:
        if not idempotency_key:
            return self._take(publication, options, skip_history)
        key = (publication.channel, idempotency_key)
        known = self._results.find(key)
        if known is not None:
            return known[0]
        position = self._take(publication, options, skip_history)
        self._results.keep(key, position)
        return position

    def known_rows(self, source: str) -> Sequence[str]:
        """The rows that are remembered; see `Broker.known_rows`."""
        return self._rows.names(source)

    def forget_rows(self, source: str, names: Sequence[str]) -> None:
        """Forget rows; see `Broker.forget_rows`."""
        self._rows.forget(source, names)

    async def wait_room(self) -> None:
        """Wait until the intake has room for one more event; see `Broker.wait_room`."""
        if self._intake is None:
            await self._running.wait()
        assert self._intake is not None
        await self._intake.wait_room()

    def _take(
        self, publication: Publication, options: ChannelOptions, skip_history: bool
    ) -> StreamPosition | None:
        """Number, keep and hand on; only return the top if the stream's version is as new."""
        assert self._intake is not None
        weight = weight_of(publication)
        if options.history_size <= 0:
            self._streams.pass_by(publication.channel)
        elif not skip_history:
            now = trio.current_time()
            stream = self._streams.find(publication.channel, now)
            if publication.version and stream is not None and stream.outdates(publication):
                return stream.position
            publication = self._streams.append(stream, publication, options, weight, now)
        self._intake.put_nowait(publication, weight)
        return publication.position

    def announce(self, announcement: Announcement) -> None:
        """Hand an announcement on; raises `trio.WouldBlock` while the intake is full."""
        if self._intake is None:
            raise trio.WouldBlock
        self._intake.check_room()
        self._intake.put_nowait(announcement)

    def hold(self, channel: str) -> None:
        """Do nothing: every event of this process comes to fan-out."""

    def release(self, channel: str) -> None:
        """Do nothing, as `hold`."""

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Page:
        """Publications since a position, and the top; see `Broker.history`."""
        return self._streams.page(channel, since=since, limit=limit, reverse=reverse)

    def remove_history(self, channel: str) -> None:
        """Forget a channel's publications; its top and epoch stay."""
        self._streams.clear(channel)

    def outage(self) -> str:
        """Always empty: this broker works inside this process."""
        return ""

    def statistics(self) -> BrokerStatistics:
        """A snapshot of what is kept, and of what the bounds made it forget early."""
        streams, results = self._streams, self._results
        return BrokerStatistics(
            streams=len(streams),
            history_bytes=streams.bytes,
            dropped_publications=streams.dropped,
            forgotten_streams=streams.forgotten,
            results=len(results),
            dropped_results=results.dropped,
        )
