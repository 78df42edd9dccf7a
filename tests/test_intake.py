"""The bounded queue between brokers and repeater."""

from __future__ import annotations

from collections import deque
from time import perf_counter

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from repeater.fanout.intake import Intake
from repeater.publication import Event, Publication


def publication(number: int = 0, size: int = 1) -> Publication:
    return Publication("c", b"x" * size, offset=number)


def offset_of(event: Event) -> int:
    assert isinstance(event, Publication)
    return event.offset


async def test_batches_keep_the_order() -> None:
    """A batch is everything waiting, oldest first."""
    intake = Intake(10, 1_000)
    for number in range(5):
        intake.put_nowait(publication(number))
    assert [offset_of(one) for one in await intake.take_batch()] == [0, 1, 2, 3, 4]
    assert len(intake) == 0


async def test_batch_is_bounded_in_bytes() -> None:
    """A batch ends with the publication that reaches the limit; one too big goes alone."""
    intake = Intake(10, 100)
    for size in (60, 60, 500, 1):
        intake.put_nowait(publication(size=size))
    assert [len(await intake.take_batch()) for _ in range(3)] == [2, 1, 1]


async def test_full_refuses() -> None:
    """Without room `put_nowait` raises WouldBlock and keeps nothing."""
    intake = Intake(1, 100)
    intake.put_nowait(publication())
    with pytest.raises(trio.WouldBlock):
        intake.put_nowait(publication())
    assert len(intake) == 1


async def test_publishers_wait_for_room_in_order() -> None:
    """Those who wait get their room in the order in which they came."""
    intake, order = Intake(1, 100), []

    async def publish(number: int) -> None:
        await intake.wait_room()
        intake.put_nowait(publication(number))
        order.append(number)

    intake.put_nowait(publication())
    async with trio.open_nursery() as nursery:
        for number in range(1, 5):
            nursery.start_soon(publish, number)
            await wait_all_tasks_blocked()
        for _ in range(4):
            await intake.take_batch()
            await wait_all_tasks_blocked()
    assert order == [1, 2, 3, 4]


async def test_cancelled_publisher_leaves_nothing() -> None:
    """A wait that is cancelled takes no place in the queue."""
    intake = Intake(1, 100)
    intake.put_nowait(publication())
    with trio.CancelScope() as scope:
        scope.cancel()
        await intake.wait_room()
    assert scope.cancelled_caught
    assert len(await intake.take_batch()) == 1
    await intake.wait_room()
    assert len(intake) == 0


async def test_repeater_wakes_for_the_first_publication() -> None:
    """`take_batch` waits while nothing is there."""
    intake, batches = Intake(4, 100), []

    async def take() -> None:
        batches.append(await intake.take_batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        assert not batches
        intake.put_nowait(publication(7))
    assert [offset_of(one) for one in batches[0]] == [7]


async def test_close_lets_the_repeater_finish() -> None:
    """After `close` what waits is still taken, then comes the empty batch; puts are refused."""
    intake = Intake(4, 100)
    intake.put_nowait(publication())
    intake.close()
    with pytest.raises(trio.ClosedResourceError):
        intake.put_nowait(publication())
    assert len(await intake.take_batch()) == 1
    assert await intake.take_batch() == []


async def test_close_wakes_publishers() -> None:
    """A publisher that waits for room is told at once when the intake closes."""
    intake = Intake(1, 100)
    intake.put_nowait(publication())

    async def publish() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await intake.wait_room()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        intake.close()


async def test_age_of_the_oldest() -> None:
    """A batch says since when its oldest event waits: exactly, where the queue was empty."""
    intake = Intake(10, 1_000)
    before = perf_counter()
    intake.put_nowait(publication())
    after = perf_counter()
    intake.put_nowait(publication())
    await intake.take_batch()
    assert before <= intake.batch_since <= after
    intake.put_nowait(publication())
    await intake.take_batch()
    assert intake.batch_since >= after


@given(st.lists(st.integers(0, 5), max_size=30))
def test_age_is_bounded_by_the_batch_before(puts: list[int]) -> None:
    """An event that waited through others' batches counts from the last take before it came.

    Never later than it came, and never earlier than that take, or the empty queue's first event.
    """

    async def check() -> None:
        intake = Intake(1_000, 2)
        came: deque[tuple[float, float]] = deque()  # earliest and latest that may be said
        taken = 0.0
        for number in [*puts, *([0] * sum(puts))]:
            for _ in range(number):
                earliest = taken if came else perf_counter()
                intake.put_nowait(publication())
                came.append((earliest, perf_counter()))
            if came:
                begin = perf_counter()
                batch = await intake.take_batch()
                earliest, latest = came[0]
                assert earliest <= intake.batch_since <= latest
                for _ in batch:
                    came.popleft()
                taken = begin
        assert not intake._marks

    trio.run(check)
