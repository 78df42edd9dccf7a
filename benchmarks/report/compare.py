"""Two runs, before and after: what changed, and what is noise.

The rule, for each workload, server and metric:

1. Each round gives one value. A time or a rate is divided by the floor's value of the same round
   if the workload has a floor with that metric: the machine's speed cancels out. All
   further sums are of logarithms, so that twice and half weigh the same.
2. The noise is a standard deviation: of this series' own rounds in both runs, or of all servers'
   rounds in this workload together (three rounds alone say little), whichever is larger.
3. The allowance is the difference that the medians of two runs may have without a cause: that
   noise, times the part of it that a median of so many rounds keeps, times a factor. The factor is
   so large that comparing two runs of one program finds anything worse once in `ONE_IN`
   comparisons, for any number of rows. The allowance is never below `LEAST`, the effect of the
   layout of memory and of a core's clock on a run.
4. A change is real if the medians differ by more than the allowance and the ranges of the rounds
   do not overlap. Everything else is noise.

Events lost, doubled or out of order, and turns that failed, are not noise: one more is worse. Rows
are not comparable across processors, Pythons or plans, with fewer than two rounds, or if the load
generator was the limit (a metric of the server's CPU does not depend on the generator's core).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from benchmarks.model import Metric, Run, Series

ONE_IN: Final = 20
"""Of so many comparisons of a program with itself, one at most finds something worse."""
LEAST: Final = 0.03
"""The smallest relative difference that is ever called a change."""
_ROUNDS: Final = 2  # fewer have no range
_TIMED: Final = frozenset({"us", "ms", "s", "/s"})  # units that a slower machine changes
_FAULTS: Final = "events"
"""The unit of faults, which must never happen."""
_MUST_AGREE: Final = ("cpu", "cores", "python")
_MEDIAN: Final = math.pi / 2  # a median's variance against a mean's, of many normal values

Finding = Literal["better", "worse", "noise", "not comparable"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one server in one workload."""

    workload: str
    server: str
    title: str
    finding: Finding
    old: float | None = None
    """The median, divided by the floor if `floor` is not empty."""
    new: float | None = None
    floor: str = ""
    change: float | None = None
    """New divided by old."""
    allowance: float | None = None
    """A change is real from this factor on, or from its reciprocal down."""
    reason: str = ""
    """Why the row is not comparable, or what got worse if that is not a number."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, and the differences that a reader of the rows must know."""

    rows: Sequence[Row]
    differences: Sequence[str]
    """Differences of the machines and versions, and the parts that only one run has."""

    @property
    def worse(self) -> bool:
        """Whether any row is worse."""
        return any(row.finding == "worse" for row in self.rows)


class _Pair(msgspec.Struct, frozen=True):
    """One row before it is judged: the logarithms of both runs' rounds."""

    workload: str
    server: str
    metric: Metric
    old: Sequence[float]
    new: Sequence[float]
    floor: str
    reason: str


def compare(old: Run, new: Run) -> Comparison:
    """Judge every metric of every server that both runs measured."""
    apart = _apart(old, new)
    shared = [name for name in new.workloads if name in old.workloads]
    pairs = [pair for name in shared for pair in _pairs(old, new, name, apart)]
    factor = _factor(sum(not pair.reason for pair in pairs))
    pooled = _pooled(pairs)
    return Comparison(
        rows=[
            *(_judge(pair, pooled[pair.workload, pair.metric.title], factor) for pair in pairs),
            *(row for name in shared for row in _failures(old, new, name)),
        ],
        differences=_differences(old, new),
    )


def _judge(pair: _Pair, pooled: float, factor: float) -> Row:
    if not pair.old or not pair.new:
        return Row(
            workload=pair.workload,
            server=pair.server,
            title=pair.metric.title,
            finding="not comparable",
            reason=pair.reason,
        )
    if pair.metric.unit == _FAULTS:
        return _counted(pair)
    before, after = statistics.median(pair.old), statistics.median(pair.new)
    noise = max(pooled, _deviation(pair.old, pair.new))
    left = math.sqrt(_MEDIAN * (1 / len(pair.old) + 1 / len(pair.new)))
    allowance = max(math.log1p(LEAST), factor * noise * left)
    finding: Finding = "not comparable"
    if not pair.reason:
        finding = _finding(pair, after - before, allowance)
    return Row(
        workload=pair.workload,
        server=pair.server,
        title=pair.metric.title,
        finding=finding,
        old=math.exp(before),
        new=math.exp(after),
        floor=pair.floor,
        change=math.exp(after - before),
        allowance=math.exp(allowance),
        reason=pair.reason,
    )


def _counted(pair: _Pair) -> Row:
    """Judge faults by their worst round; their values are not logarithms."""
    before, after = max(pair.old), max(pair.new)
    finding: Finding = "better" if after < before else "worse" if after > before else "noise"
    return Row(
        workload=pair.workload,
        server=pair.server,
        title=pair.metric.title,
        finding="not comparable" if pair.reason else finding,
        old=before,
        new=after,
        reason=pair.reason,
    )


def _finding(pair: _Pair, change: float, allowance: float) -> Finding:
    overlap = min(pair.old) <= max(pair.new) and min(pair.new) <= max(pair.old)
    if overlap or abs(change) <= allowance:
        return "noise"
    return "better" if (change < 0) == (pair.metric.better == "lower") else "worse"


