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
from repeater.brokers.sqlite.records import (
    Changes,
    StoredPublication,
    StoredResult,
    StreamRecord,
    body_of,
)
from repeater.errors import BrokerError
from repeater.publication import Announcement, Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.brokers.contract import Outcome
    from repeater.brokers.first_results import FirstResults
    from repeater.brokers.sqlite.index import StoredStreams
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


class Commit:
    """The work of one transaction. Lives inside the broker's task for as long as that lasts."""

    def __init__(self, index: StoredStreams, results: FirstResults, changes: Changes) -> None:
        """Begin with what has to follow in the file anyway."""
        self.changes = changes
        self._index = index
        self._results = results
        self._numbers: dict[str, _Numbers] = {}
        self._keys: dict[tuple[str, str], Outcome] = {}
        # In the order of submission: what is done once the transaction is committed.
        self._steps: list[_Done | Removal | Told] = []

    def add(self, work: Work) -> None:
        """Number one submission behind those before it, or note what is done in its turn."""
        if not isinstance(work, Submission):
            self._steps.append(work)
            return
        publication, key = work.publication, (work.publication.channel, work.key)
        if work.key:
            known = (self._keys[key],) if key in self._keys else self._results.find(key)
            if known is not None:
                self._steps.append(_Done(work, known[0]))
                return
        done = self._number(work, publication)
        if work.key:
            self._keys[key] = done.outcome
            self.changes.results.append(
                StoredResult(*key, done.outcome, self._results.end_of_life())
            )
            done = msgspec.structs.replace(done, key=key)
        self._steps.append(done)

    def _number(self, work: Submission, publication: Publication) -> _Done:
        if work.options.history_size <= 0 or work.skip_history:
            return _Done(work, None, publication)
        at = self._numbers.get(publication.channel) or self._find(publication.channel, work.options)
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
        self.changes.publications.append(
            StoredPublication(row, at.number, at.top, body_of(numbered))
        )
        return _Done(work, numbered.position, numbered, number=at.number, row=row)

    def _find(self, channel: str, options: ChannelOptions) -> _Numbers:
        """The numbers of a stream; a new one gets its row."""
        stream = self._index.find_stored(channel)
        if stream is not None:
            at = _Numbers(stream.number, stream.epoch, stream.top, stream.version)
        else:
            at = _Numbers(self._index.next_number(), self._index.epoch(channel), 0, ("", 0))
            self.changes.streams.append(
                StreamRecord(
                    at.number,
                    channel,
                    self._index.stored_epoch(at.epoch),
                    0,
                    0,
                    "",
                    self._index.now(),
                    options.history_ttl,
                    options.history_meta_ttl,
                )
            )
        self._numbers[channel] = at
        return at

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

    def fail(self, error: BrokerError) -> Sequence[Announcement]:
        """Tell everybody that nothing happened; return the announcements, which need no disk."""
        handed_on: list[Announcement] = []
        for step in self._steps:
            if isinstance(step, Told):
                handed_on.append(step.announcement)
            else:
                receipt = step.receipt if isinstance(step, Removal) else step.work.receipt
                receipt.settle(error)
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
