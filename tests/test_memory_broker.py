"""The broker in memory: it keeps the contract, and it forgets what expired."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from repeater.brokers.memory import MemoryBroker
from repeater.fanout.intake import Intake
from repeater.options import ChannelOptions
from repeater.publication import Publication, StreamPosition
from repeater.testing import check_broker

OPTIONS = ChannelOptions(history_size=3, history_ttl=60, history_meta_ttl=600)


@asynccontextmanager
async def open_broker() -> AsyncIterator[MemoryBroker]:
    yield MemoryBroker(idempotency_ttl=30)


@asynccontextmanager
async def running(broker: MemoryBroker, *, room: int = 8) -> AsyncIterator[MemoryBroker]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.run, Intake(room, 65_536))
        yield broker
        nursery.cancel_scope.cancel()


def event(channel: str = "c") -> Publication:
    return Publication(channel, b"1")


async def test_it_keeps_the_contract(autojump_clock: MockClock) -> None:
    """The conformance suite that is exported for everybody's brokers."""
    await check_broker(open_broker, idempotency_ttl=30)


async def test_what_expired_is_forgotten(autojump_clock: MockClock) -> None:
    """After the meta TTL nothing of a channel or of an idempotency key is held any more."""
    async with running(MemoryBroker(idempotency_ttl=30)) as broker:
        for number in range(5):
            await broker.publish(event(f"c{number}"), OPTIONS, idempotency_key="k")
        await broker.history("only read", OPTIONS)
        await trio.sleep(700)
        assert not broker._streams
        assert not broker._due
        assert not broker._results


async def test_stream_that_is_published_into_lives_on(autojump_clock: MockClock) -> None:
    """Each publication moves both expiries; the sweep finds each stream again."""
    async with running(MemoryBroker(), room=100) as broker:
        epochs = set()
        for _ in range(20):
            position = await broker.publish(event(), OPTIONS)
            assert position is not None
            epochs.add(position.epoch)
            await trio.sleep(500)
        assert len(epochs) == 1
        assert position == StreamPosition(20, *epochs)
        await trio.sleep(200)
        assert not broker._streams
