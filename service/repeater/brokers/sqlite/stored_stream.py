"""One stream of a durable history: what memory keeps of it, and where it is in the file."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from repeater.brokers.streams import Stream


class StoredStream(Stream):
    """A stream, and the places of its publications in the file."""

    __slots__ = ("ids", "known", "lifetimes", "number", "start")

    number: int
    """Its id in the file."""
    ids: array[int]
    """The rows of its publications from `start` on, oldest first."""
    start: int
    """How many of `ids` are freed: to take one away from the beginning each time is slow."""
    lifetimes: tuple[float, float]
    """Those that its row has."""
    known: bool
    """Whether an earlier process may have told its epoch."""

    @property
    def rows(self) -> Sequence[int]:
        """The rows of its publications, oldest first."""
        return self.ids[self.start :]
