"""Connections of users, counted over all nodes of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from repeater.clients.limits import LimitError, Place
from repeater.cluster.opening import Cluster
from repeater.node import Node, open_node
from repeater.options import LimitOptions, NodeOptions
from tests.clusters import open_clusters
from tests.valkeys import ValkeyServer, valkey

LIMITS = LimitOptions(connections_per_user=2, scope="cluster")


@asynccontextmanager
async def open_nodes(server: ValkeyServer, count: int) -> AsyncIterator[list[tuple[Node, Cluster]]]:
    async with open_clusters(server.unix_url, count) as parts, AsyncExitStack() as stack:
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


async def server_has(server: ValkeyServer, key: bytes, field: bytes, value: bytes | None) -> None:
    while server.call("HGET", key, field) != value:  # noqa: ASYNC110  # it is another process
        await trio.sleep(0.05)
