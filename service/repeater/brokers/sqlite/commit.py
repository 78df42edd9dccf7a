"""What one commit does: numbers the submissions that wait, and says what the file has to keep.

Pure decisions on the index and the results, without a file and without a wait. A submission is
numbered when its commit begins and not when it is submitted: a commit that fails leaves no numbers
behind that would have to be taken back. The index is changed by `apply` only, after the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time_ns
from typing import TYPE_CHECKING

import msgspec

from repeater.brokers.receipts import Receipt
from repeater.brokers.source_rows import AfterError, DeposedError, SourceRow
from repeater.brokers.sqlite.records import Changes, StoredResult, StreamRecord, body_of
from repeater.brokers.sqlite.rows import RowChanges, StoredRows
from repeater.publication import Announcement, Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.brokers.contract import Outcome
    from repeater.brokers.sqlite.index import StoredStreams
    from repeater.brokers.sqlite.results import StoredResults
    from repeater.brokers.sqlite.stored_stream import StoredStream
    from repeater.errors import BrokerError
    from repeater.options import ChannelOptions


class Submission(msgspec.Struct, gc=False):
    """One publication on its way into the file, and what its commit makes of it."""

    publication: Publication
    """With its number and time as soon as it has them."""
    options: ChannelOptions
    key: str
    kept: bool
    """Whether it comes into a history."""
    weight: int
    receipt: Receipt[Outcome]
    source_row: SourceRow | None = None
    outcome: Outcome = None
    stream: int = 0
    row: int = 0
    """Its place in the file; 0 if it has none."""
    published: bool = True
    """False where the key or the version says that nothing is to be published."""
    first: bool = False
    """Whether the outcome is the first result of the key."""
    certain: bool = False
    """Whether the outcome was committed before."""
    error: DeposedError | AfterError | None = None
    """Why its row is not published."""

    @property
    def channel(self) -> str:
        """The publication's."""
        return self.publication.channel


class Removal(msgspec.Struct):
    """The removal of a channel's publications, in its turn."""

    channel: str
    receipt: Receipt[None]
    weight: int = 0


class RowRemoval(msgspec.Struct):
    """Rows that are to be forgotten, in their turn."""

    source: str
    names: Sequence[str]
    receipt: Receipt[None]
    weight: int = 0


class Told(msgspec.Struct):
    """An announcement behind submissions of its channel; nothing of it is kept."""

    announcement: Announcement
    weight: int = 0

    @property
    def channel(self) -> str:
        """The announcement's."""
        return self.announcement.channel


Work = Submission | Removal | RowRemoval | Told
Handed = tuple[Publication | Announcement, int]
"""An event that is to be handed on, and its weight."""


class _Numbers(msgspec.Struct):
    """How far a stream is after the submissions so far."""

    number: int
    epoch: str
    top: int
    version: tuple[str, int]
    lifetimes: tuple[float, float]


