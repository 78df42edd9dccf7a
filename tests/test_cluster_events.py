"""Events of several nodes on one engine, on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from repeater.access.grants import Caller
from repeater.backend.events import EventQueue
from repeater.brokers.control import Member
from repeater.cluster import occupancy
from repeater.cluster.events import ClusterEvents, open_cluster_events
from repeater.errors import CONNECTION_CLOSED, BrokerError
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS
from tests.event_receivers import Receiver, opened
from tests.valkey_connections import Log
from tests.valkeys import PROGRAMS, Program, ValkeyServer, valkey


@pytest.fixture(params=PROGRAMS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    program: Program = request.param
    with valkey(program) as running:
        yield running


class FakeMembers:
    """A membership: the test says who is lost, and who has come back."""

    def __init__(self, name: str) -> None:
        self.me = Member(f"id-{name}", name, f"id-{name}")
        self.duties: list[Callable[[Member], Awaitable[None]]] = []
        self.told: list[Callable[[], None]] = []

    def at_loss(self, duty: Callable[[Member], Awaitable[None]]) -> None:
        self.duties.append(duty)

    def at_return(self, told: Callable[[], None]) -> None:
        self.told.append(told)

    async def lose(self, other: Member) -> None:
        for duty in self.duties:
            await duty(other)

    def come_back(self) -> None:
        for told in self.told:
            told()


class TellingNode:
    """One node's events. Lives inside `telling`."""

    def __init__(
        self, name: str, server: ValkeyServer, receiver: Receiver, queue: EventQueue
    ) -> None:
        self.members = FakeMembers(name)
        self.receiver = receiver
        self.queue = queue
        self.log = Log()
        self.servers = open_servers([parse_url(server.unix_url)])
        self.servers.add(self.log)
        self.events: ClusterEvents

    @property
    def me(self) -> Member:
        return self.members.me

    def kill(self) -> ClusterEvents:
        """Events of this node that nothing keeps alive, as of a process that is about to die."""
        return ClusterEvents(self.queue, self.servers, self.members, prefix="repeater")  # type: ignore[arg-type]


@asynccontextmanager
async def telling(
    name: str, server: ValkeyServer, receiver: Receiver, **options: Any
) -> AsyncIterator[TellingNode]:
    options = {"event_delay": 0, "event_retry_max": 0.01, **options}
    async with trio.open_nursery() as nursery:
        async with opened(receiver, node=name, run=f"id-{name}", **options) as queue:
            node = TellingNode(name, server, receiver, queue)
            nursery.start_soon(node.servers.run)
            await node.log.wait("up")
            members: Any = node.members
            async with open_cluster_events(queue, node.servers, members) as node.events:
                yield node
        nursery.cancel_scope.cancel()


def caller(client: str) -> Caller:
    return Caller(client=client, user="ann", transport="websocket")


def unique(*receivers: Receiver) -> list[str]:
    """What was told, in short; what was told twice under one id is there once."""
    events = {event["id"]: event for one in receivers for event in one.events}
    return [f"{one['event']} {one.get('channel', '')}".strip() for one in events.values()]


async def heard(receiver: Receiver, *expected: str) -> None:
    """Wait until these events, and no others, were told."""
    with trio.fail_after(LOOP_ANSWERS):
        while True:
            if unique(receiver) == [*expected]:
                return
            await trio.sleep(0.01)


async def settle(*nodes: TellingNode) -> None:
    with trio.fail_after(LOOP_ANSWERS):
        for node in nodes:
            if node.events._occupancy is not None:
                await node.events._occupancy.wait_settled()


def keys_of(server: ValkeyServer, pattern: str = "*") -> list[bytes]:
    found = server.call("KEYS", pattern)
    assert isinstance(found, list)
    return sorted(found)


