"""A broker that is barred, ended and put back while its node lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from repeater.brokers.contract import Broker
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.receipts import Receipt
from repeater.brokers.replaceable import ReplaceableBroker
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.errors import BrokerError
from repeater.publication import Publication
from repeater.testing import check_broker
from repeater.testing.broker_bench import data_of, running
from tests.deadlines import LOOP_ANSWERS

pytestmark = pytest.mark.timeout(2 * LOOP_ANSWERS)


async def test_it_keeps_the_contract(autojump_clock: trio.testing.MockClock) -> None:
    """By the broker behind it."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield ReplaceableBroker(MemoryBroker(idempotency_ttl=30))

    await check_broker(opened, idempotency_ttl=30)


async def test_a_barred_broker_keeps_everything() -> None:
    """Calls fail meanwhile, and go on behind it in the same stream."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield broker

    broker = ReplaceableBroker(MemoryBroker())
    async with running(opened) as bench:
        first = await bench.numbered()
        broker.bar("away")
        assert broker.outage() == "away"
        for call in (bench.publish, bench.history, broker.wait_room):
            with pytest.raises(BrokerError, match="away"):
                await call()
        with pytest.raises(BrokerError, match="away"):
            broker.remove_history(bench.channel)
        broker.put_back()
        second = await bench.numbered()
        assert (second.offset, second.epoch) == (2, first.epoch)
        assert not broker.outage()
        assert broker.statistics().streams == 1


async def test_an_ended_broker_is_replaced(tmp_path: Path) -> None:
    """What was submitted is committed and handed on before; the next one goes on with the file."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield broker

    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_sqlite_broker(tmp_path))
        broker = ReplaceableBroker(engine)
        async with running(opened) as bench:
            await bench.numbered(b"0")
            answers = [await bench.submit(Publication(bench.channel, b"%d" % n)) for n in (1, 2)]
            broker.bar("away")
            await broker.end()
            assert [isinstance(one, Receipt) and one.settled for one in answers] == [True, True]
            await stack.aclose()
            with pytest.raises(BrokerError, match="away"):
                await bench.publish()
            broker.put_back(await stack.enter_async_context(open_sqlite_broker(tmp_path)))
            assert (await bench.numbered(b"3")).offset == 4
            kept, _ = await bench.history()
            assert [one.offset for one in kept] == [2, 3, 4]
            assert data_of(await bench.handed_on(4)) == [b"0", b"1", b"2", b"3"]
