"""The broker whose streams outlive the process: an SQLite file, with the memory as its index.

Rule: nothing is acknowledged, readable or handed to fan-out before it is committed. Reading, live
subscribers and channels without history go on while the disk cannot be written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from repeater.brokers.contract import BrokerStatistics
from repeater.brokers.receipts import Receipt
from repeater.brokers.source_rows import SourceRow
from repeater.brokers.sqlite.commit import Removal, RowRemoval, Submission, Told
from repeater.brokers.sqlite.committer import Committer
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.journal import Journal
from repeater.errors import BrokerError
from repeater.publication import weight_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.brokers.contract import EventSink, Outcome, Page
    from repeater.brokers.receipts import Answer
    from repeater.brokers.sqlite.clock import LifetimeClock
    from repeater.brokers.sqlite.index import StoredStreams
    from repeater.brokers.sqlite.results import StoredResults
    from repeater.brokers.sqlite.rows import StoredRows
    from repeater.brokers.sqlite.writer import Writer
    from repeater.options import ChannelOptions
    from repeater.publication import Announcement, Publication, StreamPosition

Result = TypeVar("Result")


class SQLiteBroker:
    """Implements `Broker` on one file. Made by `open_sqlite_broker`, which closes the file."""

    def __init__(
        self,
        journal: Journal,
        index: StoredStreams,
        results: StoredResults,
        rows: StoredRows,
        clock: LifetimeClock,
        writer: Writer,
        disk_limit: int,
    ) -> None:
        self._journal = journal
        self._index = index
        self._results = results
        self._rows = rows
        self._committer = Committer(journal, index, results, rows, clock, writer, disk_limit)
        self._writer = writer
        self._intake: EventSink | None = None
        self._running = trio.Event()
        self._finished = False

    async def run(self, intake: EventSink) -> None:
        """Commit what is submitted, and free what expired, until cancelled."""
        self._intake = intake
        self._running.set()
        await self._committer.run(intake)

    async def finish(self) -> None:
        """Take nothing more, and commit and hand on what was taken; see `Broker.finish`."""
        self._finished = True
        self._running.set()
        await self._committer.finish()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        """Have a publication committed; at once where nothing is to be kept of it."""
        intake = self._check_room()
        committer = self._committer
        channel, weight = publication.channel, weight_of(publication)
        kept = options.history_size > 0 and not skip_history
        written = kept or row is not None
        if not (written or idempotency_key or committer.is_busy(channel)):
            if options.history_size <= 0:
                self._index.pass_by(channel)
            intake.put_nowait(publication, weight)
            return None
        if written:
            committer.check_disk()
        committer.window.check()
        receipt: Receipt[Outcome] = Receipt()
        committer.begin(
            Submission(publication, options, idempotency_key, kept, weight, receipt, row), channel
        )
        return receipt

    def _check_room(self) -> EventSink:
        if self._finished:
            raise trio.ClosedResourceError
        if self._intake is None:
            raise trio.WouldBlock
        self._intake.check_room()
        return self._intake

    def known_rows(self, source: str) -> Sequence[str]:
        """The rows that are committed; see `Broker.known_rows`."""
        return self._rows.names(source)

    def forget_rows(self, source: str, names: Sequence[str]) -> Receipt[None]:
        """Forget rows, behind what was submitted before.

        Raises:
            BrokerError: the disk cannot be written, or the broker has ended.
        """
        self._check_writes()
        receipt: Receipt[None] = Receipt()
        self._committer.begin(RowRemoval(source, names, receipt), "")
        return receipt

    async def wait_room(self) -> None:
        """Wait until a submission fits into the window and into the intake."""
        if self._intake is None:
            await self._running.wait()
        await self._committer.window.wait()
        assert self._intake is not None
        await self._intake.wait_room()

    def announce(self, announcement: Announcement) -> None:
        """Hand an announcement on, behind what is under way in its channel; it is kept nowhere."""
        intake = self._check_room()
        if self._committer.is_busy(announcement.channel):
            self._committer.window.check()
            self._committer.begin(Told(announcement, weight_of(announcement)), announcement.channel)
        else:
            intake.put_nowait(announcement)

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
        """What is committed of a channel; see `Broker.history`."""
        if since is not None and not reverse:  # Backwards, it says nothing of what was seen.
            self._index.heed_position(channel, since)
        return self._index.page(channel, since=since, limit=limit, reverse=reverse)

    def remove_history(self, channel: str) -> Receipt[None]:
        """Forget a channel's publications, behind what was submitted before.

        Raises:
            BrokerError: the disk cannot be written, or the broker has ended.
        """
        self._check_writes()
        receipt: Receipt[None] = Receipt()
        self._committer.begin(Removal(channel, receipt), channel)
        return receipt

    def _check_writes(self) -> None:
        if self._finished:
            raise BrokerError("the broker has ended")
        self._committer.check_disk()

    async def with_journal(self, call: Callable[[Journal], Result]) -> Result:
        """Run a call on the open file in the thread that writes, between two commits.

        A cancelled caller waits for the end of a call that has begun.

        Raises:
            BrokerError: the call failed.
        """
        try:
            return await self._writer.run(lambda: call(self._journal))
        except JournalError as error:
            raise BrokerError(f"history: {error}") from None

    def outage(self) -> str:
        """Why nothing can be committed now; empty while it can."""
        return self._committer.outage()

    def statistics(self) -> BrokerStatistics:
        """A snapshot of what is kept, and of what the bounds made it forget early."""
        index, results = self._index, self._results
        return BrokerStatistics(
            streams=len(index),
            history_bytes=index.bytes,
            dropped_publications=index.dropped,
            forgotten_streams=index.forgotten,
            results=len(results),
            dropped_results=results.dropped,
            journal=self._committer.statistics(),
        )
