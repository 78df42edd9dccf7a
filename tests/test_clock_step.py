"""A durable history beside a wall clock that is set, forward and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from repeater.brokers.receipts import Receipt
from repeater.brokers.sqlite import commit
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.fanout.intake import Intake
from repeater.json_text import json_text
from repeater.options import ChannelOptions
from repeater.publication import Publication, StreamPosition

TTL = 300.0
OPTIONS = ChannelOptions(history_size=100, history_ttl=TTL, history_meta_ttl=86_400.0)


class Clock:
    """Unix seconds that are set."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process, as far as a history can tell."""
    clock = Clock()
    monkeypatch.setattr(commit, "time_ns", lambda: int(clock() * 1e9))
    return clock


@asynccontextmanager
async def running(folder: Path, clock: Clock) -> AsyncIterator[SQLiteBroker]:
    """A durable broker by this clock, which takes submissions."""
    async with open_sqlite_broker(folder, now=clock) as broker, trio.open_nursery() as nursery:
        nursery.start_soon(broker.run, Intake(1_000, 1 << 20, 1 << 20))
        await broker.wait_room()
        yield broker
        nursery.cancel_scope.cancel()


async def publish(broker: SQLiteBroker, count: int = 1) -> StreamPosition:
    """Publish; return the last position."""
    for _ in range(count):
        receipt = broker.submit(Publication("news", json_text(b"1")), OPTIONS)
        assert isinstance(receipt, Receipt)
        at = await receipt.wait()
    assert at is not None
    return at


def offsets(broker: SQLiteBroker, since: StreamPosition | None = None) -> list[int]:
    return [one.offset for one in broker.history("news", OPTIONS, since=since)[0]]


async def test_a_clock_that_is_set_back_loses_nothing(tmp_path: Path, clock: Clock) -> None:
    """Offsets go on, nothing expires too early, and a restart meanwhile changes nothing."""
    async with running(tmp_path, clock) as broker:
        first = await publish(broker, 3)
        clock.seconds -= 3_600
        assert await publish(broker, 2) == StreamPosition(5, first.epoch)
        clock.seconds += TTL - 1
        assert offsets(broker, StreamPosition(2, first.epoch)) == [3, 4, 5]
    async with running(tmp_path, clock) as broker:
        assert offsets(broker) == [1, 2, 3, 4, 5]
        assert await publish(broker) == StreamPosition(6, first.epoch)


async def test_a_clock_that_is_set_forward_takes_nothing_from_a_running_server(
    tmp_path: Path, clock: Clock
) -> None:
    """What is too old by the clock goes at the next start; the stream goes on all the same."""
    async with running(tmp_path, clock) as broker:
        first = await publish(broker, 3)
        clock.seconds += 3_600
        await trio.sleep(1.2)  # until the house-keeping has seen it
        assert offsets(broker) == [1, 2, 3]
        assert await publish(broker) == StreamPosition(4, first.epoch)
    async with running(tmp_path, clock) as broker:
        assert offsets(broker) in ([4], [1, 2, 3, 4])
        assert await publish(broker) == StreamPosition(5, first.epoch)
    clock.seconds -= 86_400  # far before everything that is kept
    async with running(tmp_path, clock) as broker:
        assert offsets(broker)[-2:] == [4, 5]
        assert await publish(broker) == StreamPosition(6, first.epoch)
