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
from repeater.brokers.sqlite.records import Changes, StoredResult, StreamRecord, body_of
from repeater.publication import Announcement, Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.brokers.contract import Outcome
    from repeater.brokers.sqlite.index import StoredStream, StoredStreams
    from repeater.brokers.sqlite.results import StoredResults
    from repeater.errors import BrokerError
    from repeater.options import ChannelOptions


class Submission(msgspec.Struct):
    """One publication on its way into the file."""

    publication: Publication
    options: ChannelOptions
    key: str
    skip_history: bool
    weight: int
    receipt: Receipt[Outcome]

    @property
    def channel(self) -> str:
        """The publication's."""
        return self.publication.channel


class Removal(msgspec.Struct):
    """The removal of a channel's publications, in its turn."""

    channel: str
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


Work = Submission | Removal | Told


class _Numbers(msgspec.Struct):
    """How far a stream is after the submissions so far."""

    number: int
    epoch: str
    top: int
    version: tuple[str, int]
    lifetimes: tuple[float, float]


class Commit:
    """The work of one transaction. Lives inside the broker's task for as long as that lasts."""

    def __init__(self, index: StoredStreams, results: StoredResults, follow: Changes) -> None:
        """Begin with what has to follow in the file anyway; `follow` stays as it is."""
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
        self._numbers: dict[str, _Numbers] = {}
        self._keys: dict[tuple[str, str], Outcome] = {}
        # In the order of submission: what is done once the transaction is committed.
        self._steps: list[_Done | Removal | Told] = []

    def add(self, work: Work) -> None:
        """Number one submission behind those before it, or note what is done in its turn."""
        if isinstance(work, Submission):
            self._steps.append(self._add_submission(work))
            return
        if isinstance(work, Removal):
            self._remove(work.channel)
        self._steps.append(work)

    def _add_submission(self, work: Submission) -> _Done:
        publication = work.publication
        if not work.key:
            return self._number(work, publication)
        key = publication.channel, work.key
        if key in self._keys:
            return _Done(work, self._keys[key])
        known = self._results.find(key)
        if known is not None:
            return _Done(work, known[0], certain=True)
        done = self._number(work, publication)
        self._keys[key] = done.outcome
        until = self._index.stored_time(self._results.end_of_life())
        self.changes.results.append(StoredResult(*key, done.outcome, until))
        return msgspec.structs.replace(done, key=key)

    def _number(self, work: Submission, publication: Publication) -> _Done:
        if work.options.history_size <= 0 or work.skip_history:
            return _Done(work, None, publication)
        at = self._numbers.get(publication.channel) or self._begin(
            publication.channel, work.options
        )
        epoch, version = at.version
        if 0 < publication.version <= version and publication.version_epoch == epoch:
            return _Done(work, StreamPosition(at.top, at.epoch))
        at.top += 1
        if publication.version:
            at.version = (publication.version_epoch, publication.version)
        numbered = msgspec.structs.replace(
            publication, offset=at.top, epoch=at.epoch, time=time_ns() // 1_000_000
        )
        row = self._index.next_row()
        self.changes.publications.append((row, at.number, at.top, body_of(numbered)))
        return _Done(work, numbered.position, numbered, number=at.number, row=row)

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
            self.changes.freed += stream.ids
        self.changes.freed += [one[0] for one in self.changes.publications if one[1] == at.number]
        self._record(channel, at)

    def apply(self) -> Sequence[Publication | Announcement]:
        """Make the index follow, and settle the receipts; return what is to be handed on."""
        handed_on: list[Publication | Announcement] = []
        for step in self._steps:
            if isinstance(step, Told):
                handed_on.append(step.announcement)
                continue
            if isinstance(step, Removal):
                self._index.clear(step.channel)
                step.receipt.settle(None)
                continue
            if step.publication is not None:
                self._keep(step, step.publication)
                handed_on.append(step.publication)
            if step.key is not None:
                self._results.keep(step.key, step.outcome)
            step.work.receipt.settle(step.outcome)
        return handed_on

    def _keep(self, step: _Done, publication: Publication) -> None:
        work = step.work
        if step.row:
            self._index.keep_row(
                publication, work.options, work.weight, number=step.number, row=step.row
            )
        elif work.options.history_size <= 0:
            self._index.pass_by(publication.channel)

    def fail(self, error: BrokerError) -> Sequence[Publication | Announcement]:
        """Fail what needs the file, and nothing of it happened; return what is to be handed on."""
        handed_on: list[Publication | Announcement] = []
        for step in self._steps:
            if isinstance(step, Told):
                handed_on.append(step.announcement)
            elif isinstance(step, Removal):
                step.receipt.settle(error)
            elif step.certain:
                step.work.receipt.settle(step.outcome)
            elif step.publication is None or step.row:
                step.work.receipt.settle(error)
            else:  # In no history: at most its result had to be written, which can wait.
                self._keep(step, step.publication)
                handed_on.append(step.publication)
                if step.key is not None:
                    self._results.keep_unrecorded(step.key, step.outcome)
                step.work.receipt.settle(step.outcome)
        return handed_on


class _Done(msgspec.Struct, frozen=True):
    """What becomes of one submission."""

    work: Submission
    outcome: Outcome
    publication: Publication | None = None
    """Handed on; None where nothing is published."""
    key: tuple[str, str] | None = None
    """Set where the outcome is a first result."""
    number: int = 0
    row: int = 0
    certain: bool = False
    """Whether the outcome was committed before."""
