"""Any interleaving of publishing, joining, leaving, expiry and restarts, against a plain model.

Each subscriber is a small SDK: it keeps its position, comes back when it is told to, and checks
every message as it arrives. What it must find: every offset once and in order, or the honest word
that it was not recovered. The same with a hand-over to fan-out that loses, doubles and reorders.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from repeater.publication import Event, Publication
from tests.brokers import LateTestBroker, TestBroker
from tests.deadlines import PROCESS_STARTS
from tests.stream_worlds import CRAMPED, OPTIONS, RUPTURES, STEPS, WorkersWorld, in_order, run


@pytest.mark.timeout(3 * PROCESS_STARTS)  # some seconds of pure computation
@settings(max_examples=200)
@given(st.lists(STEPS, min_size=15, max_size=60))
def test_every_offset_once_and_in_order(steps: list[tuple[Any, ...]]) -> None:
    """Whatever happens: everything, once, in order, or told that it was not recovered."""
    trio.run(run, steps, in_order, clock=MockClock(autojump_threshold=0))


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=120)
@given(st.lists(STEPS, min_size=15, max_size=60))
def test_an_engine_that_answers_late(steps: list[tuple[Any, ...]]) -> None:
    """Where every publication and every hold waits for its answer, the same holds."""
    clock = MockClock(autojump_threshold=0)
    trio.run(run, steps, in_order, OPTIONS, LateTestBroker, clock=clock)


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=120)
@given(st.lists(STEPS, min_size=15, max_size=60), st.booleans())
def test_two_workers(steps: list[tuple[Any, ...]], late: bool) -> None:
    """Whichever worker they are on and whoever publishes where: they all see one stream."""
    clock = MockClock(autojump_threshold=0)
    broker = LateTestBroker if late else TestBroker
    trio.run(run, steps, in_order, OPTIONS, broker, WorkersWorld, clock=clock)


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=120)
@given(st.lists(st.one_of(STEPS, STEPS, STEPS, RUPTURES), min_size=15, max_size=60))
def test_a_rupture_costs_no_position(steps: list[tuple[Any, ...]]) -> None:
    """Where the broker says what it lost, whoever has a position misses nothing."""
    trio.run(run, steps, in_order, clock=MockClock(autojump_threshold=0))


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=120)
@given(st.lists(STEPS, min_size=15, max_size=60))
def test_where_little_has_room(steps: list[tuple[Any, ...]]) -> None:
    """What does not fit into an answer, or gathers before it, is told: again all or nothing."""
    trio.run(run, steps, in_order, CRAMPED, clock=MockClock(autojump_threshold=0))


@pytest.mark.timeout(3 * PROCESS_STARTS)
@settings(max_examples=120)
@given(st.lists(STEPS, min_size=15, max_size=60), st.integers())
def test_lossy_hand_over_is_told(steps: list[tuple[Any, ...]], seed: int) -> None:
    """Where hand-over loses, doubles or reorders, the positioned are told and come back whole."""
    chance, kept = random.Random(seed), list[Event]()

    def fate(event: Event) -> Sequence[Event]:
        if isinstance(event, Publication) and not event.offset:
            return (event,)
        late = kept[:]
        kept.clear()
        match chance.choice(("hand on", "hand on", "lose", "double", "delay")):
            case "lose":
                return late
            case "double":
                return (event, *late, event)
            case "delay":
                kept.append(event)
                return late
        return (event, *late)

    trio.run(run, steps, fate, clock=MockClock(autojump_threshold=0))
