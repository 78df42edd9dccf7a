"""Counts of workers, added up so that no sum ever falls when a worker ends.

A worker that is restarted counts from zero again. What its predecessors of the same number were
last seen to have counted is added to it. What a killed worker counted after it was last seen is
lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from repeater.brokers.control import Member

Key = TypeVar("Key", bound=Hashable)
Count = TypeVar("Count", int, float)


class Totals(Generic[Key, Count]):
    """Counts by their keys, for each number of a worker. Lives inside the supervisor."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, Mapping[Key, Count]]] = {}
        self._kept: dict[int, dict[Key, Count]] = {}

    def see(self, worker: Member, counts: Mapping[Key, Count]) -> None:
        """Take what a worker has counted since its start."""
        self._seen[worker.id] = worker.worker, counts

    def forget(self, worker: Member) -> None:
        """Keep what a worker that has ended was last seen to have counted."""
        _number, counts = self._seen.pop(worker.id, (0, {}))
        _add(self._kept.setdefault(worker.worker, {}), counts)

    def by_worker(self) -> dict[int, dict[Key, Count]]:
        """What the workers of each number have counted, the present ones and the earlier ones."""
        found: dict[int, dict[Key, Count]] = {
            number: dict(counts) for number, counts in self._kept.items()
        }
        for number, counts in self._seen.values():
            _add(found.setdefault(number, {}), counts)
        return found

    def total(self) -> dict[Key, Count]:
        """What all workers have counted together."""
        found: dict[Key, Count] = {}
        for counts in self.by_worker().values():
            _add(found, counts)
        return found


def _add(sums: dict[Key, Count], counts: Mapping[Key, Count]) -> None:
    for key, count in counts.items():
        sums[key] = sums[key] + count if key in sums else count
