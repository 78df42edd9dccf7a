"""A supervisor and its workers: the contracts of broker and stores hold over their link."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from trio.testing import MockClock

from repeater.brokers.contract import Broker, PresenceStore
from repeater.brokers.control import Supervision
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.testing import check_broker, check_control, check_presence_store
from repeater.testing.broker import RULES
from repeater.testing.broker_history import HISTORY_RULES
from repeater.testing.control_bench import Controls
from repeater.testing.rules import hold
from tests.brokers import LateBroker
from tests.worker_links import supervising

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("late", [False, True])
async def test_the_broker_keeps_the_contract(autojump_clock: MockClock, *, late: bool) -> None:
    """The conformance suite of brokers, over a socket pair; also if the engine answers late."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        memory = MemoryBroker(idempotency_ttl=30)
        broker = LateBroker(memory) if late else memory
        async with supervising(broker) as supervisor, supervisor.worker() as link:
            yield link.broker

    await check_broker(opened, idempotency_ttl=30)


async def test_the_broker_keeps_the_contract_with_a_file(tmp_path: Path) -> None:
    """The same over the broker that commits, in real time, without what waits for an expiry."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        async with (
            open_sqlite_broker(tmp_path, idempotency_ttl=1) as broker,
            supervising(broker) as supervisor,
            supervisor.worker() as link,
        ):
            yield link.broker

    await hold([one for one in RULES if one not in HISTORY_RULES], opened)


async def test_the_presence_store_keeps_the_contract(autojump_clock: MockClock) -> None:
    """The conformance suite of presence stores, over a socket pair."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[PresenceStore]:
        async with supervising() as supervisor, supervisor.worker() as link:
            yield link.presence

    await check_presence_store(opened)


async def test_the_control_keeps_the_contract(autojump_clock: MockClock) -> None:
    """The conformance suite of controls, over the links of several workers."""

    @asynccontextmanager
    async def opened(count: int, supervision: Supervision) -> AsyncIterator[Controls]:
        async with AsyncExitStack() as stack:
            supervisor = await stack.enter_async_context(supervising(supervision=supervision))
            links = [await stack.enter_async_context(supervisor.worker()) for _ in range(count)]
            yield [one.control for one in links], supervisor.exchange.control

    await check_control(opened, most=3)
