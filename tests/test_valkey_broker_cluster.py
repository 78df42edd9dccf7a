"""The engine on a cluster: the contracts, and order while partitions move and fail over."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

import msgspec
import pytest
import trio

from repeater.brokers.contract import Broker, PresenceStore
from repeater.brokers.control import Supervision
from repeater.brokers.receipts import settled
from repeater.brokers.source_rows import SourceRow
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.cluster.presence import open_cluster_presence
from repeater.publication import Publication
from repeater.random_id import random_id
from repeater.testing.broker import check_broker
from repeater.testing.broker_bench import LASTING, Bench, running
from repeater.testing.control import check_control
from repeater.testing.control_bench import Controls
from repeater.testing.presence import check_presence_store
from repeater.valkey.opening import open_servers
from repeater.valkey.slots import partition_of, slot_of, tags
from repeater.valkey.url import parse_url
from tests.clusters import open_clusters
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.submission_order import Ledger
from tests.valkey_clusters import ClusterServers, cluster
from tests.valkeys import REDIS, VALKEY

pytestmark = pytest.mark.timeout(180)

MANY = msgspec.structs.replace(LASTING, history_size=10_000)


@pytest.fixture(scope="module")
def old_servers() -> Iterator[ClusterServers]:
    with cluster(REDIS) as servers:
        yield servers


@pytest.fixture(params=[VALKEY, REDIS], ids=str)
def servers(request: pytest.FixtureRequest) -> Iterator[ClusterServers]:
    with cluster(request.param) as found:
        yield found


@asynccontextmanager
async def broker_of(url: str) -> AsyncIterator[Broker]:
    """A broker that is not running yet, and leaves no server that a busy machine holds up."""
    yield ValkeyBroker(open_servers([parse_url(url)], timeout=LOOP_ANSWERS), idempotency_ttl=5.0)


@asynccontextmanager
async def benches(url: str, number: int) -> AsyncIterator[Sequence[Bench]]:
    """Brokers of so many nodes that run."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running(lambda: broker_of(url), room=100_000, options=MANY)
            )
            for _ in range(number)
        ]


async def test_the_broker_keeps_its_contract(old_servers: ClusterServers) -> None:
    """The rules of `Broker` hold on the partitions of a cluster."""
    await check_broker(lambda: broker_of(old_servers.url), idempotency_ttl=5.0)


async def test_rows_are_in_all_partitions(old_servers: ClusterServers) -> None:
    """Rows of one source are remembered where their channels are, and read and forgotten there."""
    names = [f"n{number}" for number in range(60)]
    source = random_id()
    async with benches(old_servers.url, 2) as (one, other):
        answers = [
            await one.submit(Publication(f"rows:{name}", b"1"), row=SourceRow(source, 1, name))
            for name in names
        ]
        known: Sequence[str] = await settled(one.broker.known_rows(source))
        assert sorted(known) == sorted(names)
        first = [await settled(answer) for answer in answers]
        for name, result in zip(names, first, strict=True):
            row = SourceRow(source, 2, name)
            again = await other.submit(Publication(f"rows:{name}", b"2"), row=row)
            assert await settled(again) == result
        await settled(other.broker.forget_rows(source, names[1:]))
        known = await settled(one.broker.known_rows(source))
        assert known == names[:1]


