"""The streams of a durable history in memory, and what has to follow in the file.

Readers are served from here alone. A publication comes in after its commit. What goes out again, by
a bound or by its age, is gone here at once; its rows are freed by one of the next commits.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from repeater.brokers.epochs import Epochs
from repeater.brokers.sqlite.clock import LifetimeClock
from repeater.brokers.sqlite.records import (
    Changes,
    StoredPublication,
    StreamRecord,
    publication_of,
)
from repeater.brokers.sqlite.stored_stream import StoredStream
from repeater.brokers.streams import Stream, Streams
from repeater.options import ChannelOptions
from repeater.publication import Publication, StreamPosition, weight_of

_MOST_FREED: Final = 5_000  # rows freed by a commit of few publications, so that it stays short
_FREED_TOGETHER: Final = 256  # rows worth the pages that are written to free any
_MOST_AHEAD: Final = 10_000  # channels that get another epoch behind one commit
_FREED_AT_ONCE: Final = 64  # rows that are taken from the beginning of a stream's at a time
_SEPARATOR: Final = "."


def suffix_of(generation: int) -> str:
    """The end of every epoch that is told in this generation of the file."""
    return f"{_SEPARATOR}{generation}" if generation else ""


class StoredStreams(Streams):
    """The index of one file. Lives inside the broker, which writes `changes` to the file."""

    _make = StoredStream

    def __init__(
        self,
        *,
        byte_limit: int,
        limit: int,
        clock: LifetimeClock,
        epochs: Epochs,
    ) -> None:
        """As `Streams`, on the clock of what is stored."""
        super().__init__(byte_limit=byte_limit, limit=limit, now=clock, epochs=epochs)
        self._clock = clock
        self._epochs = epochs
        self._began = clock()
        self._ordered = False  # whether what is loaded so far is in the order of its times
        self._numbers = 0
        self._rows = 0
        self._freed: list[int] = []
        self._forgotten: list[int] = []
        self._unrecorded: dict[StoredStream, None] = {}
        self._ahead: dict[str, str] = {}  # epochs that somebody has seen more of, by channel
        self._committing = False
        self.rows = 0
        """The publications that are kept."""

    @property
    def freed_rows(self) -> int:
        """Rows that no stream has any more, and that the file has still."""
        return len(self._freed)

    def next_number(self) -> int:
        """The id of one more stream."""
        self._numbers += 1
        return self._numbers

    def next_rows(self, count: int) -> Iterator[int]:
        """The ids of so many more publications; one that is not used is nobody's."""
        first = self._rows + 1
        self._rows += count
        return iter(range(first, first + count))

    def epoch(self, channel: str) -> str:
        """The epoch of a stream that begins now."""
        return self.top(channel).epoch

    def stored_time(self, moment: float | None = None) -> float:
        """A moment, by default this one, as the file has it: by the machine's clock."""
        return (self._now() if moment is None else moment) + self._clock.steps

    def stored_epoch(self, epoch: str) -> str:
        """An epoch as the file has it: without the generation, which is the file's as a whole."""
        return epoch.partition(_SEPARATOR)[0]

    def find_stored(self, channel: str) -> StoredStream | None:
        """As `find`."""
        stream = self.find(channel, self._now())
        assert stream is None or isinstance(stream, StoredStream)
        return stream

    def heed_position(self, channel: str, since: StreamPosition) -> None:
        """Give a channel another epoch if somebody has seen more of it than the file has.

        Then the file is an older copy, and others who have seen as much must be told, too. Once for
        each channel and start: a stranger may invent a position.
        """
        stream = self.find_stored(channel)
        at = self.top(channel) if stream is None else stream.position
        if since.epoch != at.epoch or since.offset <= at.offset:
            return
        known = self._epochs.may_be_known(channel) if stream is None else stream.known
        if known and len(self._ahead) < _MOST_AHEAD:
            self._ahead[channel] = at.epoch
            if not self._committing:
                self.renew_epochs()

    def renew_epochs(self) -> None:
        """Give the channels that `heed_position` found another epoch.

        Not while a commit is under way, which has numbered publications under the old one: the
        committer calls this when it is over. Until then a position that is ahead stays ahead.
        """
        self._committing = False
        ahead, self._ahead = self._ahead, {}
        for channel, epoch in ahead.items():
            stream = self.find_stored(channel)
            if stream is not None and stream.epoch == epoch:
                self._renew_epoch(stream)
            elif stream is None and self.top(channel).epoch == epoch:
                self._epochs.renew(channel)

    def moment(self) -> float:
        """The time now, for what one commit keeps."""
        return self._now()

    def keep_row(
        self,
        numbered: Publication,
        options: ChannelOptions,
        weight: int,
        now: float,
        number: int,
        row: int,
    ) -> StoredStream:
        """Keep a publication that was committed as this row of the stream with this number.

        Returns its stream, for `free` after the last row of a commit.
        """
        found = self._streams.get(numbered.channel)
        if found is not None and found.epoch != numbered.epoch:
            self._forget(found)  # It began while the commit was under way, for another reason.
            found = None
        stream: StoredStream = self.keep(found, numbered, options, weight, now)  # type: ignore[assignment]
        if found is None:
            stream.number, stream.ids, stream.start = number, array("q"), 0
            stream.known = self._epochs.may_be_known(stream.channel)
            stream.lifetimes = options.history_ttl, options.history_meta_ttl
        stream.ids.append(row)
        self.rows += 1
        return stream

    def restore(self, records: Iterable[StreamRecord]) -> dict[int, StoredStream]:
        """Take in the streams of a file, without their publications; returns them by number."""
        streams: dict[int, StoredStream] = {}
        shared: dict[tuple[float, float], ChannelOptions] = {}
        for one in records:
            lifetimes = one.history_ttl, one.meta_ttl
            options = shared.get(lifetimes)
            if options is None:
                options = shared[lifetimes] = ChannelOptions(
                    history_ttl=one.history_ttl, history_meta_ttl=one.meta_ttl
                )
            order = self._order(options)
            stream = StoredStream(one.channel, one.epoch + self._epochs.suffix, options, order)
            stream.number, stream.ids, stream.known = one.id, array("q"), True
            stream.start = 0
            stream.lifetimes = lifetimes
            stream.top, stream.version = one.top, (one.version_epoch, one.version)
            stream.published = min(one.published, self._began)
            order.bare[one.channel] = stream
            self._streams[one.channel] = streams[one.id] = stream
            self._numbers = max(self._numbers, one.id)
        return streams

    def restore_rows(
        self, streams: Mapping[int, StoredStream], rows: Sequence[StoredPublication]
    ) -> None:
        """Take in publications of the file, in the order of the rows. `streams` are by number.

        Rows of a stream that the file does not have any more are freed.
        """
        times: dict[int, int] = {}  # One commit gave many rows one time: they share the object.
        for row, number, offset, body in rows:
            stream = streams.get(number)
            if stream is None:
                self._freed.append(row)
                continue
            publication = publication_of(stream.channel, stream.epoch, offset, body, times)
            (stream.publications or self._fill(stream)).append(publication)
            stream.ids.append(row)
            if offset > stream.top:
                stream.top = offset
            if publication.version:
                stream.version = (publication.version_epoch, publication.version)
            self.rows += 1
            self.bytes += weight_of(publication)
            if self.bytes > self._byte_limit:
                self._make_room(stream)
        if rows:
            self._rows = rows[-1][0]

    def _make_room(self, newest: StoredStream) -> None:
        """Drop the oldest of what is loaded so far, as if it had just been published."""
        if not self._ordered:
            self._ordered = True
            self._order_all()
        self._date(newest)
        newest.order.full.move_to_end(newest.channel)
        self._drop_oldest(newest)

    def settle(self) -> None:
        """Bring the loaded streams into the order in which they were published to."""
        self._order_all()
        while len(self._streams) > self._limit:
            self._forget_oldest()

    def _order_all(self) -> None:
        for order in self._orders.values():
            for stream in order.full.values():
                assert isinstance(stream, StoredStream)
                self._date(stream)
            for streams in (order.full, order.bare):
                for stream in sorted(streams.values(), key=lambda one: one.published):
                    streams.move_to_end(stream.channel)

    def _date(self, stream: StoredStream) -> None:
        """Note when a loaded stream was published to: with its newest publication."""
        if stream.publications:
            time = stream.publications[-1].time / 1_000
            # A time ahead of the clock was given by a clock that went wrong.
            stream.published = min(max(stream.published, time), self._began)

    def _renew_epoch(self, stream: StoredStream) -> None:
        self._epochs.renew(stream.channel)
        stream.epoch = self.epoch(stream.channel)
        for number, publication in enumerate(stream.publications or ()):
            assert stream.publications is not None
            stream.publications[number] = msgspec.structs.replace(publication, epoch=stream.epoch)
        stream.known = False
        self._unrecorded[stream] = None

    def drop(self, count: int) -> None:
        """Drop so many publications before their time, as the bound in bytes does."""
        for _ in range(count):
            self._drop_first()

    def changes(self, publications: int = 0) -> Changes:
        """Take what has to follow in the file, as much of it as belongs into one commit.

        The commit begins with it, and ends with `renew_epochs`.

        A commit that brings publications writes the end of the table, and to free rows writes its
        beginning, too: so it waits until some hundred can be freed. Then it frees as many as it
        brings and more, so that what is to be freed never gathers.
        """
        self._committing = True
        few = publications and len(self._freed) < _FREED_TOGETHER
        most = 0 if few else max(_MOST_FREED, 2 * publications)
        freed, self._freed = self._freed[:most], self._freed[most:]
        forgotten, self._forgotten = self._forgotten, []
        unrecorded, self._unrecorded = self._unrecorded, {}
        return Changes(
            streams=[self.record(one) for one in unrecorded],
            freed=freed,
            forgotten_streams=forgotten,
            meta=self._epochs.changes(),
        )

    def restore_changes(self, taken: Changes) -> None:
        """Take back what a commit that failed should have carried to the file."""
        self._freed = taken.freed + self._freed
        self._forgotten = taken.forgotten_streams + self._forgotten
        for record in taken.streams:
            stream = self._streams.get(record.channel)
            if isinstance(stream, StoredStream) and stream.number == record.id:
                self._unrecorded[stream] = None
        self._epochs.restore_changes(taken.meta)

    def record(self, stream: StoredStream) -> StreamRecord:
        """The row of a stream as it is now."""
        return StreamRecord(
            stream.number,
            stream.channel,
            self.stored_epoch(stream.epoch),
            stream.top,
            stream.version[1],
            stream.version[0],
            self.stored_time(stream.published),
            stream.options.history_ttl,
            stream.options.history_meta_ttl,
        )

    def free(self, stream: StoredStream) -> None:
        """Note the rows of the publications that have gone from the beginning of a stream."""
        ids, start = stream.ids, stream.start
        gone = len(ids) - start - len(stream.publications or ())
        if gone > 0:
            self._freed += ids[start : start + gone]
            self.rows -= gone
            stream.start = start = start + gone
            if start > _FREED_AT_ONCE and 2 * start > len(ids):
                del ids[:start]
                stream.start = 0

    def _shortened(self, stream: Stream) -> None:
        assert isinstance(stream, StoredStream)
        self.free(stream)
        lifetimes = stream.options.history_ttl, stream.options.history_meta_ttl
        if stream.lifetimes != lifetimes:
            stream.lifetimes = lifetimes
            self._unrecorded[stream] = None

    def _clear(self, stream: Stream) -> None:
        super()._clear(stream)
        assert isinstance(stream, StoredStream)
        if len(stream.ids) > stream.start:
            self.free(stream)
            self._unrecorded[stream] = None  # Its numbers followed from rows that go now.

    def _forget(self, stream: Stream) -> None:
        super()._forget(stream)
        assert isinstance(stream, StoredStream)
        self._unrecorded.pop(stream, None)
        self._forgotten.append(stream.number)
