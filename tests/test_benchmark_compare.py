"""Comparing two runs: noise is not called a change, and a change is not called noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.model import Metric, Run, Series, Server, Task, Turn, save
from benchmarks.report.compare import ONE_IN, Comparison, Finding, compare
from tests.benchmarking import imagined_run

CPU = "server CPU per delivery"


def imagined(seed: int, noise: float, costs: Mapping[str, float] = {}) -> Run:
    return imagined_run(seed, noise=noise, costs=costs, histograms=False)


def finding(comparison: Comparison, workload: str, server: str, title: str = CPU) -> Finding:
    (row,) = (
        row
        for row in comparison.rows
        if (row.workload, row.server, row.title) == (workload, server, title)
    )
    return row.finding


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1])
def test_noise_is_no_change(noise: float) -> None:
    """Of comparisons of a program with itself, at most as many as stated find anything worse."""
    comparisons = 60
    alarms = sum(
        compare(imagined(2 * seed, noise), imagined(2 * seed + 1, noise)).worse
        for seed in range(comparisons)
    )
    # Two standard deviations of a count whose mean is what is stated.
    mean = comparisons / ONE_IN
    assert alarms <= mean + 2 * mean**0.5


def test_ten_per_cent_are_found() -> None:
    """With a noise of one per cent, a server that costs a tenth more is found to be worse."""
    for seed in range(10):
        found = compare(imagined(2 * seed, 0.01), imagined(2 * seed + 1, 0.01, {"repeater": 1.1}))
        worse = {row.server for row in found.rows if row.finding == "worse"}
        assert "repeater" in worse
        assert found.worse


def test_the_direction_counts() -> None:
    """Less CPU is better, and so is a higher rate; what follows from it is not worse."""
    found = compare(imagined(1, 0.01), imagined(2, 0.01, {"picows": 0.7}))
    assert finding(found, "fanout-1000", "picows") == "better"
    assert finding(found, "flood", "picows", "a second") == "better"
    assert finding(found, "fanout-1000", "repeater") == "noise"
    assert not found.worse


def test_the_floor_takes_the_machine_out() -> None:
    """On a day on which everything takes half as long again, nothing that has a floor is worse."""
    slow = imagined(2, 0.01, dict.fromkeys(imagined(1, 0.01).servers, 1.5))
    found = compare(imagined(1, 0.01), slow)
    assert finding(found, "fanout-9000", "repeater") == "noise"
    assert any("the floor itself costs 1.5" in line for line in found.differences)
    # A flood has no floor: there the slower day can't be told from a slower server.
    assert finding(found, "flood", "repeater", "a second") == "worse"


def test_other_machines_are_not_compared() -> None:
    """Another processor or Python makes every number another one; the page says which."""
    new = imagined(2, 0.01, {"repeater": 3})
    new.machine["python"] = "CPython 3.14.0"
    found = compare(imagined(1, 0.01), new)
    assert {row.finding for row in found.rows} == {"not comparable"}
    assert {row.reason for row in found.rows} == {"another python"}
    assert "python: CPython 3.11.7 -> CPython 3.14.0" in found.differences


def test_a_quick_look_is_not_compared() -> None:
    """It has one short round."""
    new = msgspec.structs.replace(imagined(2, 0.01), plan="quick")
    assert {row.finding for row in compare(imagined(1, 0.01), new).rows} == {"not comparable"}


def test_where_the_generator_was_the_limit() -> None:
    """Its core limits latencies and rates, not what a delivery costs the server."""
    found = compare(imagined(1, 0.01), imagined(2, 0.01))
    last = "last of all subscribers, median"
    assert finding(found, "fanout-5000", "uwebsockets", last) == "not comparable"
    assert finding(found, "fanout-5000", "uwebsockets") == "noise"


def test_a_turn_that_fails_is_worse() -> None:
    """Whatever the numbers of the turns that went well."""
    new = imagined(2, 0.01)
    series = new.one("flood", "repeater")
    assert series is not None
    series.turns.pop()
    series.faults.append("WireError: lost\nand more")
    (row,) = (row for row in compare(imagined(1, 0.01), new).rows if row.title.startswith("turns"))
    assert row.finding == "worse"
    assert row.reason == "0 before, 1 now: WireError: lost"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [([0, 0, 0], [0, 1, 0], "worse"), ([0, 2, 0], [0] * 3, "better"), ([0] * 3, [0] * 3, "noise")],
)
def test_lost_events_are_counted(old: list[float], new: list[float], expected: Finding) -> None:
    """One in one round is worse than none: no median, no allowance."""
    found = compare(storm(old), storm(new))
    assert finding(found, "storm", "repeater", "events lost") == expected


def storm(lost: list[float]) -> Run:
    turns = [Turn(values={"lost": value}, round=number) for number, value in enumerate(lost)]
    return Run(
        when="",
        machine={},
        plan="full",
        servers={"repeater": Server(title="Repeater", version="", configuration="")},
        workloads={
            "storm": Task(
                title="",
                description="",
                group="",
                metrics={"lost": Metric("events lost", "events")},
            )
        },
        series=[Series(workload="storm", server="repeater", turns=turns)],
    )


def test_the_command(tmp_path: Path) -> None:
    """It ends with 1 only if something is worse, and names it."""
    for name, seed, costs in (("old", 1, {}), ("same", 2, {}), ("worse", 2, {"repeater": 1.3})):
        save(imagined(seed, 0.01, costs), tmp_path / f"{name}.json")
    results = {
        name: CliRunner().invoke(
            main, ["compare", str(tmp_path / "old.json"), str(tmp_path / f"{name}.json"), *more]
        )
        for name, more in (("same", ["--all"]), ("worse", ["--server", "repeater"]))
    }
    assert results["same"].exit_code == 0
    assert "picows" in results["same"].output
    assert results["worse"].exit_code == 1
    assert "picows" not in results["worse"].output
    assert "worse" in results["worse"].output
