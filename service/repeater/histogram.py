"""A histogram that costs the measured path one search and two additions.

It holds plain numbers; exporters read a snapshot. The bounds are fixed when it is made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import msgspec

SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
"""From one small batch to the publish timeout's default."""

EVENTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)
"""Up to the intake's default limit."""


class HistogramStatistics(msgspec.Struct, frozen=True):
    """What was observed so far."""

    bounds: tuple[float, ...]
    """The buckets' upper bounds, ascending. A value equal to a bound counts in that bucket."""

    counts: tuple[int, ...]
    """Observations in each bucket. There is one more bucket than bounds, for larger values."""

    total: float
    """The sum of all observed values."""

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)


class Histogram:
    """Counts of values by size. Lives inside what it measures."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that was seen so many `times`."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def statistics(self) -> HistogramStatistics:
        """A snapshot."""
        return HistogramStatistics(self._bounds, tuple(self._counts), self._total)
