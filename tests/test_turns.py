"""How the readers of all connections share the event loop."""

from __future__ import annotations

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


async def test_one_of_the_line_goes_on_in_each_pass() -> None:
    """First come, first served, however many wait."""
    turns, passes = Turns(0.001), Passes()
    trio.lowlevel.add_instrument(passes)
    went: list[tuple[int, int]] = []

    async def reader(number: int) -> None:
        await turns.next()
        went.append((passes.number, number))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(reader, number)
    trio.lowlevel.remove_instrument(passes)
    numbers = [number for _, number in went]
    assert len({one for one, _ in went}) == 10
    assert sorted(numbers) == list(range(10))


async def test_the_line_is_first_come_first_served() -> None:
    """Who asked first goes on first, and who asks again stands behind the others."""
    turns = Turns(0.001)
    went: list[str] = []

    async def reader(name: str) -> None:
        for _ in range(3):
            await turns.next()
            went.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader, "a")
        nursery.start_soon(reader, "b")
        nursery.start_soon(reader, "c")
    assert len(went) == 9
    assert {*went[:3]} == {*went[3:6]} == {*went[6:]} == {"a", "b", "c"}


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
