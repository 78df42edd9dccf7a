"""Connections of users, counted over all nodes of a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from repeater.clients.limits import LimitError, Place
from repeater.cluster.opening import Cluster
from repeater.cluster.places import TAKE
from repeater.node import Node, open_node
from repeater.options import LimitOptions, NodeOptions
from tests.clusters import open_clusters, patient_members
from tests.memory_clusters import open_memory_cluster
from tests.valkeys import ValkeyServer, valkey

LIMITS = LimitOptions(connections_per_user=2, scope="cluster")


@asynccontextmanager
async def open_nodes(server: ValkeyServer, count: int) -> AsyncIterator[list[tuple[Node, Cluster]]]:
    async with open_clusters(server.unix_url, count) as parts, AsyncExitStack() as stack:
        stack.enter_context(patient_members())
        yield [
            (
                await stack.enter_async_context(
                    open_node(
                        NodeOptions(limits=LIMITS),
                        control=part.control,
                        denials=part.denials,
                        user_places=part.places,
                    )
                ),
                part,
            )
            for part in parts
        ]


async def connect(node: Node, user: str, limits: LimitOptions = LIMITS) -> Place:
    """What a connection of a user does; it holds its places until `leave`."""
    place = Place(node.places)
    await place.reserve(limits, user=user, counted=True)
    place.take_user(limits, user)
    return place


async def test_a_user_has_as_many_connections_on_all_nodes_as_on_one() -> None:
    """One more is refused on whichever node it comes to, until one of them ends."""
    with valkey() as server:
        async with open_nodes(server, 2) as ((first, part), (second, _)):
            one = await connect(first, "ann")
            await connect(second, "ann")
            for node in (first, second):
                with pytest.raises(LimitError, match="connections_per_user"):
                    await connect(node, "ann")
            await connect(second, "bob")
            one.leave()
            key = part.plane.name("places", first.id)
            await server_has(server, key, b"ann", None)
            await connect(second, "ann")
            assert first.limited["connections_per_user"] == 1


async def test_each_node_counts_alone_unless_the_limit_is_over_all() -> None:
    """By default no engine is asked for a place."""
    alone = LimitOptions(connections_per_user=2)
    with valkey() as server:
        async with open_nodes(server, 2) as ((first, _), (second, _)):
            for node in (first, second):
                await connect(node, "ann", alone)
                await connect(node, "ann", alone)
            with pytest.raises(LimitError):
                await connect(first, "ann", alone)
            assert server.call("KEYS", "repeater:places*") == []


async def test_a_node_that_ends_takes_its_places_with_it() -> None:
    """What its users had does not count any more."""
    with valkey() as server:
        async with open_nodes(server, 1) as ((first, _),):
            async with open_nodes(server, 1) as ((second, _),):
                await connect(second, "ann")
                await connect(second, "ann")
                with pytest.raises(LimitError):
                    await connect(first, "ann")
            await connect(first, "ann")


async def test_without_the_engine_each_node_counts_alone_and_all_is_written_again_later() -> None:
    """An outage refuses nobody; then the engine has the counts, also if it has lost its data."""
    with valkey() as server:
        async with open_nodes(server, 2) as ((first, part), (second, _)):
            await connect(first, "ann")
            server.kill()
            await connect(first, "ann")
            with pytest.raises(LimitError):
                await connect(first, "ann")
            await connect(second, "ann")
            server.start()
            key = part.plane.name("places", first.id)
            await server_has(server, key, b"ann", b"2")
            with pytest.raises(LimitError):
                await connect(second, "ann")


async def test_a_connection_that_ends_while_it_waits_frees_no_place_of_another(
    autojump_clock: MockClock,
) -> None:
    """It may have been refused, so it has nothing to give back until the answer is there."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        assert await first.parts.places.take("ann", 2)
        assert await second.parts.places.take("ann", 2)
        cluster.network.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.parts.places.take, "ann", 2)
            await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
            cluster.network.resume()
        await trio.sleep(1)
        assert not await second.parts.places.take("ann", 2)


async def test_a_place_that_was_not_given_back_is_found(autojump_clock: MockClock) -> None:
    """Also if its user has other connections: the engine knows how many there are in all."""
    async with open_memory_cluster() as cluster:
        node = await cluster.start()
        places, plane = node.parts.places, node.parts.plane
        assert await places.take("ann", 3)
        key = plane.name("places", node.id)
        assert await plane.call(TAKE, (key,), ("ann", 3, 60_000)) == 1  # as by a lost message
        assert await places.take("ann", 3)
        assert not await places.take("ann", 3)
        await trio.sleep(45)
        assert await places.take("ann", 3)


async def test_many_users_are_written_again(autojump_clock: MockClock) -> None:
    """In several scripts, while connections come and go."""
    async with open_memory_cluster() as cluster:
        node = await cluster.start()
        places, network = node.parts.places, cluster.network
        for number in range(1_700):
            assert await places.take(f"{number}", 2)
        network.valkey.data.clear()
        network.cut(node.name)
        await trio.sleep(0.05)
        for number in range(100):
            places.give_back(f"{number}")
            await places.take(f"{number + 200}", 2)
        await trio.sleep(60)
        kept = network.valkey.data[node.parts.plane.name("places", node.id)]
        wanted = Counter({f"{number}": 1 for number in range(100, 1_700)})
        wanted.update(f"{number + 200}" for number in range(100))
        wanted[""] = wanted.total()
        assert kept == {user.encode(): b"%d" % held for user, held in wanted.items()}


async def test_a_full_engine_is_told_of_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """However many connections come meanwhile; when there is room all are counted."""
    async with open_memory_cluster() as cluster:
        node = await cluster.start()
        cluster.network.valkey.refusing = "OOM command not allowed"
        for number in range(100):
            assert await node.parts.places.take(f"{number}", 1)
            await trio.sleep(0.1)
        assert caplog.text.count("connections are not counted") == 1
        cluster.network.valkey.refusing = ""
        await trio.sleep(45)
        assert len(cluster.network.valkey.data[node.parts.plane.name("places", node.id)]) == 101


async def server_has(server: ValkeyServer, key: bytes, field: bytes, value: bytes | None) -> None:
    while server.call("HGET", key, field) != value:  # noqa: ASYNC110  # it is another process
        await trio.sleep(0.05)
