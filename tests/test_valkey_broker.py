"""The broker of several nodes, on real servers: the contract, order, and keys that are not ours."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest
import trio

from repeater.brokers.contract import Broker, EngineStatistics, Page
from repeater.brokers.receipts import settled
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.errors import BrokerError, open_service_nursery
from repeater.publication import Announcement, ClientInfo, Publication, Rupture, StreamPosition
from repeater.testing.broker import check_broker
from repeater.testing.broker_bench import LASTING, Bench, data_of, offsets_of, running
from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import packed
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS
from tests.submission_order import Ledger
from tests.valkeys import PROGRAMS, Program, ValkeyServer, valkey

pytestmark = pytest.mark.timeout(120)

MANY = msgspec.structs.replace(LASTING, history_size=10_000)
ROOM = 100_000


@pytest.fixture(params=PROGRAMS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    program: Program = request.param
    with valkey(program) as one:
        yield one


def broker_of(server: ValkeyServer, idempotency_ttl: float = 300) -> ValkeyBroker:
    """A broker that is not running yet; a server that is slow on a busy machine is not gone."""
    servers = open_servers([parse_url(server.unix_url)], timeout=LOOP_ANSWERS)
    return ValkeyBroker(servers, idempotency_ttl=idempotency_ttl)


@asynccontextmanager
async def benches(server: ValkeyServer, count: int = 1) -> AsyncIterator[Sequence[Bench]]:
    """Brokers that run on one engine, all with the same channel in hand."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield broker_of(server)

    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(running(opened, room=ROOM, options=MANY))
            for _ in range(count)
        ]
        for one in found:
            one.channel = "c"
        yield found


def engine_of(bench: Bench) -> EngineStatistics:
    found = bench.broker.statistics().engine
    assert found is not None
    return found


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(LOOP_ANSWERS):
        while not condition():  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)


async def test_it_keeps_the_contract(server: ValkeyServer) -> None:
    """The conformance suite, in real time."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield broker_of(server, idempotency_ttl=5)

    await check_broker(opened, idempotency_ttl=5)


async def test_two_nodes_agree(server: ValkeyServer) -> None:
    """Two brokers of one engine hand on the same events, and know the same keys and versions."""
    async with benches(server, 2) as (one, other):
        joined = Announcement("c", ClientInfo("ann", "1"), joined=True)
        for bench in (one, other):
            await bench.hold()
        first = await one.numbered(b"1", key="k")
        assert await other.publish(b"2", key="k") == first
        await other.announce(joined)
        newest = Publication("c", b"3", version=5)
        second = await other.send(newest)
        assert second == StreamPosition(2, first.epoch)
        assert await one.send(msgspec.structs.replace(newest, version=4)) == second
        await one.publish(b"4", skip_history=True)
        heard = [await bench.handed_on(4) for bench in (one, other)]
        assert heard[0] == heard[1]
        assert data_of(heard[0]) == [b"1", b"", b"3", b"4"]
        assert offsets_of(heard[0]) == [1, 2, 0]
        assert await one.history() == await other.history()


def forget_scripts(server: ValkeyServer, done: threading.Event) -> None:
    """Have the server forget all scripts, some thousand times a second, in a thread of its own."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.path)
        while not done.wait(0.0001):
            connection.sendall(packed("SCRIPT", "FLUSH"))
            connection.recv(64)


