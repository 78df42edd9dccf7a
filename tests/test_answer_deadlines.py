"""The deadlines of answers: one task ends all waits that are late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.answer_deadlines import AnswerDeadlines
from repeater.brokers.receipts import Receipt
from repeater.errors import BrokerError


async def ends(deadlines: AnswerDeadlines, receipt: Receipt[int], seconds: float) -> object:
    """The answer, or the Trio time at which the wait was ended without one."""
    try:
        return await deadlines.wait(receipt, seconds)
    except trio.TooSlowError:
        return trio.current_time()


Ask = Callable[[AnswerDeadlines, Receipt[int], float], Awaitable[object]]


def asked(ends_of: list[object]) -> Ask:
    """A task that notes how its wait ended."""

    async def ask(deadlines: AnswerDeadlines, receipt: Receipt[int], seconds: float) -> None:
        ends_of.append(await ends(deadlines, receipt, seconds))

    return ask


async def test_a_wait_ends_at_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """Each at its own, whether others were answered or not; the receipts stay open."""
    deadlines, found = AnswerDeadlines(), list[object]()
    start = trio.current_time()
    late, early, later = Receipt[int](), Receipt[int](), Receipt[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        async with trio.open_nursery() as waits:
            for receipt in (late, early):
                waits.start_soon(asked(found), deadlines, receipt, 5.0)
            await trio.sleep(1)
            early.settle(7)
            waits.start_soon(asked(found), deadlines, later, 5.0)
        nursery.cancel_scope.cancel()
    assert found == [7, start + 5, start + 6]
    assert not late.settled
    late.settle(1)
    assert await late.wait() == 1


async def test_an_answer_that_is_there_is_no_checkpoint() -> None:
    """As `Receipt.wait`; the task need not run for it."""
    receipt = Receipt[int]()
    receipt.settle(3)
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await AnswerDeadlines().wait(receipt, 5.0) == 3
    assert not scope.cancelled_caught


async def test_an_error_comes_out_in_time(autojump_clock: trio.testing.MockClock) -> None:
    """The engine's failure is the answer."""
    deadlines, receipt = AnswerDeadlines(), Receipt[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await wait_all_tasks_blocked()
        trio.lowlevel.current_trio_token().run_sync_soon(receipt.settle, BrokerError("down"))
        with pytest.raises(BrokerError, match="down"):
            await deadlines.wait(receipt, 5.0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("shorter", [False, True])
async def test_a_wait_that_the_task_does_not_end_has_a_deadline_of_its_own(
    autojump_clock: trio.testing.MockClock, shorter: bool
) -> None:
    """Before and after the task's time, and behind waits that began with a longer timeout."""
    deadlines, found = AnswerDeadlines(), list[object]()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        if shorter:
            nursery.start_soon(deadlines.run)
            await wait_all_tasks_blocked()
            nursery.start_soon(asked(found), deadlines, Receipt[int](), 60.0)
            await wait_all_tasks_blocked()
        assert await ends(deadlines, Receipt[int](), 2.0) == start + 2
        nursery.cancel_scope.cancel()


async def test_waits_end_with_the_task(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody else would end them."""
    deadlines, found = AnswerDeadlines(), list[object]()
    start = trio.current_time()
    async with trio.open_nursery() as waits, trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await wait_all_tasks_blocked()
        waits.start_soon(asked(found), deadlines, Receipt[int](), 5.0)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert found == [start + 1]


async def test_a_cancelled_wait_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """The same task may wait for the same receipt again, with a whole timeout."""
    deadlines, receipt = AnswerDeadlines(), Receipt[int]()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await deadlines.wait(receipt, 5.0)
        assert await ends(deadlines, receipt, 5.0) == start + 6
        nursery.cancel_scope.cancel()