async def test_a_channel_is_occupied_once(server: ValkeyServer) -> None:
    """The first holder of all nodes and the last one tell, each once, under one id."""
    ones, twos = Receiver(), Receiver()
    async with telling("one", server, ones) as one, telling("two", server, twos) as two:
        one.events.channel_occupied("a")
        await settle(one)
        two.events.channel_occupied("a")
        await settle(two)
        one.events.channel_vacated("a")
        await settle(one)
        await heard(ones, "channel_occupied a")
        two.events.channel_vacated("a")
        await heard(twos, "channel_vacated a")
        first, last = ones.events[0], twos.events[0]
        assert first["seq"] < last["seq"]
        assert first["id"] == f"a:{first['seq']}"
        assert abs(first["time"] - first["seq"] // 1_000) < 1
        for _ in range(3):
            one.events.channel_occupied("a")
            one.events.channel_vacated("a")
        await settle(one)
    assert ones.batches[0]["node"] == "one"
    # What comes and goes before anybody could be told of it is not told.
    numbers = [event["seq"] for event in ones.events + twos.events]
    assert len(set(numbers)) == len(numbers)
    assert all(str(key).find(":oc:") > 0 for key in keys_of(server))


async def test_many_channels_of_two_nodes(server: ValkeyServer) -> None:
    """Of a thousand channels that both hold and release, each is told of exactly once."""
    ones, twos = Receiver(), Receiver()
    names = [f"c{number}" for number in range(1_000)]
    async with telling("one", server, ones) as one, telling("two", server, twos) as two:
        for channel in names:
            one.events.channel_occupied(channel)
            two.events.channel_occupied(channel)
        await settle(one, two)
        for channel in reversed(names):
            two.events.channel_vacated(channel)
            one.events.channel_vacated(channel)
        await settle(one, two)
    told = sorted(ones.told() + twos.told())
    assert told == sorted(
        f"channel_{what} {one}" for what in ("occupied", "vacated") for one in names
    )


async def test_only_wanted_kinds_cost(server: ValkeyServer) -> None:
    """Where nobody wants to hear of channels the engine hears nothing of them."""
    receiver = Receiver()
    kinds = frozenset({"connected"})
    async with telling("one", server, receiver, events=kinds) as one:
        one.events.channel_occupied("a")
        one.events.connected(caller("1"))
        await heard(receiver, "connected")
        assert keys_of(server) == []


async def test_a_node_that_dies(server: ValkeyServer) -> None:
    """Another one tells that it is lost, and which channels nobody holds any more."""
    ones, twos = Receiver(), Receiver()
    async with telling("one", server, ones) as one, telling("two", server, twos) as two:
        dead = two.kill()
        for channel in ("a", "b"):
            dead.channel_occupied(channel)
        await heard(twos, "channel_occupied a", "channel_occupied b")
        one.events.channel_occupied("b")
        await settle(one)
        for _ in range(2):  # A duty may be done twice.
            with trio.fail_after(LOOP_ANSWERS):
                await one.members.lose(two.me)
        await heard(ones, "node_lost", "channel_vacated a")
        lost = ones.events[0]
        assert (lost["node"], lost["run"], lost["id"]) == ("two", "id-two", "id-two-lost")
        one.events.channel_vacated("b")
        await heard(ones, "node_lost", "channel_vacated a", "channel_vacated b")
        assert not keys_of(server, "*:oh:id-two")


async def test_what_a_dead_node_had_not_told(server: ValkeyServer) -> None:
    """Another one tells it under the same id, also for a node that it had to tell of."""
    ones, twos = Receiver(), Receiver()
    twos.refusals = [httpx.Response(500)] * 1_000
    async with telling("one", server, ones) as one, telling("two", server, twos) as two:
        dead = two.kill()
        dead.channel_occupied("a")
        await settle(two)
        third = Member("id-three", "three", "id-three")
        with trio.fail_after(LOOP_ANSWERS):
            await two.members.lose(third)
            await one.members.lose(two.me)
        expected = ["channel_occupied a", "channel_vacated a", "node_lost", "node_lost"]
        with trio.fail_after(LOOP_ANSWERS):
            while True:
                if sorted(unique(ones)) == expected:
                    break
                await trio.sleep(0.01)
        assert {one["node"] for one in ones.events if "node" in one} == {"two", "three"}
        assert sorted(one["seq"] for one in ones.events if "seq" in one)
        twos.refusals.clear()
    assert not [key for key in keys_of(server) if b":el:" in key or b":er:" in key]


async def test_a_node_that_was_cut_off(server: ValkeyServer) -> None:
    """It begins a new run, tells of its clients anew, and a later loss names that run."""
    ones, twos = Receiver(), Receiver()
    async with telling("one", server, ones) as one, telling("two", server, twos) as two:
        for client in ("1", "2", "3"):
            two.events.connected(caller(client))
        two.events.subscribed(caller("2"), "a")
        two.events.channel_occupied("a")
        two.events.disconnected(caller("3"), CONNECTION_CLOSED)
        await heard(
            twos, "connected", "connected", "connected", "subscribed a", "disconnected",
            "channel_occupied a",
        )  # fmt: skip
        await one.members.lose(two.me)
        await heard(ones, "node_lost", "channel_vacated a")
        before = len(twos.events)
        two.members.come_back()
        two.events.disconnected(caller("1"), CONNECTION_CLOSED)
        with trio.fail_after(LOOP_ANSWERS):
            while True:
                if len(twos.events) >= before + 5:
                    break
                await trio.sleep(0.01)
        assert sorted(one["event"] for one in twos.events[before:]) == [
            "channel_occupied", "connected", "disconnected", "node_lost", "subscribed",
        ]  # fmt: skip
        told = {one["id"]: one["run"] for one in ones.events + twos.events if "run" in one}
        assert told == {"id-two-lost": "id-two"}
        again = [
            (batch["run"], one["event"], one["client"], one["seq"])
            for batch in twos.batches
            for one in batch["events"]
            if batch["run"] != "id-two" and "client" in one
        ]
        assert again == [("id-two.2", "connected", "2", 1), ("id-two.2", "subscribed", "2", 2)]
        await one.members.lose(two.me)
        await heard(ones, "node_lost", "channel_vacated a", "node_lost", "channel_vacated a")
        runs = [event["run"] for event in ones.events if event["event"] == "node_lost"]
        assert runs[0] == "id-two"
        assert runs[-1] == "id-two.2"


async def test_a_node_that_dies_before_its_return_is_told(server: ValkeyServer) -> None:
    """The run that the application knows is told as lost, beside the one that it never heard of.

    Nobody told the first loss: the engine had forgotten that the node was there.
    """
    ones, twos = Receiver(), Receiver()
    async with telling("one", server, ones) as one, telling("two", server, twos) as two:
        dead = two.kill()
        dead.connected(caller("1"))
        await heard(twos, "connected")
        twos.refusals = [httpx.Response(500)] * 1_000
        await dead._begin_run()
        await one.members.lose(two.me)
        await heard(ones, "node_lost", "node_lost")
        assert sorted(event["run"] for event in ones.events) == ["id-two", "id-two.2"]
        assert {event["node"] for event in ones.events} == {"two"}
        twos.refusals.clear()
    assert not [key for key in keys_of(server) if b":el:" in key or b":er:" in key]


async def test_an_outage_and_lost_data(server: ValkeyServer) -> None:
    """All that is held is told once more, and what is held no more since then is told, too."""
    receiver = Receiver()
    async with telling("one", server, receiver) as one:
        for channel in ("a", "b", "c"):
            one.events.channel_occupied(channel)
        await settle(one)
        await heard(receiver, *(f"channel_occupied {one}" for one in "abc"))
        server.kill()
        await one.log.wait("up", "down")
        one.events.channel_vacated("a")
        one.events.channel_occupied("d")
        one.events.channel_occupied("e")
        one.events.channel_vacated("e")
        with pytest.raises(BrokerError):
            await one.members.lose(Member("id-two", "two", "id-two"))
        server.start()
        await one.log.wait("up", "down", "up")
        await settle(one)
        expected = [*(f"channel_occupied {one}" for one in "bcd"), "channel_vacated a"]
        with trio.fail_after(LOOP_ANSWERS):
            while True:
                if sorted(unique(receiver)[3:]) == expected:
                    break
                await trio.sleep(0.01)


async def test_an_answer_that_is_lost(server: ValkeyServer) -> None:
    """A change whose answer was lost is told under its id when the engine is back."""
    receiver = Receiver()
    async with telling("one", server, receiver) as one:
        one.events.channel_occupied("a")
        await heard(receiver, "channel_occupied a")
        server.pause()
        one.events.channel_vacated("a")
        one.events.channel_occupied("b")
        await one.log.wait("up", "down")
        server.resume()
        await one.log.wait("up", "down", "up")
        await settle(one)
        expected = ["channel_occupied a", "channel_occupied b", "channel_vacated a"]
        with trio.fail_after(LOOP_ANSWERS):
            while True:
                if sorted(unique(receiver)) == expected:
                    break
                await trio.sleep(0.01)
        await settle(one)
    for key in keys_of(server, "*:oc:*"):
        assert server.call("ZCARD", key) == 1


async def test_a_dead_node_whose_hold_the_engine_has_lost(server: ValkeyServer) -> None:
    """What it had to tell as occupied is told as vacated too, under a later number."""
    server.call("ZADD", "repeater:oh:id-two", 1, "a")
    server.call("ZADD", "repeater:ot:id-two", 5, "oa")
    receiver = Receiver()
    async with telling("one", server, receiver) as one:
        await one.members.lose(Member("id-two", "two", "id-two"))
        await settle(one)
        await heard(receiver, "node_lost", "channel_vacated a", "channel_occupied a")
    changes = [event for event in receiver.events if event.get("channel") == "a"]
    last = max(changes, key=lambda event: event["seq"])
    assert last["event"] == "channel_vacated"


def test_what_is_still_to_be_told_as_occupied_is_told_as_vacated_too(server: ValkeyServer) -> None:
    """The engine has lost who holds the channel, and the node has had no answer: it says `v`."""
    keys = [f"repeater:{one}" for one in ("oh:id-one", "ot:id-one", "oc:a")]
    server.call("ZADD", keys[1], 5, "oa")
    script: list[Any] = ["EVAL", occupancy.OCCUPANCY.text, 3, *keys, "id-one"]
    script += [9_000, 9_000, 9_000, 0]
    told: Any = server.call(*script, "va", 0)
    assert told[0][0] == b"va"
    assert int(told[0][1]) > 5
    told = server.call(*script, "va", 0)
    assert told[0] == [b"", b"0"]


async def test_a_hold_that_was_not_let_go_of(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine takes for held by this node, and is not, is let go of and told."""
    monkeypatch.setattr(occupancy, "_RENEWAL", 0.1)
    monkeypatch.setattr(occupancy, "_LIFETIME", 100)
    receiver = Receiver()
    async with telling("one", server, receiver) as one:
        one.events.channel_occupied("a")
        one.events.channel_occupied("b")
        await settle(one)
        kept = [(key, server.call("DUMP", key)) for key in keys_of(server)]
        one.events.channel_vacated("a")
        await settle(one)
        await heard(receiver, "channel_occupied a", "channel_occupied b", "channel_vacated a")
        for key, value in kept:
            assert isinstance(value, bytes)
            server.call("RESTORE", key, 0, value, "REPLACE")
        with trio.fail_after(LOOP_ANSWERS):
            while True:
                if [event.get("channel") for event in receiver.events].count("a") > 2:
                    break
                await trio.sleep(0.01)
        assert unique(receiver)[3:] == ["channel_vacated a"]


@pytest.mark.parametrize("kind", ["oc:a", "oh:id-one", "ot:id-one"])
async def test_a_key_of_another_type_is_not_ours(server: ValkeyServer, kind: str) -> None:
    """The next change puts ours in its place."""
    receiver = Receiver()
    async with telling("one", server, receiver) as one:
        server.call("SET", f"repeater:{kind}", "what")
        one.events.channel_occupied("a")
        await heard(receiver, "channel_occupied a")
        two = Member("id-two", "two", "id-two")
        for key in ("oh:id-two", "ot:id-two", "er:id-two", "el:id-two", "el:id-one"):
            server.call("SET", f"repeater:{key}", "what")
        await one.members.lose(two)
        await heard(receiver, "channel_occupied a", "node_lost")


async def test_what_no_node_has_written_is_not_told(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Foreign names, events and numbers are forgotten by the engine, and break nothing."""
    receiver = Receiver()
    async with telling("one", server, receiver) as one:
        server.call("ZADD", "repeater:oh:id-one", 1, b"\xff", 1, "old")
        server.call("ZADD", "repeater:oc:a", "inf", "")
        foreign = (7, "what", "1.5", "oa", "-inf", "va", "inf", "ob")
        for node in ("id-one", "id-two"):
            server.call("ZADD", f"repeater:ot:{node}", *foreign)
        one.events.channel_occupied("a")
        await heard(receiver, "channel_occupied a")
        occupancy = one.events._occupancy
        assert occupancy is not None
        occupancy.up([0])
        await one.members.lose(Member("id-two", "two", "id-two"))
        await heard(receiver, "channel_occupied a", "node_lost")
        await settle(one)
        assert server.call("ZRANGE", "repeater:oh:id-one", 0, -1) == [b"a"]
        assert not keys_of(server, "repeater:ot:*")


async def test_channels_that_come_and_go_in_an_outage(server: ValkeyServer) -> None:
    """Nothing is left of them: the engine has never known of them."""
    receiver = Receiver()
    async with telling("one", server, receiver) as one:
        one.events.channel_occupied("kept")
        one.events.channel_occupied("left")
        await settle(one)
        server.kill()
        await one.log.wait("up", "down")
        one.events.channel_vacated("left")
        one.events.channel_occupied("new")
        occupancy = one.events._occupancy
        assert occupancy is not None
        for lane in occupancy._lanes.values():
            lane.mention_held()
        for number in range(1_000):
            one.events.channel_occupied(f"{number}")
            one.events.channel_vacated(f"{number}")
        assert [len(lane._changed) for lane in occupancy._lanes.values()] == [3]
        server.start()
        await one.log.wait("up", "down", "up")
        await settle(one)
        held = server.call("ZRANGE", "repeater:oh:id-one", 0, -1)
        assert isinstance(held, list)
        assert sorted(held) == [b"kept", b"new"]


async def test_an_engine_without_room(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it refuses to note is noted a second later, or when there is room."""
    monkeypatch.setattr(occupancy, "_AGAIN", 0.05)
    receiver = Receiver()
    async with telling("one", server, receiver) as one:
        server.call("CONFIG", "SET", "maxmemory", "1")
        one.events.channel_occupied("a")
        await trio.sleep(0.3)
        assert not receiver.events
        server.call("CONFIG", "SET", "maxmemory", "0")
        await heard(receiver, "channel_occupied a")


async def test_a_failover_that_loses_a_change(server: ValkeyServer) -> None:
    """Who told the change finds out, and tells how the channel is now."""
    ones, twos = Receiver(), Receiver()
    async with telling("one", server, ones) as one, telling("two", server, twos) as two:
        one.events.channel_occupied("a")
        await settle(one)
        kept = [(key, server.call("DUMP", key)) for key in keys_of(server)]
        one.events.channel_vacated("a")
        await settle(one)
        await heard(ones, "channel_occupied a", "channel_vacated a")
        for key, value in kept:
            assert isinstance(value, bytes)
            server.call("RESTORE", key, 0, value, "REPLACE")
        two.events.channel_occupied("a")
        await settle(two)
        assert twos.events == []
        one.events._occupancy.up([0])  # type: ignore[union-attr]
        await settle(one)
        await heard(ones, "channel_occupied a", "channel_vacated a", "channel_occupied a")
