"""Presence of several nodes in one engine, on real servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.cluster import presence
from repeater.cluster.opening import open_cluster
from repeater.cluster.presence import ClusterPresence, open_cluster_presence
from repeater.cluster.presence_entries import Entries
from repeater.errors import BrokerError
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import ClientInfo
from repeater.random_id import random_id
from repeater.testing import check_presence_store
from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import Lost, Refused
from repeater.valkey.servers import Servers
from repeater.valkey.url import parse_url
from tests.conversation import Talk, talking
from tests.deadlines import LOOP_ANSWERS
from tests.foreign_rows import deepened
from tests.valkey_connections import Log, connected
from tests.valkeys import PROGRAMS, Program, ValkeyServer, valkey


@pytest.fixture(params=PROGRAMS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    program: Program = request.param
    with valkey(program) as running:
        yield running


@asynccontextmanager
async def node_of(
    server: ValkeyServer, node: str = "", log: Log | None = None
) -> AsyncIterator[ClusterPresence]:
    """The presence of one node that has connections of its own."""
    log = log or Log()
    servers = open_servers([parse_url(server.unix_url)])
    servers.add(log)
    async with open_cluster_presence(servers, node or random_id()) as store:
        yield store


async def there(store: ClusterPresence, channel: str = "a") -> list[str]:
    with trio.fail_after(LOOP_ANSWERS):
        return sorted(await store.members(channel).wait())


async def counted(store: ClusterPresence, channel: str = "a") -> tuple[int, int]:
    with trio.fail_after(LOOP_ANSWERS):
        return await store.count(channel).wait()


async def enter(store: ClusterPresence, *clients: str, user: str = "ann", at: str = "a") -> None:
    with trio.fail_after(LOOP_ANSWERS):
        for receipt in [store.add(at, ClientInfo(user, client)) for client in clients]:
            await receipt.wait()


async def wait_there(store: ClusterPresence, *clients: str, within: float = LOOP_ANSWERS) -> None:
    """Wait until these clients are in the channel, and nobody else."""
    with trio.fail_after(within):
        while True:
            if await there(store) == [*clients]:
                return
            await trio.sleep(0.02)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a minute takes half a second."""
    monkeypatch.setattr(presence, "LIFETIME", 0.6)
    monkeypatch.setattr(presence, "_RENEWAL", 0.25)


async def test_presence_of_a_cluster_keeps_its_contract(server: ValkeyServer) -> None:
    """The rules of `PresenceStore` hold for each node."""
    await check_presence_store(lambda: node_of(server), shared=True)


async def test_what_a_killed_node_had_is_gone_later(hasty: None, server: ValkeyServer) -> None:
    """Clients of a node that says nothing any more are gone after their time; others stay."""
    async with node_of(server, "one") as one, connected(server.unix_url) as servers:
        killed = ClusterPresence(servers, "two", prefix="repeater")
        await enter(one, "1")
        await enter(killed, "2", "3", user="bob")
        assert await there(one) == ["1", "2", "3"]
        await trio.sleep(0.3)
        assert await counted(one) == (3, 2)
        await wait_there(one, "1")
        assert await counted(one) == (1, 1)
        await trio.sleep(1)
        assert await there(one) == ["1"]
    assert server.call("KEYS", "*") == []


async def test_a_renewal_is_one_script(hasty: None, server: ValkeyServer) -> None:
    """A channel with many clients is kept alive by one small script."""
    async with node_of(server) as store:
        await enter(store, *map(str, range(1_234)))
        server.call("CONFIG", "RESETSTAT")
        await trio.sleep(1)
        calls = str(server.call("INFO", "commandstats"))
        assert "cmdstat_evalsha" in calls
        assert "hset:calls=" in calls
        assert "sadd" not in calls
        sent = int(calls.partition("cmdstat_hset:calls=")[2].partition(",")[0])
        assert 2 <= sent <= 6
        assert await counted(store) == (1_234, 1)


