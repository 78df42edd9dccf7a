"""How the readers of all connections share the event loop."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from time import perf_counter

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.turns import Turns


class Passes(trio.abc.Instrument):
    """Counts the passes of the loop."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:  # Trio's signature
        self.number += 1


async def passes_of(count: int, seconds: float, budget: float = 0.001) -> list[int]:
    """How many of a line of readers went on in each pass; each works for so many seconds."""
    turns, passes = Turns(budget), Passes()
    went: list[int] = []

    async def reader() -> None:
        await turns.next()
        went.append(passes.number)
        ends = perf_counter() + seconds
        while perf_counter() < ends:
            pass

    trio.lowlevel.add_instrument(passes)
    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(reader)
    trio.lowlevel.remove_instrument(turns)
    trio.lowlevel.remove_instrument(passes)
    assert len(went) == count
    return list(Counter(went).values())


async def test_long_turns_have_a_pass_each() -> None:
    """Fan-out and everybody else run between two of them; at first a few may share a pass."""
    assert sorted(await passes_of(30, 0.002))[:-2] == [1] * 28


async def test_short_turns_share_a_pass() -> None:
    """A thousand connections that each have little to say do not wait a thousand passes."""
    budget = 0.1  # never used up by them, also where the machine is busy
    assert len(await passes_of(1_000, 0, budget)) < 100


async def test_nobody_is_passed_over() -> None:
    """Between two turns of one reader each other reader has two turns at most."""
    turns = Turns(10)  # never used up, so a machine that is busy changes no turn
    names = "abcdefgh"
    went: list[str] = []

    async def reader(name: str) -> None:
        for _ in range(200):
            await turns.next()
            went.append(name)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(reader, name)
    for name in names:
        places = [place for place, one in enumerate(went) if one == name]
        gaps = [went[before + 1 : after] for before, after in pairwise(places)]
        assert max(max(Counter(gap).values(), default=0) for gap in gaps) <= 2


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_a_cancelled_reader_leaves_the_line(leaver: int) -> None:
    """The others go on, whether the first, the second or the last of the line is cancelled."""
    turns = Turns(0.001)
    scopes = [trio.CancelScope() for _ in range(3)]
    went: list[int] = []

    async def reader(number: int) -> None:
        with scopes[number]:
            await turns.next()
            went.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(reader, number)
        nursery.start_soon(_cancel, scopes[leaver])
    assert {0, 1, 2} - {leaver} <= {*went}
    went.clear()
    await turns.next()


@pytest.mark.parametrize("seed", range(20))
async def test_any_mixture_of_turns_and_cancels(seed: int) -> None:
    """Readers with much and little to do, some cancelled at any moment: all others go on."""
    rng = Random(seed)
    turns = Turns(0.0002)
    done = 0
    scopes = [trio.CancelScope() for _ in range(60)]
    cancelled = rng.sample(scopes, 20)

    async def reader(scope: trio.CancelScope) -> None:
        nonlocal done
        with scope:
            for _ in range(10):
                await turns.next()
                ends = perf_counter() + rng.choice((0, 0, 0.0001, 0.0005))
                while perf_counter() < ends:
                    pass
                if rng.random() < 0.1 and cancelled:
                    cancelled.pop().cancel()
        done += not scope.cancelled_caught

    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(reader, scope)
    trio.lowlevel.remove_instrument(turns)
    assert done >= 40
    assert not turns._line
    assert not turns._moving


async def _cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


async def test_a_line_of_one_is_a_checkpoint() -> None:
    """Nothing waits for another task to come."""
    turns = Turns(0.001)
    with trio.fail_after(1):
        for _ in range(1_000):
            await turns.next()


async def test_the_budget_is_renewed_in_each_pass() -> None:
    """A budget that is used up is whole again in the next pass; but not without the instrument."""
    turns = Turns(10)
    seen = [turns.over]
    trio.lowlevel.add_instrument(turns)
    try:
        await trio.lowlevel.checkpoint()
        seen.append(turns.over)
        turns._ends = 0.0
        seen.append(turns.over)
        await wait_all_tasks_blocked()
        seen.append(turns.over)
    finally:
        trio.lowlevel.remove_instrument(turns)
    assert seen == [True, False, True, False]


async def test_the_budget_begins_with_the_first_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fan-out has used of a pass is not taken from the readers; what they used is."""
    times = iter([7.0, 7.5, 8.5, 20.0, 20.0])
    monkeypatch.setattr("repeater.turns.perf_counter", lambda: next(times))
    turns = Turns(1.0)
    turns.after_io_wait(0.0)  # at the time 0.0
    assert [turns.over, turns.over] == [False, True]
    turns.after_io_wait(0.0)
    turns.after_io_wait(0.0)
    assert not turns.over
