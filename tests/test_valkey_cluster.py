"""The client of a cluster: partitions on real servers, also while they move and fail over."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import trio

from repeater.valkey.cluster import Cluster
from repeater.valkey.opening import open_servers
from repeater.valkey.pipe import Lost, Refused, packed
from repeater.valkey.servers import Servers, answer_from
from repeater.valkey.slots import PARTITIONS, slot_of, tags
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS
from tests.processes import starts_processes
from tests.valkey_clusters import ClusterServers, cluster
from tests.valkey_connections import Heard, States, connected, key_in
from tests.valkeys import REDIS, VALKEY

pytestmark = starts_processes


@pytest.fixture(scope="module", params=(VALKEY, REDIS), ids=str)
def running(request: pytest.FixtureRequest) -> Iterator[ClusterServers]:
    with cluster(request.param) as servers:
        yield servers


@pytest.fixture
def servers(running: ClusterServers) -> ClusterServers:
    """A cluster without keys, whose slots other tests may have moved."""
    for server in running.primaries:
        server.call("FLUSHALL")
    return running


async def wait_held(client: Servers, partition: int) -> None:
    """Wait until a command is to be sent again."""
    assert isinstance(client, Cluster)
    with trio.fail_after(LOOP_ANSWERS):
        while not client._all[partition]._held:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.001)


async def test_every_partition_has_commands_and_messages(servers: ClusterServers) -> None:
    """Keys and messages of each partition come from the server that has it."""
    states, told = States(), Heard()
    heard = [Heard() for _ in range(PARTITIONS)]
    async with connected(servers.url, states) as client:
        await states.wait()
        assert client.outage() == ""
        assert client.statistics().up == client.statistics().primaries == 3
        for partition in range(PARTITIONS):
            channel = key_in(client, partition, "channel")
            client.subscribe(partition, {channel: heard[partition]}, told)
        await told.wait(*[None] * PARTITIONS)
        for partition in range(PARTITIONS):
            channel = key_in(client, partition, "channel")
            await answer_from(client, partition, "SPUBLISH", channel, partition)
            key = key_in(client, partition, "key")
            assert await answer_from(client, partition, "SET", key, partition) == b"OK"
            await heard[partition].wait(b"%d" % partition)
            client.unsubscribe(partition, [key_in(client, partition, "channel")])
        shares = [int(str(server.call("DBSIZE"))) for server in servers.primaries]
        assert sum(shares) == PARTITIONS
        assert min(shares) > 30


async def test_one_partition_takes_one_server(servers: ClusterServers) -> None:
    """Nodes meet at one partition: the servers that do not have it are not connected for that."""
    states, told, heard = States(), Heard(), Heard()
    client = open_servers([parse_url(servers.url)], partitions=1)
    assert isinstance(client, Cluster)
    client.add(states)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await states.wait(up=1)
        channel = key_in(client, 0, "meeting")
        client.subscribe(0, {channel: heard}, told)
        await told.wait(None)
        await answer_from(client, 0, "SPUBLISH", channel, "x")
        await heard.wait(b"x")
        assert client.outage() == ""
        assert client.statistics().primaries == client.partitions == len(client._members) == 1
        nursery.cancel_scope.cancel()


async def test_a_slot_that_moves_under_load_loses_no_command(servers: ClusterServers) -> None:
    """Commands keep their order while their slot moves; messages come from the new owner."""
    states, told, heard, answers = States(), Heard(), Heard(), Heard()
    partition = 5
    slot = slot_of(tags()[partition])
    async with connected(servers.url, states) as client:
        await states.wait()
        channel, counter = key_in(client, partition, "moving"), key_in(client, partition, "counter")
        client.subscribe(partition, {channel: heard}, told)
        await told.wait(None)
        states.news.clear()
        source = servers.owner(slot)
        target = next(one for one in servers.primaries if one is not source)
        asked = 0
        for step in range(60):
            if step == 20:
                servers.begin_move(slot, target)
            if step == 30:
                servers.move_keys(slot, target)
            if step == 40:
                servers.end_move(slot, target)
            for _ in range(20):
                client.ask(partition, packed("INCR", counter), answers)
                asked += 1
            await trio.sleep(0.005)
        await answers.wait_number(asked)
        assert answers.all == list(range(1, asked + 1))
        await states.wait()
        assert states.news == [("down", partition), ("up", partition)]
        client.ask(partition, packed("SPUBLISH", channel, "after"), answers)
        await heard.wait(b"after")
        assert client.outage() == ""


async def test_keys_that_are_half_moved_are_waited_for(servers: ClusterServers) -> None:
    """A command with keys at both ends is sent again until all have moved; later ones wait."""
    partition = 70
    slot = slot_of(tags()[partition])
    states, answers = States(), Heard()
    async with connected(servers.url, states) as client:
        await states.wait()
        one, two = (key_in(client, partition, name) for name in ("one", "two"))
        await answer_from(client, partition, "MSET", one, 1, two, 2)
        target = next(one for one in servers.primaries if one is not servers.owner(slot))
        servers.begin_move(slot, target)
        servers.move_keys(slot, target, 1)
        client.ask(partition, packed("MGET", one, two), answers)
        await wait_held(client, partition)
        client.ask(partition, packed("SET", one, 3), answers)
        await trio.sleep(0.2)
        assert answers.all == []
        servers.move_keys(slot, target)
        await answers.wait([b"1", b"2"], b"OK")
        servers.end_move(slot, target)
        assert await answer_from(client, partition, "MGET", one, two) == [b"3", b"2"]


async def test_a_slot_that_never_finishes_to_move_is_refused_in_the_end(
    servers: ClusterServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command is not sent again for ever, and what waits behind it is answered."""
    monkeypatch.setattr("repeater.valkey.partition._AGAIN", 1.0)
    partition = 99
    slot = slot_of(tags()[partition])
    states, answers = States(), Heard()
    async with connected(servers.url, states) as client:
        await states.wait()
        one, two = (key_in(client, partition, name) for name in ("one", "two"))
        await answer_from(client, partition, "MSET", one, 1, two, 2)
        target = next(one for one in servers.primaries if one is not servers.owner(slot))
        servers.begin_move(slot, target)
        servers.move_keys(slot, target, 1)
        client.ask(partition, packed("MGET", one, two), answers)
        await wait_held(client, partition)
        client.ask(partition, packed("GET", one), answers)
        client.ask(partition, packed("GET", two), answers)
        await answers.wait_number(3)
        assert isinstance(answers.all[0], Refused)
        assert answers.all[0].code == "TRYAGAIN"
        # What is sent together is answered in any order, if it is about different keys.
        assert {*answers.all[1:]} == {b"1", b"2"}
        servers.move_keys(slot, target)
        servers.end_move(slot, target)


