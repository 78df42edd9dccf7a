"""The content of one workload's table, for a terminal or a page.

The order: floors first, then Repeater, its variants, then the peers by the workload's main metric,
which is the first that its turns have. Medians of the rounds count; the least and the most of them
stand beside. A ratio to the floor is formed within each round.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from benchmarks.model import BOTTLENECK, Metric, Run, Series
from benchmarks.report.numbers import number, spread

REPEATER: Final = "repeater"
_LONGEST: Final = 240  # characters of a fault: the first line of a crash, not all of it

Group = Literal["floor", "repeater", "variant", "peer"]
_ORDER: Final[Sequence[Group]] = ("floor", "repeater", "variant", "peer")


class Cell(msgspec.Struct, frozen=True):
    """One number with its range over the rounds."""

    median: float
    low: float
    high: float
    best: bool = False
    """Whether it is the best median of the usable servers without failed turns."""

    @property
    def text(self) -> str:
        return number(self.median)

    @property
    def range(self) -> str:
        return spread(self.low, self.high)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One server."""

    server: str
    title: str
    group: Group
    cells: Sequence[Cell | None]
    """One for each metric of the summary."""
    ratio: Cell | None
    generator: float
    """The most that the load generator used of its core in one of the turns."""
    marked: str
    """A dagger if the generator was the bottleneck of any turn."""
    failed: bool
    """Whether a turn failed; the numbers are those of the other turns."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One workload."""

    name: str
    title: str
    description: str
    metrics: Sequence[Metric]
    floor: str
    """Which floor the main metric is divided by; empty without one."""
    rows: Sequence[Row]
    notes: Sequence[str]
    """Failed turns, turns limited by the generator, and servers that did not take part."""
    rounds: int


def summarise(run: Run, workload: str) -> Summary:
    """The table of one workload."""
    task, series = run.workloads[workload], run.of(workload)
    # A floor may have fewer metrics than the servers: all metrics stay, in the servers' order.
    names = list(
        dict.fromkeys(name for one in series for turn in one.turns for name in turn.values)
    )
    metrics = [task.metric(name) for name in names]
    floor = run.floor(workload) if names else None
    if floor and not floor.values(names[0]):
        floor = None
    usable = [one for one in series if not run.servers[one.server].floor and not one.faults]
    best = {name: _best(usable, name, task.metric(name)) for name in names}
    rows = [
        Row(
            server=one.server,
            title=run.servers[one.server].title,
            group=group(run, one.server),
            cells=[cell(one.values(name), best[name] if one in usable else None) for name in names],
            ratio=cell(one.ratios(floor, names[0])) if floor else None,
            generator=max(turn.generator for turn in one.turns),
            marked="†" if any(turn.bottleneck for turn in one.turns) else "",
            failed=bool(one.faults),
        )
        for one in series
        if one.turns
    ]
    return Summary(
        name=workload,
        title=task.title,
        description=task.description,
        metrics=metrics,
        floor=floor.server if floor else "",
        rows=sorted(rows, key=lambda row: _rank(row, metrics)),
        notes=[note for one in series for note in _notes(one)],
        rounds=max((len(one.turns) + len(one.faults) for one in series), default=0),
    )


def group(run: Run, server: str) -> Group:
    """Return the group of this server in a table."""
    if run.servers[server].floor:
        return "floor"
    if server == REPEATER:
        return "repeater"
    return "variant" if run.servers[server].variant_of == REPEATER else "peer"


def cell(values: Sequence[float], best: float | None = None) -> Cell | None:
    """Return the median and the range; None without values."""
    if not values:
        return None
    median = statistics.median(values)
    return Cell(median, min(values), max(values), best=median == best)


def _best(series: Sequence[Series], name: str, metric: Metric) -> float | None:
    medians = [median for one in series if (median := one.median(name)) is not None]
    if len(medians) < 2 or metric.better == "neither":
        return None
    return min(medians) if metric.better == "lower" else max(medians)


def _rank(row: Row, metrics: Sequence[Metric]) -> tuple[int, float]:
    place = _ORDER.index(row.group)
    main = row.cells[0] if row.cells else None
    if row.group != "peer" or main is None:
        return place, 0.0  # the order in which they were measured
    return place, -main.median if metrics[0].better == "higher" else main.median


def _notes(series: Series) -> list[str]:
    notes = []
    total = len(series.turns) + len(series.faults)
    for fault, count in Counter(map(_one_line, series.faults)).items():
        notes.append(f"{series.server}: failed in {_of(count, total)}: {fault}")
    if marked := sum(turn.bottleneck for turn in series.turns):
        notes.append(
            f"† {series.server}: in {_of(marked, total)} the load generator used "
            f"{BOTTLENECK:.0%} or more of its core; rates and latencies are its own limit there, "
            "and the server may do better"
        )
    if series.skipped:
        notes.append(f"{series.server}: not measured here: {series.skipped}")
    return notes


def _of(count: int, total: int) -> str:
    return f"{count} of {total} turn{'s' * (total != 1)}"


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 3]}..."
