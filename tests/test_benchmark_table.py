"""The tables of a run: what stands where, and what is said beneath."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks.claims import judge
from benchmarks.model import Metric, Run, Series, Server, Task, Turn, Verdict
from benchmarks.progress import Lines, watcher
from benchmarks.report.numbers import change, number, spread
from benchmarks.report.summary import summarise
from benchmarks.report.table import print_run
from tests.benchmarking import imagined_run


@pytest.fixture(scope="module")
def run() -> Run:
    return imagined_run(histograms=False)


def printed(run: Run, width: int) -> str:
    file = io.StringIO()
    print_run(run, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.012"),
        (4.1, "4.10"),
        (9.999, "10.0"),
        (55.96, "56.0"),
        (999.7, "1,000"),
        (123_456, "123,000"),
        (-2.345, "-2.35"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    """A number has three significant digits, and never more than three decimals."""
    assert number(value) == text


def test_a_range_that_reads_as_one_number_is_none() -> None:
    """What differs beyond the digits shown does not differ."""
    assert spread(1.0001, 1.0002) == ""
    assert spread(1, 2) == "1.00\N{EN DASH}2.00"


def test_changes() -> None:
    """In per cent, and in times where per cent stop being read."""
    assert [change(0.9), change(1.123), change(2.5)] == ["-10.0 %", "+12.3 %", "2.50 x"]


def test_the_order(run: Run) -> None:
    """Floors, Repeater, its variants, then the peers by CPU, the cheapest first."""
    assert [row.server for row in summarise(run, "fanout-1000").rows] == [
        "floor",
        "floor-python",
        "repeater",
        "repeater-sse",
        "uwebsockets",
        "picows",
        "nchan",
        "websockets",
        "quart-trio",
    ]


def test_the_best_rate_is_the_highest(run: Run) -> None:
    """Peers are ordered by the main metric's own direction, and its best is marked."""
    rows = summarise(run, "flood").rows
    peers = [row for row in rows if row.group == "peer"]
    medians = [row.cells[0].median for row in peers if row.cells[0]]
    assert medians == sorted(medians, reverse=True)
    assert [row.server for row in rows if row.cells[0] and row.cells[0].best] == ["uwebsockets"]


def two_servers(ours: list[Turn], floors: list[Turn], faults: list[str]) -> Run:
    return Run(
        when="",
        machine={},
        plan="full",
        servers={
            name: Server(title=name, version="", configuration="", floor=name == "floor")
            for name in ("floor", "repeater")
        },
        workloads={"w": Task(title="W", description="", group="G", metrics={})},
        series=[
            Series(workload="w", server="floor", turns=floors),
            Series(workload="w", server="repeater", turns=ours, faults=faults),
        ],
    )


def test_ratios_are_of_one_round() -> None:
    """After a turn that failed, the others are still divided by the floor of their own round."""
    run = two_servers(
        [Turn(values={"cpu_us": 20}, round=1), Turn(values={"cpu_us": 60}, round=2)],
        [Turn(values={"cpu_us": 10.0 * (number + 1)}, round=number) for number in range(3)],
        ["it died"],
    )
    summary = summarise(run, "w")
    assert summary.floor == "floor"
    ratio = summary.rows[1].ratio
    assert ratio is not None
    assert (ratio.low, ratio.high) == (1.0, 2.0)


def test_a_server_that_failed_is_not_the_best(run: Run) -> None:
    """Its numbers are of the turns that went well; its name has a mark."""
    row = next(row for row in summarise(run, "fanout-9000").rows if row.server == "websockets")
    assert row.failed
    assert not any(cell and cell.best for cell in row.cells)


def test_what_is_said_beneath(run: Run) -> None:
    """Equal faults are one line, on one line; skipped servers and bottlenecks are named."""
    assert summarise(run, "fanout-9000").notes == [
        "quart-trio: not measured here: it can't keep up with more than 1,000",
        "websockets: failed in 2 of 3 turns: WireError: subscriber 17 lost an event: 12 came after "
        "10",
    ]
    (_, bottleneck) = summarise(run, "fanout-5000").notes
    assert bottleneck.startswith("† uwebsockets: in 1 of 3 turns the load generator used 90%")


@pytest.mark.parametrize("width", [160, 100])
def test_it_fits(run: Run, width: int) -> None:
    """No line is longer than the terminal, no cell is cut off, and every server has its line."""
    text = printed(run, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for server in run.servers:
        assert server.removeprefix("repeater-") in text
    assert "†95%" in text
    assert "websockets !" in text
    assert "no mercure on the PATH" in text


def test_what_could_not_be_measured_is_no_miss() -> None:
    """A claim whose other server is missing was neither kept nor broken."""

    def verdict(value: float | None, *, passed: bool = False, detail: str = "") -> str:
        return Verdict(
            claim="c",
            workload="w",
            value=value,
            limit=1,
            side="at most",
            unit="x",
            passed=passed,
            origin="",
            detail=detail,
        ).outcome

    assert verdict(None) == "not measured"
    assert verdict(0.5, passed=True) == "pass"
    assert verdict(2) == "miss"
    assert verdict(None, detail="every turn failed") == "miss"


def test_claims_are_shown(run: Run) -> None:
    """Each with its verdict."""
    judge(run)
    text = printed(run, 160)
    assert text.count("not measured  ") == sum(
        one.outcome == "not measured" for one in run.verdicts
    )
    assert "miss" in text
    assert "pass" in text
    run.verdicts = []


def test_unknown_metrics_have_a_name() -> None:
    """A metric that nobody described is shown, and is neither better nor worse."""
    task = Task(title="", description="", group="", metrics={})
    assert task.metric("odd") == Metric("odd", "", "neither")


def test_progress_in_a_log() -> None:
    """One line a workload; what is left is what a turn took, times the turns that are left."""
    lines, seconds = list[str](), iter([0, 10, 10, 30])
    with Lines(lines.append, lambda: next(seconds)) as progress:
        progress.start(2, 6)
        progress.workload("Fan-out", 1, 2)
        for _ in range(2):
            progress.turn("repeater")
            progress.done()
        progress.workload("Flood", 2, 2)
    assert lines == [
        "1/2 Fan-out: 1 server x 2",
        "2/2 Flood: 2 servers x 2; 10 s so far, about 20 s left",
        "2 of 6 turns in 30 s",
    ]


def test_progress_is_plain_where_nobody_watches() -> None:
    """A file gets no bar and no control characters."""
    file = io.StringIO()
    with watcher(Console(file=file)) as progress:
        progress.start(1, 1)
        progress.workload("Flood", 1, 1)
        progress.done()
    assert "\x1b" not in file.getvalue()
    assert file.getvalue().count("\n") == 2
