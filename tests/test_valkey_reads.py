"""Reads that are made once for many who ask, and decoded in turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.receipts import Receipt
from repeater.brokers.valkey import reads as module
from repeater.brokers.valkey.reads import LEAST, Reads
from repeater.errors import BrokerError, open_service_nursery

pytestmark = pytest.mark.timeout(10)

Tell = Callable[[object], None]


class Counting:
    """Decodes a number: it has so many entries. A text is an error."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.steps: list[int] = []

    def step(self, most: int) -> int:
        if not isinstance(self.answer, int):
            raise BrokerError(str(self.answer))
        count = min(most, self.answer - sum(self.steps))
        self.steps.append(count)
        return count

    def result(self) -> list[int]:
        return self.steps


class Engine:
    """Takes questions; the test answers."""

    def __init__(self) -> None:
        self.asked: list[Tell] = []
        self.is_down = False

    def question(self, tell: Tell) -> None:
        if self.is_down:
            raise BrokerError("down")
        self.asked.append(tell)


@asynccontextmanager
async def running(partitions: int = 1) -> AsyncIterator[tuple[Reads, Engine]]:
    reads = Reads(partitions)
    async with open_service_nursery() as nursery:
        nursery.start_soon(reads.run)
        yield reads, Engine()


def ask(reads: Reads, engine: Engine, key: str = "k", partition: int = 0) -> Receipt[list[int]]:
    return reads.ask(partition, key, engine.question, Counting)


async def test_who_asks_the_same_waits_for_the_next_read() -> None:
    """One read is under way, and all who come meanwhile share the next one, not this one."""
    async with running() as (reads, engine):
        first = ask(reads, engine)
        later = [ask(reads, engine) for _ in range(100)]
        other = ask(reads, engine, "other")
        assert len(engine.asked) == 2
        engine.asked[0](1)
        assert await first.wait() == [1]
        await wait_all_tasks_blocked()
        assert not any(one.settled for one in (*later, other))
        assert len(engine.asked) == 3
        engine.asked[2](2)
        assert [await one.wait() for one in later] == [[2]] * 100
        engine.asked[1](3)
        assert await other.wait() == [3]
        ask(reads, engine)
        assert len(engine.asked) == 4


async def test_a_long_answer_is_decoded_in_turns() -> None:
    """Nobody waits for a thousand entries of somebody else's."""
    async with running() as (reads, engine):
        long, short = ask(reads, engine, "long"), ask(reads, engine, "short")
        engine.asked[0](1_000)
        engine.asked[1](1)
        await trio.lowlevel.checkpoint()
        assert not long.settled
        steps = await long.wait()
        assert len(steps) > 3
        assert sum(steps) == 1_000
        assert await short.wait() == [1]


async def test_so_many_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stand in line, where equal ones are one; each answer lets the next one go."""
    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "LEAST", 1)
    async with running() as (reads, engine):
        first = [ask(reads, engine, str(number)) for number in range(4)]
        again = [ask(reads, engine, str(number)) for number in range(4)]
        assert len(engine.asked) == 2
        for number in range(6):
            assert len(engine.asked) == min(number + 2, 6)
            engine.asked[number](1)
            await wait_all_tasks_blocked()
        assert all(one.succeeded for one in (*first, *again))
        ask(reads, engine)
        assert len(engine.asked) == 7


async def test_a_partition_holds_up_its_own_reads_alone() -> None:
    """Where nothing is answered, reads stand in line; those of other partitions go on."""
    async with running(partitions=128) as (reads, engine):
        for number in range(LEAST + 5):
            ask(reads, engine, f"silent {number}")
        assert len(engine.asked) == LEAST
        other = ask(reads, engine, "other", partition=1)
        engine.asked[-1](1)
        assert await other.wait() == [1]


async def test_the_line_ends_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stands in line is told as soon as those in front are; however many they are."""
    monkeypatch.setattr(module, "AT_ONCE", 1)
    monkeypatch.setattr(module, "LEAST", 1)
    async with running() as (reads, engine):
        first, *others = [ask(reads, engine, str(number)) for number in range(3_000)]
        engine.is_down = True
        engine.asked[0]("lost")
        for one in (first, *others):
            with pytest.raises(BrokerError, match="lost" if one is first else "down"):
                await one.wait()
        engine.is_down = False
        ask(reads, engine)
        assert len(engine.asked) == 2


async def test_an_error_is_everybodys_answer() -> None:
    """An answer that cannot be read fails those who wait for it, and those only."""
    async with running() as (reads, engine):
        first, second = ask(reads, engine), ask(reads, engine)
        engine.asked[0]("no")
        with pytest.raises(BrokerError, match="no"):
            await first.wait()
        await wait_all_tasks_blocked()
        engine.asked[1](1)
        assert await second.wait() == [1]


async def test_an_engine_that_is_down() -> None:
    """Who asks first is told at once; who waits for the next read when it cannot be asked."""
    async with running() as (reads, engine):
        first, second = ask(reads, engine), ask(reads, engine)
        engine.is_down = True
        with pytest.raises(BrokerError, match="down"):
            ask(reads, engine, "other")
        engine.asked[0](1)
        assert await first.wait() == [1]
        with pytest.raises(BrokerError, match="down"):
            await second.wait()
        engine.is_down = False
        ask(reads, engine, "other")
        assert len(engine.asked) == 2


async def test_the_end_settles_all() -> None:
    """Nobody waits for a broker that has ended, and a late answer is nobody's."""
    async with running() as (reads, engine):
        receipts = [ask(reads, engine), ask(reads, engine), ask(reads, engine, "other")]
    for one in receipts:
        with pytest.raises(BrokerError, match="ended"):
            await one.wait()
    with pytest.raises(BrokerError, match="ended"):
        ask(reads, engine)
    engine.asked[0](1)
