"""The one task that writes: takes what was submitted, commits it, and has everything follow.

While one commit runs in a worker thread, the next submissions gather: the slower the disk, the more
of them share a commit, so the rate hardly depends on the disk.

A commit that fails fails its submissions, and nothing of them happened. Then the disk is tried
again once a second, by this task alone; until it can be written, what needs the file is refused at
once. What needs no file goes on in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from repeater.brokers.contract import JournalStatistics
from repeater.brokers.sqlite.commit import Commit, Handed, Told, Work
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.journal import Journal, Sizes
from repeater.brokers.window import Window
from repeater.errors import BrokerError
from repeater.histogram import SECONDS, Histogram
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.brokers.contract import EventSink
    from repeater.brokers.sqlite.clock import LifetimeClock
    from repeater.brokers.sqlite.index import StoredStreams
    from repeater.brokers.sqlite.records import Changes
    from repeater.brokers.sqlite.results import StoredResults
    from repeater.brokers.sqlite.rows import StoredRows
    from repeater.brokers.sqlite.writer import Writer

_log = get_logger("history")

_HOUSE_KEEPING: Final = 1.0  # seconds between two looks for what expired
_RETRY: Final = 0.8  # the same while the disk fails: a second after it works, so does publishing
_HANGING: Final = 5.0  # seconds after which a commit that still runs is an outage
_LAST_COMMIT: Final = 5.0  # seconds for a commit that runs when the broker ends
_MANY: Final = 16  # submissions of one pass of the loop: then the next one may bring more, too
_QUIET: Final = 2  # passes that bring few: in one of them a stream waits for its next bytes
_ENOUGH: Final = 1_024  # submissions that a commit does not wait for more of
_UNDER_WAY: Final = 8_192  # submissions that wait for their commit
_BYTES_UNDER_WAY: Final = 8 * 1024 * 1024

Result = TypeVar("Result")


class Committer:
    """Lives inside the broker; its `run` is the broker's."""

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
        """Drop the oldest publications when the file has more than `disk_limit` bytes."""
        self._journal = journal
        self._index = index
        self._results = results
        self._rows = rows
        self._clock = clock
        self._writer = writer
        self._disk_limit = disk_limit
        self._intake: EventSink | None = None
        self.window = Window(_UNDER_WAY, _BYTES_UNDER_WAY)
        self._pending: list[Work] = []
        self._taken: Sequence[Work] = ()
        # Their channels: what needs no commit waits behind them.
        self._pending_channels: set[str] = set()
        self._taken_channels: set[str] = set()
        self._woken = trio.Event()
        self._keeping_house = False
        self._patience = trio.CancelScope()
        self._ends_at = inf
        self._outage = ""
        self._full = False
        self._since = 0.0  # when the oldest of the pending came
        self._taken_since = 0.0  # the same for those of the commit that runs
        self._commit_began = 0.0
        self._sizes = Sizes(0, 0)
        self._commits = Histogram(SECONDS)
        self._failures = 0

    def check_disk(self) -> None:
        """Refuse what needs the file while it cannot be written.

        Raises:
            BrokerError: see above.
        """
        if self._outage:
            raise BrokerError(self._outage)

    def begin(self, work: Work, channel: str) -> None:
        """Take a submission that the window let through, of this channel."""
        self.window.take(work.weight)
        if not self._pending:
            self._since = trio.current_time()
            self._woken.set()
        self._pending.append(work)
        self._pending_channels.add(channel)

    def is_busy(self, channel: str) -> bool:
        """Whether something of a channel is under way."""
        return channel in self._pending_channels or channel in self._taken_channels

    async def run(self, intake: EventSink) -> None:
        """Commit what is submitted, and free what expired, until cancelled."""
        self._intake = intake
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._lose_patience)
                while True:  # until cancelled
                    await self._woken.wait()
                    self._woken = trio.Event()
                    while self._pending or self._keeping_house:
                        await self._gather()
                        await self._turn()
        finally:
            self.window.close()
            for one in (*self._taken, *self._pending):
                if not isinstance(one, Told) and not one.receipt.settled:
                    one.receipt.settle(BrokerError("the broker has ended"))

    async def finish(self) -> None:
        """Take nothing more, and wait until all that was taken is answered and handed on."""
        self.window.close()
        await self.window.wait_empty()

    async def _lose_patience(self) -> None:
        """Once the broker is cancelled, wait a little for the commit that runs, not for ever."""
        try:
            await trio.sleep_forever()
        finally:
            self._ends_at = self._patience.deadline = trio.current_time() + _LAST_COMMIT

    async def _keep_time(self) -> None:
        """Once a second forget what expired, and have the file follow."""
        while True:
            await trio.sleep(_RETRY if self._outage else _HOUSE_KEEPING)
            self._clock.follow()
            await self._index.sweep()
            await self._results.sweep()
            self._keeping_house = True
            self._woken.set()

    async def _gather(self) -> None:
        """Wait while passes of the loop bring many submissions, until they are enough.

        A commit costs as much as some 30 submissions, and a stream brings 100 in its turn. A few
        publishers that wait for their answers do not wait for others.
        """
        seen, quiet = len(self._pending), 0
        while _MANY <= seen < _ENOUGH and quiet < _QUIET:
            await trio.lowlevel.checkpoint()
            quiet = 0 if len(self._pending) >= seen + _MANY else quiet + 1
            seen = len(self._pending)

    async def _turn(self) -> None:
        """Commit what waits; while the disk fails, try it at the house-keeping's pace only."""
        keeping_house, self._keeping_house = self._keeping_house, False
        self._taken, self._pending = self._pending, []
        self._taken_channels, self._pending_channels = self._pending_channels, set()
        self._taken_since = self._since
        if self._outage and keeping_house:
            await self._try_again()
        handed_on = await self._commit(self._taken)
        self._index.renew_epochs()
        await self._hand_on(handed_on)
        taken, self._taken = self._taken, ()
        self._taken_channels = set()
        self.window.give_back(sum(one.weight for one in taken), len(taken))
        if keeping_house and not self._outage:
            await self._keep_house()

    async def _commit(self, work: Sequence[Work]) -> Sequence[Handed]:
        """Write one transaction, then make everything else follow, or fail all of it."""
        follow = self._following(len(work))
        commit = Commit(self._index, self._results, self._rows, follow, work)
        if commit.changes and not self._outage:
            began = perf_counter()
            try:
                await self._in_thread(lambda: self._journal.write(commit.changes))
            except JournalError as error:
                self._fail(error)
            else:
                self._commits.observe(perf_counter() - began)
        if commit.changes and self._outage:
            self._index.restore_changes(follow)
            self._results.restore_changes(follow)
            return commit.fail(BrokerError(self._outage))
        return commit.apply()

    def _following(self, publications: int) -> Changes:
        changes = self._index.changes(publications)
        self._results.give_changes(changes)
        return changes

    async def _try_again(self) -> None:
        """Find out whether the disk can be written again."""
        follow, was_full = self._following(0), self._full
        try:
            await self._in_thread(lambda: self._journal.recover(follow, was_full=was_full))
        except JournalError as error:
            self._index.restore_changes(follow)
            self._results.restore_changes(follow)
            self._fail(error)
        else:
            _log.info("history is written again")
            self._outage, self._full = "", False

    async def _keep_house(self) -> None:
        """Give room back to the disk, and keep the limit of the file."""
        try:
            self._sizes = await self._in_thread(self._journal.keep_house)
        except JournalError as error:
            self._fail(error)
            return
        kept, all_rows = self._index.rows, self._index.rows + self._index.freed_rows
        # What the file has when all that is to be freed is freed.
        expected = self._sizes.used * kept // max(1, all_rows)
        if expected > self._disk_limit:
            self._index.drop(kept - kept * self._disk_limit // expected + 1)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        """Run a call on the file, and give a disk that does not answer up in the end."""
        self._commit_began = trio.current_time()
        self._patience = trio.CancelScope(shield=True, deadline=self._ends_at)
        try:
            return await self._writer.run(call, self._patience)
        finally:
            self._commit_began = 0.0

    async def _hand_on(self, events: Sequence[Handed]) -> None:
        """Give what is committed to fan-out; a checkpoint only when it waits for room."""
        assert self._intake is not None
        put = self._intake.put_nowait
        with suppress(trio.ClosedResourceError):  # Nobody is left to hear it.
            for event, weight in events:
                try:
                    put(event, weight)
                except trio.WouldBlock:
                    await self._intake.wait_room()
                    put(event, weight)

    def _fail(self, error: JournalError) -> None:
        self._failures += 1
        if not self._outage:
            _log.error("history cannot be written", reason=str(error))
        self._outage = f"history: {error}"
        self._full = self._full or error.full

    def outage(self) -> str:
        """Why nothing can be committed now; empty while it can."""
        began = self._commit_began
        if not self._outage and began and trio.current_time() > began + _HANGING:
            return "history: the disk does not answer"
        return self._outage

    def statistics(self) -> JournalStatistics:
        """A snapshot."""
        since = self._taken_since if self._taken else self._since if self._pending else None
        return JournalStatistics(
            commit_seconds=self._commits.statistics(),
            failures=self._failures,
            file_bytes=self._sizes.file,
            used_bytes=self._sizes.used,
            waiting=self.window.count,
            lag=0.0 if since is None else trio.current_time() - since,
        )