async def test_the_order_of_submission_is_the_order_of_offsets(server: ValkeyServer) -> None:
    """Each publisher's publications keep their order, while the server forgets its scripts."""
    ledger = Ledger([f"c{number}" for number in range(10)], MANY)
    async with benches(server, 2) as found, trio.open_nursery() as nursery:
        for bench in found:
            for channel in ledger.channels:
                await bench.hold(channel)
        done = threading.Event()
        nursery.start_soon(trio.to_thread.run_sync, forget_scripts, server, done)
        try:
            async with trio.open_nursery() as publishers:
                for number in range(6):
                    broker = found[number % 2].broker
                    under_way = (1, 10, 100)[number // 2]
                    publishers.start_soon(ledger.publish, broker, number, 500, under_way)
        finally:
            done.set()
        assert not ledger.failures
        ledger.check_order()
        for bench in found:
            events = await bench.handed_on(3_000)
            ledger.check_events(events)
            assert len({(one.channel, one.offset) for one in events}) == 3_000  # type: ignore[union-attr]


async def history_in_the_end(bench: Bench, channel: str) -> Page:
    """What is kept of a channel, as soon as the engine is there for long enough to say so."""
    with trio.fail_after(LOOP_ANSWERS):
        while True:
            try:
                return await settled(bench.broker.history(channel, MANY))
            except BrokerError:
                await trio.sleep(0.05)


async def test_order_when_connections_end(server: ValkeyServer) -> None:
    """What was under way may have failed; what was acknowledged is there once, and in order."""
    ledger = Ledger([f"c{number}" for number in range(4)], MANY)
    async with benches(server) as (bench,), trio.open_nursery() as nursery:
        for channel in ledger.channels:
            await bench.hold(channel)
        kills = trio.CancelScope()

        async def kill() -> None:
            with kills:
                while True:
                    await trio.sleep(0.3)
                    server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                    server.call("CLIENT", "KILL", "TYPE", "pubsub")

        nursery.start_soon(kill)
        async with trio.open_nursery() as publishers:
            for number in range(4):
                publishers.start_soon(ledger.publish, bench.broker, number, 2_000, 50)
        kills.cancel()
        assert ledger.acknowledged
        ledger.check_order()
        for channel in ledger.channels:
            found, top = await history_in_the_end(bench, channel)
            wanted = {
                at.offset: data
                for (name, at), data in ledger.acknowledged.items()
                if name == channel
            }
            kept = {one.offset: one.data for one in found}
            assert sorted(kept) == [*range(1, top.offset + 1)]
            assert wanted.items() <= kept.items()


async def test_many_go_in_one_script(server: ValkeyServer) -> None:
    """What is submitted while a script is under way goes in few scripts."""
    async with benches(server) as (bench,):
        answers = [await bench.submit(Publication("c", b"1")) for _ in range(1_000)]
        offsets = [one and one.offset for one in [await settled(one) for one in answers]]
        assert offsets == [*range(1, 1_001)]
        assert engine_of(bench).scripts <= 20


async def test_reading_keeps_little_for_long(server: ValkeyServer) -> None:
    """The epoch of a channel that was only asked for is forgotten after some minutes."""
    async with benches(server) as (bench,):
        await bench.history()
        assert 290_000 < int(server.call("PTTL", "repeater:m:c")) <= 300_000  # type: ignore[call-overload]
        assert server.call("KEYS", "*") == [b"repeater:m:c"]
        await bench.publish()
        assert int(server.call("PTTL", "repeater:m:c")) > 590_000  # type: ignore[call-overload]
        assert 590_000 < int(server.call("PTTL", "repeater:s:c")) <= 600_000  # type: ignore[call-overload]


async def test_an_epoch_is_kept_longer_without_publications_only(server: ValkeyServer) -> None:
    """A publication that came meanwhile has said for how long the stream is kept."""
    async with benches(server) as (bench,):
        broker = bench.broker
        assert isinstance(broker, ValkeyBroker)
        await bench.history()
        server.call("PEXPIRE", "repeater:m:c", 9_000)
        broker._engine.renew("c")
        await bench.history(limit=0)
        assert int(server.call("PTTL", "repeater:m:c")) > 290_000  # type: ignore[call-overload]
        await bench.publish()
        broker._engine.renew("c")
        await bench.history(limit=0)
        assert int(server.call("PTTL", "repeater:m:c")) > 590_000  # type: ignore[call-overload]


async def test_holding_keeps_nothing(server: ValkeyServer) -> None:
    """A channel without history that is held and published to leaves no keys."""
    async with benches(server) as (bench,):
        bench.options = msgspec.structs.replace(LASTING, history_size=0)
        await bench.publish()
        assert len(await bench.handed_on(1)) == 1
        assert server.call("KEYS", "*") == []


@pytest.mark.parametrize(
    "spoil",
    [
        ["SET", "repeater:m:c", "x"],
        ["HSET", "repeater:m:c", "e", "no epoch"],
        ["HSET", "repeater:m:c", "o", "no number"],
        ["HSET", "repeater:m:c", "o", "-5"],
        ["HSET", "repeater:m:c", "e", "x" * 33],
        ["SET", "repeater:s:c", "x"],
        ["XADD", "repeater:s:c", "999-1", "x", "y"],
    ],
    ids=" ".join,
)
async def test_a_key_that_is_not_ours(server: ValkeyServer, spoil: Sequence[str]) -> None:
    """The stream begins anew with the next publication: its listeners are told, nobody fails."""
    async with benches(server) as (bench,):
        first = await bench.numbered(b"1")
        if spoil[0] == "SET":
            server.call("DEL", spoil[1])
        server.call(*spoil)
        second = await bench.numbered(b"2")
        assert second.offset == 1
        assert second.epoch != first.epoch
        assert await bench.numbered(b"3") == StreamPosition(2, second.epoch)
        found, top = await bench.history()
        assert (data_of(found), top.offset) == ([b"2", b"3"], 2)
        assert data_of(await bench.handed_on(1)) == [b"1"]
        with trio.fail_after(LOOP_ANSWERS):
            while await bench.handed_on(1) != [Rupture("c")]:
                pass
        assert engine_of(bench).foreign["streams"] >= 1
        assert engine_of(bench).ruptures == 1


async def test_an_entry_that_is_not_ours(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An entry of a stream that no node has written is left out of history, and counted.

    Each read finds it again, and does not log it each time.
    """
    monkeypatch.setattr("repeater.brokers.valkey.warning_limit._PAUSE", 1_000)
    async with benches(server) as (bench,):
        await bench.publish(b"1")
        server.call("XADD", "repeater:s:c", "1-9999999999999", "d", "hello")
        await bench.publish(b"2")
        found, _ = await bench.history()
        assert data_of(found) == [b"1", b"2"]
        assert engine_of(bench).foreign == {"streams": 1}
        await bench.history()
        assert engine_of(bench).foreign == {"streams": 2}
        assert len([one for one in caplog.records if "not ours" in one.getMessage()]) == 1


async def test_a_result_that_is_not_ours(server: ValkeyServer) -> None:
    """What is at the place of a key's result and is not a result counts as none."""
    async with benches(server) as (bench,):
        no_results = ("hello", "1 e e", "9" * 5_000, f"{2**64} e", f"1 {'e' * 33}")
        values = [*(("SET", text) for text in no_results), ("LPUSH", "x")]
        for offset, value in enumerate(values, 1):
            server.call("DEL", "repeater:i:1:c:k")
            server.call(value[0], "repeater:i:1:c:k", value[1])
            position = await bench.numbered(key="k")
            assert position.offset == offset
            assert await bench.publish(key="k") == position


async def test_a_reading_of_keys_that_are_not_ours(server: ValkeyServer) -> None:
    """History of a channel whose keys are others' is that of a channel without a stream."""
    async with benches(server) as (bench,):
        server.call("SET", "repeater:m:c", "x")
        server.call("SET", "repeater:s:c", "x")
        found, top = await bench.history()
        assert (list(found), top.offset) == ([], 0)
        assert await bench.publish() == StreamPosition(1, top.epoch)


async def test_an_engine_that_is_full() -> None:
    """A server without memory refuses publications; reads go on, and publishing with it again."""
    with valkey() as server:
        async with benches(server) as (bench,):
            await bench.publish(b"1")
            server.call("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(BrokerError, match="OOM"):
                await bench.publish(b"2")
            assert data_of((await bench.history())[0]) == [b"1"]
            server.call("CONFIG", "SET", "maxmemory", "0")
            assert (await bench.numbered(b"3")).offset == 2
            assert data_of(await bench.handed_on(2)) == [b"1", b"3"]


async def test_an_engine_that_is_down(server: ValkeyServer) -> None:
    """Nothing waits for a server that is gone: each call fails at once. It comes back by itself."""
    async with benches(server) as (bench,):
        broker = bench.broker
        await bench.publish(b"1")
        server.kill()
        await until(lambda: bool(broker.outage()))
        for call in (
            lambda: broker.submit(Publication("c", b"2"), MANY),
            lambda: broker.announce(Announcement("c", ClientInfo("", "1"), joined=True)),
            lambda: broker.history("c", MANY),
            lambda: broker.remove_history("c"),
            lambda: broker.hold("other"),
        ):
            with pytest.raises(BrokerError):
                call()
        server.start()
        await until(lambda: not broker.outage())
        assert (await bench.numbered(b"3")).offset == 1  # It kept nothing on its disk.


async def test_an_end_before_the_engine_was_there() -> None:
    """Whoever waits to publish is told that the node is shutting down."""
    broker = ValkeyBroker(open_servers([parse_url("unix:///nowhere")]))
    closed = trio.Event()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await broker.wait_room()
        closed.set()

    async with open_service_nursery() as waiting:
        async with open_service_nursery() as nursery:
            nursery.start_soon(broker.run, Bench(broker, ROOM, MANY).intake)
            await trio.testing.wait_all_tasks_blocked()
            waiting.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(LOOP_ANSWERS):
            await closed.wait()


async def test_a_start_without_an_engine(server: ValkeyServer) -> None:
    """A broker whose engine is not there says so after some seconds, and begins when it comes."""
    server.kill()
    broker = broker_of(server)
    async with open_service_nursery() as nursery:
        bench = Bench(broker, ROOM, MANY)
        nursery.start_soon(broker.run, bench.intake)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            broker.submit(Publication("c", b"1"), MANY)
        with trio.fail_after(LOOP_ANSWERS):
            await broker.wait_room()
        assert broker.outage()
        with pytest.raises(BrokerError):
            broker.submit(Publication("c", b"1"), MANY)
        server.start()
        await until(lambda: not broker.outage())
        assert (await bench.numbered()).offset == 1
