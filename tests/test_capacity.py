"""The capacity model: what it promises of an estimate, and what it reads from a run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import Assumptions, Costs, NotMeasuredError, SharedCosts, estimate
from benchmarks.model import Run, Series, Turn, load
from benchmarks.report.capacity import RATES, page

DOCS = Path(__file__).parent.parent / "docs"
COSTS = Costs(
    delivery_us=5,
    event_us=80,
    connection_us=150,
    heartbeat_us=10,
    memory_kib=6,
    kernel_kib=4,
    shared=SharedCosts(call_us=300, received_us=200, script_us=40, message_us=10),
)


def measured(without: str = "") -> Run:
    """A run in which everything that the model needs was measured, but for one workload."""
    values = {
        "fanout-9000": {"cpu_us": 5.0},
        "publish": {"call_us": 80.0},
        "accept": {"connection_us": 150.0},
        "idle": {"heartbeat_us": 10.0, "kernel_kib": 4.0},
        "memory": {"memory_kib": 6.0},
    }
    series = [
        Series(workload=name, server="repeater", turns=[Turn(values=one)])
        for name, one in values.items()
        if name != without
    ]
    machine = {"cpu": "a CPU", "kernel": "a kernel", "python": "a Python"}
    return Run(when="2026-01-01T00:00:00+00:00", machine=machine, plan="full", series=series)


def measured_nodes() -> Run:
    """A run of two nodes on one Valkey."""
    values = {"call_us": 300.0, "received_us": 200.0, "engine_us": 40.0, "message_us": 10.0}
    series = [
        Series(workload="valkey-nodes", server="repeater-valkey", turns=[Turn(values=values)])
    ]
    machine = {"cpu": "another CPU", "kernel": "a kernel", "python": "a Python"}
    return Run(when="2026-01-02T00:00:00+00:00", machine=machine, plan="engines", series=series)


def test_formula_by_hand() -> None:
    """One event a second, sessions of 600 s, pings every 25 s: 5 + 0.25 + 0.4 us a second each."""
    one = estimate(COSTS, Assumptions(lateness_ms=10_000, memory_gib=1_024))
    assert one.limited_by == "CPU"
    assert one.nodes == 10  # (0.6 s - 230 us) / 5.65 us = 106,150 connections
    assert one.connections == 100_000
    assert one.machines == 2
    assert one.busy == pytest.approx((200 + 300 / 10 + 100_000 * 5.65) / 1e6)
    assert one.engine == pytest.approx((40 + 10 * 10) / 1e6)
    assert one.megabits == pytest.approx(8 * 218 * 500_000 / 1e6)


def test_one_node_needs_no_engine() -> None:
    """It keeps history in memory, and a call costs it what the full run measured."""
    one = estimate(COSTS, Assumptions(subscribers=10_000))
    assert (one.nodes, one.engine) == (1, 0)
    assert one.busy == pytest.approx((80 + 10_000 * 5.65) / 1e6)


def test_an_engine_may_be_too_small() -> None:
    """Then its share is above one core, and the reader sees that."""
    one = estimate(COSTS, Assumptions(subscribers=100_000_000, rate=100))
    assert one.engine > 1


def test_each_bound_can_be_the_one() -> None:
    """Little lateness, or little memory, decides as well as CPU."""
    assert estimate(COSTS, Assumptions(lateness_ms=50)).limited_by == "lateness"
    assert estimate(COSTS, Assumptions(memory_gib=0.5)).limited_by == "memory"


@given(
    subscribers=st.integers(1, 10**8),
    rate=st.floats(0.001, 250),  # what a core takes of 200 us and more each
    busy=st.floats(0.1, 0.9),
    lateness_ms=st.floats(1, 1_000),
    memory_gib=st.floats(0.1, 100),
)
def test_no_bound_is_passed(
    subscribers: int, rate: float, busy: float, lateness_ms: float, memory_gib: float
) -> None:
    """Everybody has a place, and no node is asked for more than it was allowed."""
    assumed = Assumptions(
        subscribers=subscribers,
        rate=rate,
        busy=busy,
        lateness_ms=lateness_ms,
        memory_gib=memory_gib,
    )
    one = estimate(COSTS, assumed)
    assert one.nodes * one.connections >= subscribers
    assert one.machines * assumed.cores >= one.nodes
    assert one.busy <= busy * (1 + 1e-9)
    assert one.connections * COSTS.delivery_us <= lateness_ms * 1e3
    doubled = estimate(COSTS, msgspec.structs.replace(assumed, subscribers=2 * subscribers))
    assert doubled.nodes >= one.nodes


def test_more_events_than_a_node_can_take() -> None:
    """That is said, not answered with a number."""
    with pytest.raises(ValueError, match="more than one node can take"):
        estimate(COSTS, Assumptions(rate=10_000))


def test_costs_are_read_from_a_run() -> None:
    """Each from its workload; one that is missing is named."""
    assert Costs.of(measured(), measured_nodes()) == COSTS
    with pytest.raises(NotMeasuredError, match="heartbeat_us of idle"):
        Costs.of(measured("idle"), measured_nodes())
    with pytest.raises(NotMeasuredError, match="call_us of valkey-nodes"):
        Costs.of(measured(), measured())


def test_page_has_a_row_for_each_rate() -> None:
    """And the same run gives the same page."""
    text = page(measured(), measured_nodes(), Assumptions())
    for rate in RATES:
        assert f"\n| {rate:g} |" in text
    assert text == page(measured(), measured_nodes(), Assumptions())


def test_the_committed_page_is_its_documents() -> None:
    """docs/capacity.md is what the two runs give, without edits."""
    run, shared = (load(DOCS / folder / "run.json") for folder in ("benchmarks", "capacity"))
    assert (DOCS / "capacity.md").read_text() == page(run, shared, Assumptions())
