"""The results of publishes with an idempotency key, and what has to follow of them in the file."""

from __future__ import annotations

from repeater.brokers.first_results import FirstResults
from repeater.brokers.sqlite.clock import LifetimeClock
from repeater.brokers.sqlite.records import Changes, StoredResult
from repeater.publication import StreamPosition


class StoredResults(FirstResults):
    """The first results of one file. Lives inside the broker, which writes `changes` to the file.

    A result comes in after the commit that has its row. What goes again, by its age or by the
    bound, is gone here at once; its row is removed by one of the next commits.
    """

    def __init__(self, *, ttl: float, byte_limit: int, clock: LifetimeClock) -> None:
        """As `FirstResults`, on the clock of what is stored."""
        super().__init__(ttl=ttl, byte_limit=byte_limit, now=clock)
        self._clock = clock
        self._gone: list[tuple[str, str]] = []
        self._unrecorded: list[StoredResult] = []

    def keep_unrecorded(self, key: tuple[str, str], result: StreamPosition | None) -> None:
        """Keep a result whose row could not be written; a later commit writes it."""
        until = self.end_of_life() + self._clock.steps
        self._unrecorded.append(StoredResult(*key, result, until))
        self.keep(key, result)

    def give_changes(self, changes: Changes) -> None:
        """Add what has to follow in the file to the changes of a commit."""
        changes.forgotten_results, self._gone = self._gone, []
        changes.results, self._unrecorded = self._unrecorded, []

    def restore_changes(self, taken: Changes) -> None:
        """Take back what a commit that failed should have carried to the file."""
        self._gone = taken.forgotten_results + self._gone
        self._unrecorded = taken.results + self._unrecorded

    def gone(self, key: tuple[str, str]) -> None:
        """Have the row removed, too."""
        self._gone.append(key)