def _factor(rows: int) -> float:
    """Return a number of standard deviations: one-sided, the chance divided among all rows."""
    return statistics.NormalDist().inv_cdf(1 - 1 / ONE_IN / max(rows, 1))


def _deviation(*series: Sequence[float]) -> float:
    """Return the standard deviation within series, whose means may differ."""
    squares = sum((value - statistics.fmean(one)) ** 2 for one in series for value in one)
    freedom = sum(len(one) - 1 for one in series)
    return math.sqrt(squares / freedom) if freedom > 0 else 0.0


def _pooled(pairs: Sequence[_Pair]) -> Mapping[tuple[str, str], float]:
    together: dict[tuple[str, str], list[Sequence[float]]] = {}
    for pair in pairs:
        key = (pair.workload, pair.metric.title)
        together.setdefault(key, []).extend((pair.old, pair.new))
    return {key: _deviation(*series) for key, series in together.items()}


def _pairs(old: Run, new: Run, workload: str, apart: str) -> Iterator[_Pair]:
    task = new.workloads[workload]
    floors = old.floor(workload), new.floor(workload)
    for after in new.of(workload):
        before = old.one(workload, after.server)
        if before is None or not before.turns or not after.turns:
            continue
        for name in after.turns[0].values:
            metric = task.metric(name)
            if metric.better == "neither":
                continue
            floor = _floor(floors, after.server, name, metric)
            if floor is None and metric.unit in _TIMED and new.servers[after.server].floor:
                continue  # the floor only divides the others
            olds, news = (
                _summands(one.ratios(below, name) if below else one.values(name), metric)
                for one, below in zip((before, after), floor or (None, None), strict=True)
            )
            yield _Pair(
                workload,
                after.server,
                metric,
                olds,
                news,
                floor[1].server if floor else "",
                apart or _unfit(before, after, metric, olds, news),
            )


def _floor(
    floors: tuple[Series | None, Series | None], server: str, name: str, metric: Metric
) -> tuple[Series, Series] | None:
    """Return both runs' floor, if it is the same and has this metric."""
    old, new = floors
    if old is None or new is None or old.server != new.server or server == new.server:
        return None
    if metric.unit not in _TIMED or not (old.values(name) and new.values(name)):
        return None
    return old, new


def _unfit(
    old: Series, new: Series, metric: Metric, olds: Sequence[float], news: Sequence[float]
) -> str:
    if metric.unit == _FAULTS:
        return ""
    if min(len(olds), len(news)) < _ROUNDS:
        return f"fewer than {_ROUNDS} rounds, or with nothing to compare"
    limited = any(turn.bottleneck for one in (old, new) for turn in one.turns)
    if limited and metric.unit in _TIMED - {"us"}:
        return "the load generator was the limit"
    return ""


def _summands(values: Sequence[float], metric: Metric) -> list[float]:
    """Return logarithms, or for faults the numbers themselves."""
    if metric.unit == _FAULTS:
        return list(values)
    return [math.log(value) for value in values if value > 0]


def _failures(old: Run, new: Run, workload: str) -> Iterator[Row]:
    """A server that fails more often than before is worse, whatever its numbers."""
    for after in new.of(workload):
        before = old.one(workload, after.server)
        if before is None or not (before.turns or before.faults):
            continue
        if (share := _share(after)) != (was := _share(before)):
            yield Row(
                workload=workload,
                server=after.server,
                title="turns that failed",
                finding="worse" if share > was else "better",
                reason=f"{len(before.faults)} before, {len(after.faults)} now"
                + (f": {after.faults[0].splitlines()[0]}" if after.faults else ""),
            )


def _share(series: Series) -> float:
    return len(series.faults) / max(1, len(series.faults) + len(series.turns))


def _apart(old: Run, new: Run) -> str:
    if (old.plan == "quick") != (new.plan == "quick"):
        return "one of the runs is only a quick look"
    differing = [key for key in _MUST_AGREE if old.machine.get(key) != new.machine.get(key)]
    return f"another {' and '.join(differing)}" if differing else ""


def _differences(old: Run, new: Run) -> list[str]:
    found = [
        f"{key}: {old.machine.get(key, '?')} -> {new.machine.get(key, '?')}"
        for key in sorted(old.machine.keys() | new.machine.keys())
        if old.machine.get(key) != new.machine.get(key)
    ]
    found += [
        f"{name}: version {old.servers[name].version} -> {server.version}"
        for name, server in new.servers.items()
        if name in old.servers and old.servers[name].version != server.version
    ]
    for title, one, other in (("old", old, new), ("new", new, old)):
        measured = {(series.workload, series.server) for series in other.series if series.turns}
        only = [
            f"{series.workload}/{series.server}"
            for series in one.series
            if series.turns and (series.workload, series.server) not in measured
        ]
        if only:
            found.append(f"only the {title} run measured {', '.join(only)}")
    for name in new.workloads:
        floors = old.floor(name), new.floor(name)
        if floors[0] and floors[1] and floors[0].server == floors[1].server:
            medians = [floor.median("cpu_us") for floor in floors if floor]
            if medians[0] and medians[1] and abs(math.log(medians[1] / medians[0])) > LEAST:
                found.append(
                    f"{name}: the floor itself costs {medians[1] / medians[0]:.2f} times what it "
                    "did; ratios to it are compared"
                )
    return found
