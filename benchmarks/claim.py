"""A claim: one number that Repeater must reach, and how a run judges it.

A ratio or a difference is calculated within each round, and the median of the rounds counts: the
machine is shared, and two servers of the same round ran in the same minute.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from benchmarks.model import METRICS, Metric, Run, Series, Verdict


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One number that Repeater must reach, and where the number comes from."""

    workload: str
    metric: str
    limit: float
    side: Literal["at most", "at least"]
    origin: str
    server: str = "repeater"
    against: str = ""
    """The peer whose value of the same round divides ours; empty: the value is not divided."""
    over: Sequence[str] = ()
    """The peers whose values of the same round are subtracted from ours."""
    worst: bool = False
    """Whether the worst round counts instead of the median, e.g. for lost events."""

    def text(self, metric: Metric) -> str:
        """Return the claim in words."""
        of = "" if self.server == "repeater" else f" ({self.server})"
        title = f"{self.workload}{of}: {metric.title}"
        if self.over:
            return f"{title}, over {' and '.join(self.over)}"
        return f"{title}, times {self.against}" if self.against else title

    def judge(self, run: Run) -> Verdict:
        """Judge the claim by this run; a claim that was not measured has not passed."""
        ours = run.one(self.workload, self.server)
        values = self._values(run, ours)
        metric = {**METRICS, **run.workloads[self.workload].metrics}[self.metric]
        value = self._of_rounds(values) if values else None
        passed = value is not None and (
            value <= self.limit if self.side == "at most" else value >= self.limit
        )
        return Verdict(
            claim=self.text(metric),
            workload=self.workload,
            value=value,
            limit=self.limit,
            side=self.side,
            unit="x" if self.against else metric.unit,
            passed=passed and not (ours and ours.faults),
            origin=self.origin,
            detail="; ".join(ours.faults) if ours else "",
        )

    def _of_rounds(self, values: Sequence[float]) -> float:
        if not self.worst:
            return statistics.median(values)
        return max(values) if self.side == "at most" else min(values)

    def _values(self, run: Run, ours: Series | None) -> Sequence[float]:
        """Return the value of each round that has all the servers of the claim."""
        names = [self.against] if self.against else self.over
        theirs = [run.one(self.workload, name) for name in names]
        if ours is None or any(one is None for one in theirs):
            return []
        if self.against:
            return [value for one in theirs if one for value in ours.ratios(one, self.metric)]
        return ours.differences([one for one in theirs if one], self.metric)
