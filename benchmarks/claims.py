"""What Repeater claims of itself, judged in every run that measured it.

A claim about a ratio is formed within each round, and the median of the rounds counts: the machine
is shared, and two servers of one round had the same minute.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final, Literal

import attrs

from benchmarks.model import METRICS, Run, Series, Verdict

_PROTOTYPE: Final = (
    "a Trio prototype that writes straight from the repeater task measured 1.15 to 1.25 x floor "
    "on a 2-core machine (8.0-8.9 us against 6.8-7.7 us)"
)


@attrs.frozen(kw_only=True)
class Claim:
    """One number that must be reached, and where it comes from."""

    workload: str
    metric: str
    limit: float
    side: Literal["at most", "at least"]
    origin: str
    server: str = "repeater"
    against: str = ""
    """The peer whose value of the same round divides it; empty for the number itself."""

    @property
    def text(self) -> str:
        """What is claimed, in words."""
        of = "" if self.server == "repeater" else f" ({self.server})"
        title = f"{self.workload}{of}: {METRICS[self.metric].title}"
        return f"{title}, times {self.against}" if self.against else title

    def judge(self, run: Run) -> Verdict:
        """Whether this run bears it out; not measured is not passed."""
        ours = run.one(self.workload, self.server)
        theirs = run.one(self.workload, self.against) if self.against else None
        values = _values(ours, theirs, self.metric, relative=bool(self.against))
        value = statistics.median(values) if values else None
        passed = value is not None and (
            value <= self.limit if self.side == "at most" else value >= self.limit
        )
        return Verdict(
            claim=self.text,
            workload=self.workload,
            value=value,
            limit=self.limit,
            side=self.side,
            unit="x" if self.against else METRICS[self.metric].unit,
            passed=passed and not (ours and ours.faults),
            origin=self.origin,
            detail="; ".join(ours.faults) if ours else "",
        )


def _values(
    ours: Series | None, theirs: Series | None, metric: str, *, relative: bool
) -> list[float]:
    if ours is None:
        return []
    if not relative:
        return ours.values(metric)
    return [] if theirs is None else ours.ratios(theirs, metric)


def _fanout(workload: str, limit: float, origin: str, server: str = "repeater") -> Claim:
    return Claim(
        workload=workload,
        metric="cpu_us",
        limit=limit,
        side="at most",
        origin=origin,
        server=server,
        against="floor",
    )


CLAIMS: Final[Sequence[Claim]] = (
    _fanout("fanout-1000", 1.15, _PROTOTYPE),
    _fanout("fanout-9000", 1.15, _PROTOTYPE),
)


def judge(run: Run) -> None:
    """Put a verdict on each claim whose workload was run into the document."""
    measured = {series.workload for series in run.series}
    run.verdicts = [claim.judge(run) for claim in CLAIMS if claim.workload in measured]
