"""The values of a run: turns, series of turns, and the document that holds them all.

Everything here goes to JSON and back unchanged; plots, `docs/benchmarks.md`, comparisons and the
capacity model are made from that document alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from hdrh.histogram import HdrHistogram

MOST_US: Final = 120_000_000  # the longest latency that a histogram tells apart: two minutes
_DIGITS: Final = 3  # significant decimal digits that a histogram keeps
BOTTLENECK: Final = 0.9
"""From this share of its core on, the load generator limits the result, not the server."""

Better = Literal["lower", "higher", "neither"]
Outcome = Literal["pass", "miss", "not measured"]


class Metric(msgspec.Struct, frozen=True):
    """One number of a turn: its unit, and which direction is better."""

    title: str
    unit: str
    better: Better = "lower"
    short: str = ""
    """The head of a table's column, with the unit; if empty, `title` and `unit` make it."""

    @property
    def head(self) -> str:
        """The head of a table's column."""
        return self.short or f"{self.title}, {self.unit}"


METRICS: Final[dict[str, Metric]] = {
    "cpu_us": Metric("server CPU per delivery", "us", short="CPU us"),
    "delivery_p50_ms": Metric("delivery latency, median", "ms", short="p50 ms"),
    "delivery_p99_ms": Metric("delivery latency, 99th percentile", "ms", short="p99 ms"),
    "last_p50_ms": Metric("last of all subscribers, median", "ms", short="last p50 ms"),
    "last_p99_ms": Metric("last of all subscribers, 99th percentile", "ms", short="last p99 ms"),
    "rate": Metric("a second", "/s", "higher", short="per second"),
    "memory_kib": Metric("resident memory per connection", "KiB", short="KiB each"),
    "rss_mib": Metric("resident memory of the server", "MiB", short="RSS MiB"),
    "publish_p50_ms": Metric("publish call, median", "ms", short="call p50 ms"),
    "publish_p99_ms": Metric("publish call, 99th percentile", "ms", short="call p99 ms"),
    "call_us": Metric("server CPU per publish call", "us", short="call CPU us"),
}
"""The common metrics; a workload may add its own with `Workload.metrics`."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The values of one server in one turn of one workload."""

    values: dict[str, float]
    """One value for each metric."""
    histograms: dict[str, str] = {}
    """Distributions in microseconds, as HdrHistogram encodes them, e.g. of `delivery`."""
    generator: float = 0.0
    """The share of its core that the load generator used while something was under way."""
    round: int = 0
    """The number of the turn's round: a turn that failed leaves a gap in its series."""

    @property
    def bottleneck(self) -> bool:
        """Whether the load generator limited the result, not the server."""
        return self.generator >= BOTTLENECK


class Series(msgspec.Struct, kw_only=True):
    """The turns of one server in one workload."""

    workload: str
    server: str
    turns: list[Turn] = []
    faults: list[str] = []
    """Turns that failed: events lost, doubled or out of order, or a server that ended."""
    skipped: str = ""
    """Why this server did not take part."""

    def values(self, metric: str) -> list[float]:
        """Return this metric's value in each turn."""
        return [turn.values[metric] for turn in self.turns if metric in turn.values]

    def median(self, metric: str) -> float | None:
        """Return the median of the turns; None without values."""
        values = self.values(metric)
        return statistics.median(values) if values else None

    def ratios(self, other: Series, metric: str) -> list[float]:
        """Return this server's value divided by the other's, for each round that has both.

        The machine is shared, and two servers of the same round ran in the same minute.
        """
        theirs = {turn.round: turn.values[metric] for turn in other.turns if metric in turn.values}
        return [
            turn.values[metric] / theirs[turn.round]
            for turn in self.turns
            if metric in turn.values and theirs.get(turn.round)
        ]

    def differences(self, others: Sequence[Series], metric: str) -> list[float]:
        """Return this server's value less the sum of the others', for each round that has all."""
        rounds = [{turn.round: turn.values.get(metric) for turn in one.turns} for one in others]
        found = list[float]()
        for turn in self.turns:
            theirs = [one.get(turn.round) for one in rounds]
            known = [value for value in theirs if value is not None]
            if metric in turn.values and len(known) == len(theirs):
                found.append(turn.values[metric] - sum(known))
        return found

    def histogram(self, name: str) -> HdrHistogram | None:
        """Return the distribution of all turns together; None without one."""
        parts = [turn.histograms[name] for turn in self.turns if name in turn.histograms]
        if not parts:
            return None
        whole = new_histogram()
        for part in parts:
            whole.decode_and_add(part.encode())
        return whole


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A measured server, as the document describes it."""

    title: str
    version: str
    configuration: str
    """Its command and the configuration it was started with, or the path of its program."""
    variant_of: str = ""
    floor: bool = False
    """Whether it is a lower bound and not a usable server."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A workload, as the document describes it."""

    title: str
    description: str
    group: str
    metrics: dict[str, Metric]
    """The workload's own metrics, besides the common ones."""

    def metric(self, name: str) -> Metric:
        """Return the metric with this name; an unknown one has no unit."""
        return self.metrics.get(name) or METRICS.get(name) or Metric(name, "", "neither")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A claim that was judged: see `benchmarks.claims`."""

    claim: str
    workload: str
    value: float | None
    """None if the claim's servers were not measured."""
    limit: float
    side: Literal["at most", "at least"]
    unit: str
    passed: bool
    origin: str
    detail: str = ""
    """The faults of the server that the claim is about."""

    @property
    def outcome(self) -> Outcome:
        """Return the outcome; a claim whose other server is missing is not a miss."""
        if self.passed:
            return "pass"
        return "not measured" if self.value is None and not self.detail else "miss"


class Run(msgspec.Struct, kw_only=True):
    """One run of the benchmarks: the JSON document."""

    when: str
    machine: dict[str, str]
    plan: str
    command: str = ""
    """The command line that made it."""
    servers: dict[str, Server] = {}
    missing: dict[str, str] = {}
    """Peers that are not installed, and what installs them."""
    workloads: dict[str, Task] = {}
    """Workloads that were measured to their end."""
    series: list[Series] = []
    verdicts: list[Verdict] = []
    seconds: float = 0.0

    def drop_unfinished(self) -> None:
        """Forget the series of a workload that was not measured to its end."""
        self.series = [one for one in self.series if one.workload in self.workloads]

    def one(self, workload: str, server: str) -> Series | None:
        """Return the series of this server in this workload, or None."""
        for series in self.series:
            if (series.workload, series.server) == (workload, server):
                return series
        return None

    def of(self, workload: str) -> list[Series]:
        """The series of one workload, in the order in which the servers took their turns."""
        return [series for series in self.series if series.workload == workload]

    def floor(self, workload: str) -> Series | None:
        """Return the workload's first measured floor, which divides the other servers."""
        for series in self.of(workload):
            if self.servers[series.server].floor and series.turns:
                return series
        return None


def new_histogram() -> HdrHistogram:
    """Return an empty histogram of microseconds up to `MOST_US`, with three significant digits."""
    return HdrHistogram(1, MOST_US, _DIGITS)


def load(path: Path) -> Run:
    """Read a document.

    Raises:
        msgspec.ValidationError: The file is not the document of a run.
    """
    return msgspec.json.decode(path.read_bytes(), type=Run)


def save(run: Run, path: Path) -> None:
    """Write a document, for people to read in a diff."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