async def test_presence_keeps_its_contract(old_servers: ClusterServers) -> None:
    """The rules of `PresenceStore` hold on the partitions of a cluster."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[PresenceStore]:
        engine = open_servers([parse_url(old_servers.url)])
        async with open_cluster_presence(engine, random_id()) as store:
            yield store

    await check_presence_store(opened, shared=True)


async def test_the_control_keeps_its_contract(old_servers: ClusterServers) -> None:
    """The rules of `Control` hold for nodes that meet in a partition of a cluster."""
    numbers = count()

    @asynccontextmanager
    async def opened(many: int, _supervision: Supervision) -> AsyncIterator[Controls]:
        prefix = f"rule{next(numbers)}"
        async with open_clusters(old_servers.url, many, prefix=prefix) as nodes:
            yield [node.control for node in nodes], None

    await check_control(opened, most=3, has_server=False)


def channels_of(partitions: Sequence[int], each: int) -> list[str]:
    """So many names of channels for each of some partitions."""
    found: dict[int, list[str]] = {number: [] for number in partitions}
    for number in count():
        name = f"c{number}"
        some = found.get(partition_of(name))
        if some is not None and len(some) < each:
            some.append(name)
        if all(len(names) == each for names in found.values()):
            return [name for names in found.values() for name in names]
    raise AssertionError


async def until(is_so: Callable[[], bool]) -> None:
    """Look again and again for what servers do by themselves."""
    with trio.fail_after(PROCESS_STARTS):
        while not is_so():  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.02)


async def move_slots(servers: ClusterServers, partitions: Sequence[int]) -> None:
    """Move the slots of partitions from server to server, a few keys at a time."""
    for number in partitions:
        slot = slot_of(tags()[number])
        owner = servers.primaries.index(servers.owner(slot))
        target = servers.primaries[(owner + 1) % 3]
        servers.begin_move(slot, target)
        await trio.sleep(0.05)
        await until(lambda slot=slot, target=target: not servers.move_keys(slot, target, 2))  # type: ignore[misc]
        servers.end_move(slot, target)
        await trio.sleep(0.05)


async def test_moving_slots_lose_nothing_and_keep_the_order(servers: ClusterServers) -> None:
    """While slots move and scripts are forgotten, nothing fails, and each node hears everything."""
    partitions = [3, 64, 120]
    ledger = Ledger(channels_of(partitions, 3), MANY)
    async with benches(servers.url, 2) as found:
        for bench in found:
            for channel in ledger.channels:
                await bench.hold(channel)
        async with trio.open_nursery() as nursery:

            async def disturb() -> None:
                for _ in range(2):
                    await move_slots(servers, partitions)
                    for server in servers.primaries:
                        server.call("SCRIPT", "FLUSH")

            async def publish(number: int) -> None:
                for _ in range(50):
                    under_way = (1, 10, 100)[number // 2]
                    await ledger.publish(found[number % 2].broker, number, 20, under_way)
                    await trio.sleep(0.02)

            nursery.start_soon(disturb)
            for number in range(6):
                nursery.start_soon(publish, number)
        assert not ledger.failures
        assert len(ledger.acknowledged) == 6_000
        ledger.check_order()
        for bench in found:
            with trio.fail_after(LOOP_ANSWERS):
                events = await bench.handed_on(6_000)
            ledger.check_events(events)
            assert all(type(event) is Publication for event in events)
            assert len({(one.channel, one.offset) for one in events}) == 6_000  # type: ignore[union-attr]


async def test_a_primary_that_dies_is_an_outage_of_its_partitions_alone() -> None:
    """Others go on; what was acknowledged and copied is there, and is heard, after the failover."""
    with cluster(replicas=True) as servers:
        first = [
            number
            for number, tag in enumerate(tags())
            if servers.owner(slot_of(tag)) is servers.primaries[0]
        ]
        others = [number for number in range(len(tags())) if number not in first]
        hurt, whole = channels_of(first[:2], 2), channels_of(others[:2], 2)
        ledger, calm = Ledger(hurt, MANY), Ledger(whole, MANY)
        async with benches(servers.url, 1) as (bench,), trio.open_nursery() as nursery:
            for channel in (*hurt, *whole):
                await bench.hold(channel)
            stop = trio.Event()

            async def publish(one: Ledger, number: int) -> None:
                while not stop.is_set():
                    await one.publish(bench.broker, number, 5, 5)
                    await trio.sleep(0.02)

            async with trio.open_nursery() as publishers:
                publishers.start_soon(publish, ledger, 0)
                publishers.start_soon(publish, calm, 1)
                await trio.sleep(0.5)
                servers.primaries[0].process.send_signal(signal.SIGKILL)
                await until(lambda: bool(bench.broker.outage()))
                await until(lambda: not bench.broker.outage())
                await trio.sleep(0.5)
                stop.set()
            assert not calm.failures
            assert ledger.failures
            for one in (ledger, calm):
                one.check_order()
                for channel in one.channels:
                    bench.channel = channel
                    found, top = await bench.history()
                    kept = {publication.offset: publication.data for publication in found}
                    assert sorted(kept) == [*range(1, top.offset + 1)]
                    lost = one.acknowledged_in(channel).items() - kept.items()
                    # Copies are made a moment later than answers.
                    assert len(lost) <= 10
                    assert one is ledger or not lost
            nursery.cancel_scope.cancel()