async def test_many_clients_of_two_nodes(server: ValkeyServer) -> None:
    """All of them are found with what was said of them, and so are their users."""
    async with node_of(server) as one, node_of(server) as two:
        answers = []
        for number in range(3_000):
            store = (one, two)[number % 2]
            info = ClientInfo(f"u{number // 3}", str(number), msgspec.Raw(b"%d" % number))
            answers.append(store.add("a", info))
        for receipt in answers:
            await receipt.wait()
        for store in (one, two):
            found = await store.members("a").wait()
            assert len(found) == 3_000
            assert found["2999"] == ClientInfo("u999", "2999", msgspec.Raw(b"2999"))
            assert await counted(store) == (3_000, 1_000)
        for number in range(0, 3_000, 2):
            one.remove("a", str(number))
        assert await counted(one) == (1_500, 1_000)
        assert len(await there(two)) == 1_500


async def test_equal_reads_are_made_together(server: ValkeyServer) -> None:
    """A hundred that ask at once cost two reads, and each finds what was there when it asked."""
    async with node_of(server) as store:
        await enter(store, "1")
        server.call("CONFIG", "RESETSTAT")
        answers = [store.members("a") for _ in range(100)]
        store.add("a", ClientInfo("bob", "2"))
        last = store.members("a")
        for receipt in answers:
            assert set(await receipt.wait()) >= {"1"}
        assert set(await last.wait()) == {"1", "2"}
        reads = str(server.call("INFO", "commandstats")).partition("cmdstat_hgetall:calls=")[2]
        assert int(reads.partition(",")[0]) <= 3


@pytest.mark.parametrize("lost", ["all", "pi:", "pu:", "pn:"])
async def test_what_the_engine_loses_comes_back(
    hasty: None, server: ValkeyServer, lost: str
) -> None:
    """After an eviction of any key everything is there again with the next renewal."""
    async with node_of(server, "one") as one, node_of(server, "two") as two:
        await enter(one, "1", "2")
        await enter(two, "3", user="bob")
        keys = server.call("KEYS", "*" if lost == "all" else f"repeater:{lost}*")
        assert isinstance(keys, list)
        assert keys
        server.call("DEL", *keys)
        await wait_there(one, "1", "2", "3")
        await wait_counted(two, (3, 2))


async def wait_counted(store: ClusterPresence, expected: tuple[int, int]) -> None:
    with trio.fail_after(LOOP_ANSWERS):
        while True:
            if await counted(store) == expected:
                return
            await trio.sleep(0.02)


async def test_what_a_failover_loses_comes_back_with_the_next_change(server: ValkeyServer) -> None:
    """A change behind one that the engine has not got brings everything."""
    async with node_of(server, "one") as store:
        await enter(store, "1", "2")
        kept = server.call("DUMP", "repeater:pi:one:a")
        assert isinstance(kept, bytes)
        store.remove("a", "1")
        await enter(store, "3", user="bob")
        server.call("RESTORE", "repeater:pi:one:a", 60_000, kept, "REPLACE")
        await enter(store, "4")
        assert await there(store) == ["2", "3", "4"]
        assert await counted(store) == (3, 2)


@pytest.mark.parametrize("key", ["pn:a", "pi:one:a", "pu:one:a"])
async def test_a_key_of_another_type_is_not_ours(server: ValkeyServer, key: str) -> None:
    """It counts as empty for readers, and the next change puts ours in its place."""
    async with node_of(server, "one") as store:
        await enter(store, "1")
        server.call("SET", f"repeater:{key}", "what")
        await there(store)
        await counted(store)
        await enter(store, "2", user="bob")
        assert await there(store) == ["1", "2"]
        assert await counted(store) == (2, 2)


