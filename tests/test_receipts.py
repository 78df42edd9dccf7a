"""Answers that come later: given out at once, settled once, and awaited by whoever likes."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.receipts import Answer, Receipt, settled
from repeater.errors import BrokerError, ErrorCode, ReplyError


async def test_settled_before_the_wait() -> None:
    """The answer is returned at once, to each who asks, and waiting is no checkpoint then."""
    receipt: Receipt[int] = Receipt()
    seen = [receipt.settled]
    receipt.settle(7)
    seen.append(receipt.settled)
    assert seen == [False, True]
    with trio.CancelScope() as scope:
        scope.cancel()
        assert [await receipt.wait(), await receipt.wait()] == [7, 7]
    assert not scope.cancelled_caught


async def test_settled_after_the_wait_began() -> None:
    """Everybody who waits gets the answer, also if the answer is None."""
    receipt: Receipt[int | None] = Receipt()
    answers: list[int | None] = []

    async def wait() -> None:
        answers.append(await receipt.wait())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert answers == []
        receipt.settle(None)
    assert answers == [None] * 3
    assert receipt.settled


@pytest.mark.parametrize("error", [ReplyError(ErrorCode.BAD_REQUEST), BrokerError("down")])
@pytest.mark.parametrize("late", [False, True])
async def test_an_error_is_raised(error: ReplyError | BrokerError, late: bool) -> None:
    """A refusal or a failure of the engine is raised by `wait`, each time."""
    receipt: Receipt[int] = Receipt()
    async with trio.open_nursery() as nursery:
        if not late:
            receipt.settle(error)
        nursery.start_soon(_expect, receipt, error)
        await wait_all_tasks_blocked()
        if late:
            receipt.settle(error)
    assert receipt.settled
    await _expect(receipt, error)


async def _expect(receipt: Receipt[int], error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await receipt.wait()
    assert caught.value is error


async def test_a_cancelled_wait_leaves_the_receipt() -> None:
    """Others go on waiting, the engine settles it, and it can be awaited again."""
    receipt: Receipt[int] = Receipt()
    answers: list[int] = []

    async def wait() -> None:
        answers.append(await receipt.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with trio.CancelScope() as scope:
            scope.cancel()
            await receipt.wait()
        assert scope.cancelled_caught
        assert not receipt.settled
        receipt.settle(1)
    assert answers == [1]
    assert await receipt.wait() == 1


async def test_a_receipt_is_settled_once() -> None:
    """A second answer is a bug of the engine, and loud."""
    receipt: Receipt[int] = Receipt()
    receipt.settle(1)
    with pytest.raises(AssertionError):
        receipt.settle(2)


async def test_an_answer_is_a_value_or_a_receipt() -> None:
    """`settled` gives the value of either, and waits for a receipt only."""
    receipt: Receipt[str] = Receipt()
    answers: list[Answer[str]] = ["at once", receipt]
    receipt.settle("later")
    assert [await settled(one) for one in answers] == ["at once", "later"]


async def test_an_answer_is_told_to_one_who_does_not_wait() -> None:
    """`when_settled` tells an answer when it comes, or at once if it is there; errors as well."""
    told: list[object] = []
    receipt: Receipt[int] = Receipt()
    receipt.when_settled(told.append)
    assert not told
    receipt.settle(1)
    failed: Receipt[int] = Receipt()
    error = BrokerError("gone")
    failed.settle(error)
    failed.when_settled(told.append)
    assert told == [1, error]
    assert await receipt.wait() == 1