class Commit:
    """The work of one transaction. Lives inside the broker's task for as long as that lasts."""

    def __init__(
        self,
        index: StoredStreams,
        results: StoredResults,
        rows: StoredRows,
        follow: Changes,
        work: Sequence[Work],
    ) -> None:
        """Number the work, in its order, behind what has to follow in the file anyway.

        `follow` stays as it is.
        """
        self.changes = Changes(
            forgotten_results=follow.forgotten_results,
            streams=[*follow.streams],
            results=[*follow.results],
            freed=[*follow.freed],
            forgotten_streams=follow.forgotten_streams,
            meta=follow.meta,
        )
        self._index = index
        self._results = results
        self._work = work
        self._source_rows = RowChanges(rows)
        self._rows = index.next_rows(len(work))
        self._time = time_ns() // 1_000_000
        self._numbers: dict[str, _Numbers] = {}
        self._keys: dict[tuple[str, str], Outcome] = {}
        for one in work:
            if type(one) is Submission:
                if one.source_row is not None:
                    self._number_row(one, one.source_row)
                elif one.key:
                    self._number_once(one)
                elif one.kept:
                    self._number(one)
            elif type(one) is Removal:
                self._remove(one.channel)
            elif type(one) is RowRemoval:
                self._source_rows.forget(one.source, one.names)
        self._source_rows.give_changes(self.changes)

    def _number_row(self, one: Submission, row: SourceRow) -> None:
        """Number a submission that is a row, unless the row is known or may not be published."""
        try:
            known = self._source_rows.find(row)
        except (DeposedError, AfterError) as error:
            one.error, one.published = error, False
            return
        if known is not None:
            one.outcome, one.published = known[0], False
            return
        if one.key:
            self._number_once(one)
        elif one.kept:
            self._number(one)
        self._source_rows.keep(row, one.outcome)

    def _number_once(self, one: Submission) -> None:
        """Number a submission with a key, unless the key has a result."""
        key = one.publication.channel, one.key
        known = self._results.find(key)
        if known is not None:
            one.outcome, one.published, one.certain = known[0], False, True
        elif key in self._keys:
            one.outcome, one.published = self._keys[key], False
        else:
            if one.kept:
                self._number(one)
            one.first = True
            self._keys[key] = one.outcome
            until = self._index.stored_time(self._results.end_of_life())
            self.changes.results.append(StoredResult(*key, one.outcome, until))

    def _number(self, one: Submission) -> None:
        """Give a publication its number, time and row, unless its version is too old."""
        found = one.publication
        at = self._numbers.get(found.channel) or self._begin(found.channel, one.options)
        if found.version:
            epoch, version = at.version
            if found.version <= version and found.version_epoch == epoch:
                one.outcome, one.published = StreamPosition(at.top, at.epoch), False
                return
            at.version = (found.version_epoch, found.version)
        top = at.top = at.top + 1
        # By hand: `replace` takes twice the time.
        numbered = one.publication = Publication(
            found.channel,
            found.data,
            top,
            at.epoch,
            found.tags,
            found.info,
            found.delta,
            found.version,
            found.version_epoch,
            self._time,
            found.binary,
        )
        one.stream, one.row = at.number, next(self._rows)
        one.outcome = StreamPosition(top, at.epoch)
        self.changes.publications.append((one.row, at.number, top, body_of(numbered)))

    def _begin(self, channel: str, options: ChannelOptions) -> _Numbers:
        """The numbers of a stream; a new one gets its row."""
        stream = self._index.find_stored(channel)
        if stream is not None:
            return self._go_on(stream)
        lifetimes = options.history_ttl, options.history_meta_ttl
        number, epoch = self._index.next_number(), self._index.epoch(channel)
        at = self._numbers[channel] = _Numbers(number, epoch, 0, ("", 0), lifetimes)
        self._record(channel, at)
        return at

    def _go_on(self, stream: StoredStream) -> _Numbers:
        at = self._numbers[stream.channel] = _Numbers(
            stream.number, stream.epoch, stream.top, stream.version, stream.lifetimes
        )
        return at

    def _record(self, channel: str, at: _Numbers) -> None:
        """Have the row of a stream say how far it is."""
        epoch, version = at.version
        record = StreamRecord(
            at.number,
            channel,
            self._index.stored_epoch(at.epoch),
            at.top,
            version,
            epoch,
            self._index.stored_time(),
            *at.lifetimes,
        )
        self.changes.streams.append(record)

    def _remove(self, channel: str) -> None:
        """Free all rows of a channel in this transaction: a removal that is answered lasts."""
        stream, at = self._index.find_stored(channel), self._numbers.get(channel)
        if at is None:
            if stream is None:
                return
            at = self._go_on(stream)
        if stream is not None and stream.number == at.number:
            self.changes.freed += stream.rows
        self.changes.freed += [one[0] for one in self.changes.publications if one[1] == at.number]
        self._record(channel, at)

    def apply(self) -> Sequence[Handed]:
        """Make the index follow, and settle the receipts; return what is to be handed on."""
        handed_on: list[Handed] = []
        index, now = self._index, self._index.moment()
        streams: dict[StoredStream, None] = {}
        self._source_rows.apply(self.changes)
        for one in self._work:
            if type(one) is not Submission:
                self._apply_other(one, handed_on)
                continue
            if one.published:
                if one.row:
                    stream = index.keep_row(
                        one.publication, one.options, one.weight, now, one.stream, one.row
                    )
                    streams[stream] = None
                elif one.options.history_size <= 0:
                    index.pass_by(one.publication.channel)
                handed_on.append((one.publication, one.weight))
            if one.first:
                self._results.keep((one.channel, one.key), one.outcome)
            one.receipt.settle(one.error or one.outcome)
        for stream in streams:
            index.free(stream)
        return handed_on

    def _apply_other(self, one: Work, handed_on: list[Handed]) -> None:
        if type(one) is Told:
            handed_on.append((one.announcement, one.weight))
        elif type(one) is Removal:
            self._index.clear(one.channel)
            one.receipt.settle(None)
        elif type(one) is RowRemoval:
            one.receipt.settle(None)

    def fail(self, error: BrokerError) -> Sequence[Handed]:
        """Fail what needs the file, and nothing of it happened; return what is to be handed on."""
        handed_on: list[Handed] = []
        for one in self._work:
            if type(one) is Told:
                handed_on.append((one.announcement, one.weight))
            elif type(one) is Removal or type(one) is RowRemoval:
                one.receipt.settle(error)
            elif type(one) is Submission:
                self._fail_submission(one, error, handed_on)
        return handed_on

    def _fail_submission(
        self, one: Submission, error: BrokerError, handed_on: list[Handed]
    ) -> None:
        if one.source_row is not None:  # To remember it is to publish it once.
            one.receipt.settle(one.error or error)
        elif one.certain:
            one.receipt.settle(one.outcome)
        elif one.row or not one.published:
            one.receipt.settle(error)
        else:  # In no history: at most its result had to be written, which can wait.
            if one.options.history_size <= 0:
                self._index.pass_by(one.channel)
            handed_on.append((one.publication, one.weight))
            if one.first:
                self._results.keep_unrecorded((one.channel, one.key), one.outcome)
            one.receipt.settle(one.outcome)