async def test_rows_that_no_node_has_written(
    server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Readers leave them out and count them; the other clients are found. The log says so once."""
    async with node_of(server, "one") as store:
        await enter(store, "1")
        encode = msgspec.msgpack.encode
        foreign = {b"\xff": b"", b"7": b"what", b"8": encode(["u", b"{"])}
        foreign[b"9"] = deepened(encode(["u"]))
        for client, row in foreign.items():
            server.call("HSET", "repeater:pi:one:a", client, row)
        server.call("ZADD", "repeater:pn:a", 10**14, b"\xfe\x00{")
        assert await there(store) == ["1"]
        await counted(store)
        assert store.foreign == 4
        for _ in range(20):
            assert await there(store) == ["1"]
        assert store.foreign == 84
        assert 1 <= caplog.text.count("no member has written") <= 5  # once a second


async def test_an_outage(hasty: None) -> None:
    """Reads and new clients fail at once; what changes meanwhile is right when it is over."""
    with valkey() as server:
        log = Log()
        async with node_of(server, "one", log) as one, node_of(server, "two") as two:
            await enter(one, "1", "2")
            await enter(two, "9", user="bob")
            server.kill()
            await log.wait("up", "down")
            with pytest.raises(BrokerError):
                one.members("a")
            with pytest.raises(BrokerError):
                one.count("a")
            with pytest.raises(BrokerError):
                one.add("a", ClientInfo("ann", "3"))
            with pytest.raises(BrokerError):
                one.add("b", ClientInfo("ann", "3"))
            assert one.remove("a", "1") is None
            with pytest.raises(BrokerError):  # as is told, and kept
                one.add("a", ClientInfo("ann", "2", msgspec.Raw(b"2")))
            server.start()
            await log.wait("up", "down", "up")
            await wait_there(one, "2", "9")
            found = await one.members("a").wait()
            assert found["2"].conn_info == msgspec.Raw(b"2")
            await wait_counted(one, (2, 2))


async def test_an_answer_that_is_lost(server: ValkeyServer) -> None:
    """Whoever waits for it is told; the client is there or not as the node says then."""
    log = Log()
    async with node_of(server, "one", log) as store:
        await enter(store, "1")
        server.pause()
        failed = [store.add("a", ClientInfo("ann", one)) for one in ("2", "3", "4")]
        reading = store.members("a")
        for receipt in failed:
            with trio.fail_after(LOOP_ANSWERS), pytest.raises(BrokerError):
                await receipt.wait()
        with trio.fail_after(LOOP_ANSWERS), pytest.raises(BrokerError):
            await reading.wait()
        for one in ("2", "3"):
            store.remove("a", one)
        server.resume()
        await log.wait("up", "down", "up")
        await wait_there(store, "1", "4")


def test_the_last_client_whose_removal_is_lost() -> None:
    """The engine may still have it: so it is taken out when the engine is back."""
    names: Any = None
    entries = Entries(names)
    added = entries.add(ClientInfo("ann", "1"))
    assert entries.answered(entries.take(1), [1, 1], 0) == []
    assert added.settled
    removed = entries.remove("1")
    assert removed is not None
    assert entries.answered(entries.take(2), Lost("silence"), 0) == []
    assert removed.settled
    assert not removed.succeeded
    assert entries.waits
    assert not entries.is_over
    batch = entries.take(3)
    assert batch.arguments[0] == ""  # Whatever the engine has, it is forgotten.
    assert entries.answered(batch, [0, 0], 0) == []
    assert entries.is_over


def test_the_last_client_whose_removal_is_lost_and_then_refused() -> None:
    """It is taken out as soon as the engine does not refuse: nothing has happened until then."""
    names: Any = None
    entries = Entries(names)
    entries.add(ClientInfo("ann", "1"))
    entries.answered(entries.take(1), [1, 1], 0)
    entries.remove("1")
    entries.answered(entries.take(2), Lost("silence"), 0)
    entries.answered(entries.take(3), Refused("OOM command not allowed"), 0)
    assert not entries.is_over
    batch = entries.take(4)
    assert batch.arguments[0] == ""
    assert entries.answered(batch, [0, 0], 0) == []
    assert entries.is_over


async def test_a_client_that_is_added_again_in_an_outage(hasty: None) -> None:
    """However often, nothing is kept for it but its info."""
    with valkey() as server:
        log = Log()
        async with node_of(server, "one", log) as store:
            await enter(store, "1")
            server.kill()
            await log.wait("up", "down")
            for _ in range(100):
                with pytest.raises(BrokerError):
                    store.add("a", ClientInfo("ann", "1"))
            assert store._channels["a"]._changed == {"1": []}


async def test_an_engine_without_room(server: ValkeyServer) -> None:
    """A client that finds no room is refused; those who are there stay."""
    async with node_of(server, "one") as store:
        await enter(store, "1")
        server.call("CONFIG", "SET", "maxmemory", "1")
        for _ in range(2):
            with trio.fail_after(LOOP_ANSWERS), pytest.raises(BrokerError, match="OOM"):
                await store.add("a", ClientInfo("ann", "2")).wait()
            store.remove("a", "2")
        assert await there(store) == ["1"]
        server.call("CONFIG", "SET", "maxmemory", "0")
        await enter(store, "3")
        assert await there(store) == ["1", "3"]


async def test_scripts_that_are_forgotten(server: ValkeyServer) -> None:
    """A server that knows no script gets the text, and nobody notices."""
    async with node_of(server) as store:
        for number in range(20):
            server.call("SCRIPT", "FLUSH")
            answers = [store.add("a", ClientInfo("ann", str(number)))]
            reading = store.members("a")
            answers.append(store.add("a", ClientInfo("ann", f"x{number}")))
            assert str(number) in await reading.wait()
            for receipt in answers:
                await receipt.wait()
        assert await counted(store) == (40, 1)


async def test_the_end_leaves_nothing(server: ValkeyServer) -> None:
    """No key of a node is left after its goodbye, and nothing is noted any more."""
    async with node_of(server) as store:
        for number in range(1_500):
            store.add(f"c{number}", ClientInfo("ann", "1"))
    assert server.call("KEYS", "*") == []
    with pytest.raises(BrokerError):
        store.add("a", ClientInfo("ann", "1"))


class Passes(trio.abc.Instrument):
    """Counts how often the loop looks for input."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_a_goodbye_takes_few_passes_of_the_loop(server: ValkeyServer) -> None:
    """So a busy node, whose passes are long, says goodbye to all channels in time."""
    passes = Passes()
    async with node_of(server) as store:
        for number in range(1_500):
            store.add(f"c{number}", ClientInfo("ann", "1"))
        await store.add("c0", ClientInfo("ann", "2")).wait()
        trio.lowlevel.add_instrument(passes)
    trio.lowlevel.remove_instrument(passes)
    assert passes.count < 1_000


async def test_an_end_without_an_engine(hasty: None) -> None:
    """The goodbye to an engine that is not there takes no time, and to a silent one two seconds."""
    with valkey() as server:
        async with node_of(server) as store:
            await enter(store, "1")
            server.pause()
            start = trio.current_time()
        assert trio.current_time() - start < LOOP_ANSWERS


OPEN = NodeOptions(
    insecure=True,
    channel=ChannelOptions(presence=True, join_leave=True, force_push_join_leave=True),
)


@asynccontextmanager
async def whole_node(server: ValkeyServer) -> AsyncIterator[Node]:
    """A node of a cluster, with all parts that it has in the engine."""

    def servers() -> Servers:
        return open_servers([parse_url(server.unix_url)])

    async with (
        open_cluster(servers()) as cluster,
        open_cluster_presence(servers(), cluster.members.me.id) as store,
        open_node(
            OPEN,
            broker=ValkeyBroker(servers()),
            presence=store,
            control=cluster.control,
            denials=cluster.denials,
        ) as node,
    ):
        yield node


def pushes(talk: Talk, kind: str) -> list[Any]:
    """What came of this kind, unasked."""
    sent = [json.loads(one) for one in talk.transport.sent]
    return [one["push"][kind] for one in sent if kind in one.get("push", ())]


@pytest.mark.parametrize("how", ["with the node", "just before"])
async def test_a_node_that_ends_announces_leaves(server: ValkeyServer, how: str) -> None:
    """Clients of the other nodes hear that its clients have left, once each."""
    async with whole_node(server) as one, talking(one) as talk:
        await talk.subscribe("c")
        async with whole_node(server) as two, talking(two) as other:
            await other.subscribe("c")
            with trio.fail_after(LOOP_ANSWERS):
                while True:
                    if len(pushes(talk, "join")) == 2:
                        break
                    await trio.sleep(0.01)
            await trio.sleep(0.2)
            gone = other.client.id
            if how == "with the node":
                await two.shut_down()
        with trio.fail_after(LOOP_ANSWERS):
            while True:
                if pushes(talk, "leave"):
                    break
                await trio.sleep(0.01)
        await trio.sleep(0.2)
        assert [one["info"]["client"] for one in pushes(talk, "leave")] == [gone]
        assert list(await one.presence_store.members("c").wait()) == [talk.client.id]  # type: ignore[union-attr]