async def never(*_arguments: object) -> None:
    await trio.sleep_forever()


async def test_a_slot_that_moves_in_silence_is_subscribed_to_where_it_is(
    servers: ClusterServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks for anything: the server says that it hands on no messages any more."""
    partition = 17
    slot = slot_of(tags()[partition])
    states, told, heard = States(), Heard(), Heard()
    async with connected(servers.url, states) as client:
        await states.wait()
        assert isinstance(client, Cluster)
        monkeypatch.setattr(client._layout, "read", never)
        channel = key_in(client, partition, "quiet")
        client.subscribe(partition, {channel: heard}, told)
        await told.wait(None)
        states.news.clear()
        target = next(one for one in servers.primaries if one is not servers.owner(slot))
        servers.move(slot, target)
        await states.wait_news(("down", partition), ("up", partition))
        target.call("SPUBLISH", channel, "x")
        await heard.wait(b"x")


async def test_a_subscription_made_while_a_partition_moves_is_kept(
    servers: ClusterServers,
) -> None:
    """It is made at the new owner."""
    partition = 33
    slot = slot_of(tags()[partition])
    states, told, heard = States(), Heard(), Heard()
    async with connected(servers.url, states) as client:
        await states.wait()
        target = next(one for one in servers.primaries if one is not servers.owner(slot))
        servers.move(slot, target)
        channel = key_in(client, partition, "new")
        client.subscribe(partition, {channel: heard}, told)
        await told.wait(None)
        target.call("SPUBLISH", channel, "x")
        await heard.wait(b"x")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_promoted_replica_takes_over(number: signal.Signals) -> None:
    """The partitions of a primary that died or hangs come back at its replica; others never go."""
    states, told, heard = States(), Heard(), Heard()
    with cluster(replicas=True) as servers:
        async with connected(servers.url, states, timeout=0.5) as client:
            await states.wait()
            states.news.clear()
            first = [
                number
                for number, tag in enumerate(tags())
                if servers.owner(slot_of(tag)) is servers.primaries[0]
            ]
            channel = key_in(client, first[0], "one")
            client.subscribe(first[0], {channel: heard}, told)
            await told.wait(None)
            servers.primaries[0].process.send_signal(number)
            await states.wait(up=PARTITIONS - len(first))
            assert client.outage().startswith(f"{len(first)} of 128 partitions: ")
            with pytest.raises(Lost):
                await answer_from(client, first[0], "PING")
            await states.wait()
            assert {partition for _what, partition in states.news} == set(first)
            await answer_from(client, first[0], "SPUBLISH", channel, "back")
            await heard.wait(b"back")


async def test_a_cluster_without_a_majority_is_an_outage() -> None:
    """A primary that serves nothing is not there, though it answers."""
    states = States()
    with cluster() as servers:
        async with connected(servers.url, states, timeout=0.5) as client:
            await states.wait()
            for server in servers.primaries[1:]:
                server.kill()
            await states.wait(up=0)
            assert client.outage()
            for server in servers.primaries[1:]:
                server.start()
            await states.wait()
            assert client.outage() == ""


async def test_slots_that_valkey_moves_by_itself(running: ClusterServers) -> None:
    """Valkey 9 moves slots as a whole: no command fails, and the order stays."""
    if running.primaries[0].program is not VALKEY:
        pytest.skip("Redis has no MIGRATESLOTS")
    partition = 90
    slot = slot_of(tags()[partition])
    states, told, heard, answers = States(), Heard(), Heard(), Heard()
    async with connected(running.url, states) as client:
        await states.wait()
        channel, counter = key_in(client, partition, "whole"), key_in(client, partition, "count")
        client.subscribe(partition, {channel: heard}, told)
        await told.wait(None)
        states.news.clear()
        source = running.owner(slot)
        target = next(one for one in running.primaries if one is not source)
        asked = 0
        with trio.fail_after(LOOP_ANSWERS):
            while running.owner(slot) is source or asked < 200:
                if asked == 100:
                    way = ("SLOTSRANGE", slot, slot, "NODE", target.identity)
                    source.call("CLUSTER", "MIGRATESLOTS", *way)
                for _ in range(10):
                    client.ask(partition, packed("INCR", counter), answers)
                asked += 10
                await trio.sleep(0.005)
        await answers.wait_number(asked)
        assert answers.all == list(range(1, asked + 1))
        await states.wait_news(("down", partition), ("up", partition))
        target.call("SPUBLISH", channel, "after")
        await heard.wait(b"after")
