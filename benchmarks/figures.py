"""A measured figure and its target. Values only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class Target:
    """What a figure must reach, and where the number comes from."""

    limit: float
    side: Literal["at most", "at least"]
    origin: str

    def met_by(self, value: float) -> bool:
        return value <= self.limit if self.side == "at most" else value >= self.limit


@attrs.frozen(kw_only=True)
class Figure:
    """One line of the report."""

    name: str
    what: str
    value: float
    unit: str
    target: Target | None
    """None where the figure is stated and nothing is promised."""
    floor: float | None = None
    ratio: float | None = None
    alternative: Target | None = None
    """A target for `ratio` that counts as well: reached either way, it passes."""
    detail: dict[str, float | int | str | list[float]] = attrs.field(factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the target is met, if there is one."""
        if self.target is None:
            return True
        if self.target.met_by(self.value):
            return True
        return (
            self.alternative is not None
            and self.ratio is not None
            and self.alternative.met_by(self.ratio)
        )


@attrs.frozen(kw_only=True)
class Plan:
    """How much is measured: everything, or scaled down for a look."""

    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(len(ordered) * percent) // 100) - 1)]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)
