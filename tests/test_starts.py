"""Which request begins next behind Hypercorn, where many stand in line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from repeater.front.starts import Starts


class Line:
    """Requests that wait for their turn; `begun` has their names in the order of their turns."""

    def __init__(self, starts: Starts, nursery: trio.Nursery) -> None:
        self.starts = starts
        self.begun: list[str] = []
        self._nursery = nursery

    async def stand(
        self, name: str, address: str, *, first: bool = False, scope: trio.CancelScope | None = None
    ) -> None:
        """Put a request into the line; they stand in the order of these calls."""

        async def wait() -> None:
            with scope or trio.CancelScope():
                await self.starts.next(address, first=first)
                self.begun.append(name)

        self._nursery.start_soon(wait)
        await wait_all_tasks_blocked()


class Held(Starts):
    """Lines that do not move until `release`."""

    def __init__(self) -> None:
        super().__init__()
        self._moving = True

    def release(self) -> None:
        self._wake_one()


@asynccontextmanager
async def line() -> AsyncIterator[tuple[Line, Held]]:
    starts = Held()
    async with trio.open_nursery() as nursery:
        yield Line(starts, nursery), starts
    assert not starts._moving


async def test_a_newcomer_waits_for_one_at_most() -> None:
    """However many requests of connections that were served already stand before it."""
    async with line() as (waiting, starts):
        for number in range(100):
            await waiting.stand(f"old {number}", f"10.0.0.{number % 8}")
        await waiting.stand("newcomer", "10.0.0.1", first=True)
        starts.release()
    assert waiting.begun.index("newcomer") <= 1


async def test_later_requests_go_on_beside_newcomers() -> None:
    """Of both lines in turns: a stream of newcomers stops nobody."""
    async with line() as (waiting, starts):
        for number in range(20):
            await waiting.stand("newcomer", f"10.0.0.{number}", first=True)
        for _ in range(5):
            await waiting.stand("old", "10.0.1.1")
        starts.release()
    assert waiting.begun[:10].count("old") == 5


async def test_addresses_take_turns() -> None:
    """An address with a hundred connections gets no more of the turns than one with one."""
    async with line() as (waiting, starts):
        for number in range(100):
            await waiting.stand(f"crowd {number}", "10.0.0.1", first=True)
        await waiting.stand("alone", "10.0.0.2", first=True)
        starts.release()
    assert waiting.begun.index("alone") <= 1
    crowd = [name for name in waiting.begun if name != "alone"]
    assert crowd == [f"crowd {number}" for number in range(100)]  # first come, first served


async def test_one_begins_in_each_pass() -> None:
    """Whoever else waits for the loop gets it between two of them."""
    async with line() as (waiting, starts):
        for number in range(10):
            await waiting.stand(str(number), "10.0.0.1")
        starts.release()
        for number in range(1, 10):
            await trio.lowlevel.checkpoint()
            assert len(waiting.begun) <= number


async def test_who_is_cancelled_leaves_the_line() -> None:
    """The others move up, and the line moves on."""
    async with line() as (waiting, starts):
        scope = trio.CancelScope()
        await waiting.stand("first", "10.0.0.1", scope=scope)
        await waiting.stand("second", "10.0.0.1")
        scope.cancel()
        await wait_all_tasks_blocked()
        starts.release()
    assert waiting.begun == ["second"]


async def test_an_empty_line_is_no_wait() -> None:
    """One request alone begins after one checkpoint, and the next one, too."""
    starts = Starts()
    for _ in range(3):
        await starts.next("10.0.0.1", first=True)
    assert not starts._moving
