"""The broker whose streams outlive the process: an SQLite file, with the memory as its index.

Rule: nothing is acknowledged, readable or handed to fan-out before it is committed. While one
commit runs in a worker thread, the next submissions gather: the slower the disk, the more of them
share a commit, so the rate hardly depends on the disk.

A commit that fails fails its submissions, and nothing of them happened. Reading, live subscribers
and channels without history go on. The next submission tries again, at most once in a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from repeater.brokers.contract import BrokerStatistics
from repeater.brokers.receipts import Receipt
from repeater.brokers.sqlite.commit import Commit, Removal, Submission, Told, Work
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.window import Window
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import weight_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.brokers.contract import EventSink, Outcome, Page
    from repeater.brokers.first_results import FirstResults
    from repeater.brokers.receipts import Answer
    from repeater.brokers.sqlite.index import StoredStreams
    from repeater.brokers.sqlite.journal import Journal
    from repeater.options import ChannelOptions
    from repeater.publication import Announcement, Publication, StreamPosition

Result = TypeVar("Result")

_log = get_logger("history")

_SWEEP_INTERVAL: Final = 1.0  # seconds between two looks for what expired
_RETRY: Final = 1.0  # seconds between two tries while the disk fails
_UNDER_WAY: Final = 8_192  # submissions that wait for their commit
_BYTES_UNDER_WAY: Final = 8 * 1024 * 1024


class SQLiteBroker:
    """Implements `Broker` on one file. Made by `open_sqlite_broker`, which closes the file."""

    def __init__(self, journal: Journal, index: StoredStreams, results: FirstResults) -> None:
        self._journal = journal
        self._index = index
        self._results = results
        self._intake: EventSink | None = None
        self._running = trio.Event()
        self._window = Window(_UNDER_WAY, _BYTES_UNDER_WAY)
        self._pending: list[Work] = []
        self._woken = trio.Event()
        self._one = trio.CapacityLimiter(1)
        # Submissions under way by channel: what needs no commit waits behind them.
        self._busy: Counter[str] = Counter()
        self._outage = ""
        self._failed_at = 0.0

    async def run(self, intake: EventSink) -> None:
        """Commit what is submitted, and free what expired, until cancelled."""
        self._intake = intake
        self._running.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                while True:
                    await self._woken.wait()
                    self._woken = trio.Event()
                    while self._pending or self._index.changed:
                        work, self._pending = self._pending, []
                        await self._commit(work)
        finally:
            self._window.close()
            for one in self._pending:
                if not isinstance(one, Told):
                    one.receipt.settle(BrokerError("the broker has ended"))

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> Answer[Outcome]:
        """Have a publication committed; at once where nothing is to be kept of it."""
        intake = self._intake
        if intake is None:
            raise trio.WouldBlock
        intake.check_room()
        channel, weight = publication.channel, weight_of(publication)
        kept = options.history_size > 0 and not skip_history
        if not (kept or idempotency_key or channel in self._busy):
            if options.history_size <= 0:
                self._index.pass_by(channel)
            intake.put_nowait(publication, weight)
            return None
        if self._outage and trio.current_time() < self._failed_at + _RETRY:
            raise BrokerError(self._outage)
        self._window.check()
        receipt: Receipt[Outcome] = Receipt()
        self._begin(
            Submission(publication, options, idempotency_key, skip_history, weight, receipt)
        )
        return receipt

    def _begin(self, work: Work) -> None:
        self._window.take(work.weight)
        self._busy[work.channel] += 1
        self._pending.append(work)
        self._woken.set()

    async def _commit(self, work: Sequence[Work]) -> None:
        """Write one transaction, then make everything else follow, or fail all of it."""
        follow = self._index.changes()
        commit = Commit(self._index, self._results, follow)
        for one in work:
            commit.add(one)
        try:
            # Not to be cancelled: what was written must be told.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(
                    self._journal.write, commit.changes, limiter=self._one
                )
        except JournalError as error:
            self._index.restore_changes(follow)
            self._fail(str(error))
            handed_on: Sequence[Publication | Announcement] = commit.fail(BrokerError(self._outage))
        else:
            self._recover()
            handed_on = commit.apply()
        for one in work:
            self._end(one)
        for event in handed_on:
            await self._hand_on(event)

    async def _hand_on(self, event: Publication | Announcement) -> None:
        assert self._intake is not None
        try:
            self._intake.put_nowait(event)
        except trio.WouldBlock:
            await self._intake.wait_room()
            self._intake.put_nowait(event)

    def _end(self, work: Work) -> None:
        """Give back the place of a submission that was answered."""
        channel = work.channel
        self._window.give_back(work.weight)
        self._busy[channel] -= 1
        if not self._busy[channel]:
            del self._busy[channel]

    def _fail(self, reason: str) -> None:
        if not self._outage:
            _log.error("history cannot be written", reason=reason)
        self._outage = f"history: {reason}"
        self._failed_at = trio.current_time()

    def _recover(self) -> None:
        if self._outage:
            _log.info("history is written again")
            self._outage = ""

    async def _sweep(self) -> None:
        """Free what expired; it is gone from the index at once, and from the file soon."""
        while True:
            await trio.sleep(_SWEEP_INTERVAL)
            await self._index.sweep()
            await self._results.sweep()
            if self._index.changed:
                self._woken.set()

    async def wait_room(self) -> None:
        """Wait until a submission fits into the window and into the intake."""
        if self._intake is None:
            await self._running.wait()
        assert self._intake is not None
        await self._window.wait()
        await self._intake.wait_room()

    def announce(self, announcement: Announcement) -> None:
        """Hand an announcement on, behind what is under way in its channel; it is kept nowhere."""
        if self._intake is None:
            raise trio.WouldBlock
        self._intake.check_room()
        if announcement.channel in self._busy:
            self._window.check()
            self._begin(Told(announcement, weight_of(announcement)))
        else:
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
        """What is committed of a channel; see `Broker.history`."""
        if since is not None:
            self._index.heed_position(channel, since)
        return self._index.page(channel, since=since, limit=limit, reverse=reverse)

    def remove_history(self, channel: str) -> Receipt[None]:
        """Forget a channel's publications, behind what was submitted before."""
        receipt: Receipt[None] = Receipt()
        self._begin(Removal(channel, receipt))
        return receipt

    async def with_journal(self, call: Callable[[Journal], Result]) -> Result:
        """Run a call on the open file in the thread that writes, between two commits.

        A cancelled caller waits for the end of the call.

        Raises:
            BrokerError: the call failed.
        """
        try:
            return await trio.to_thread.run_sync(call, self._journal, limiter=self._one)
        except JournalError as error:
            raise BrokerError(f"history: {error}") from None

    def outage(self) -> str:
        """Why nothing can be committed now; empty while it can."""
        return self._outage

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
        )
