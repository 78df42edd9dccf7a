"""The control plane where the engine is a cluster, or has a replica and Sentinels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

import pytest
import trio

from repeater.access.grants import ConnectionGrant
from repeater.brokers.control import Supervision
from repeater.errors import FORCE_DISCONNECT
from repeater.node import Node, open_node
from repeater.options import NodeOptions
from repeater.testing import check_control
from repeater.testing.control_bench import Controls
from repeater.valkey.slots import slot_of, tags
from tests.clusters import open_clusters
from tests.members import ask
from tests.valkey_clusters import ClusterServers, cluster
from tests.valkey_sentinels import watched

_prefixes = count()


@pytest.fixture(scope="module")
def servers() -> Iterator[ClusterServers]:
    """One cluster for all tests, each of which has a prefix of its own."""
    with cluster() as found:
        yield found


async def test_the_contract_of_a_control_on_a_cluster(servers: ClusterServers) -> None:
    """Nodes meet at the primary of one partition."""

    @asynccontextmanager
    async def opened(many: int, _supervision: Supervision) -> AsyncIterator[Controls]:
        async with open_clusters(servers.url, many, prefix=f"rule{next(_prefixes)}") as nodes:
            yield [node.control for node in nodes], None

    await check_control(opened, most=3, has_server=False)


@asynccontextmanager
async def open_nodes(url: str, many: int = 2) -> AsyncIterator[list[Node]]:
    async with (
        open_clusters(url, many, prefix=f"test{next(_prefixes)}") as parts,
        AsyncExitStack() as stack,
    ):
        yield [
            await stack.enter_async_context(
                open_node(NodeOptions(), control=part.control, denials=part.denials)
            )
            for part in parts
        ]


async def until_blocked(nodes: list[Node], user: str) -> None:
    """A call that succeeds as soon as the engine is there again."""
    with trio.fail_after(20):
        while await ask(nodes[0], "block_user", user=user) == 100:  # noqa: ASYNC110
            await trio.sleep(0.1)
        grant = ConnectionGrant(user=user)
        while any(one.denials.refusal(grant) != FORCE_DISCONNECT for one in nodes):  # noqa: ASYNC110
            await trio.sleep(0.1)


async def test_the_control_plane_follows_its_slot(servers: ClusterServers) -> None:
    """While the slot moves, calls may fail; then all is as before, and nobody was lost."""
    async with open_nodes(servers.url) as nodes:
        await until_blocked(nodes, "ann")
        slot = slot_of(tags()[0])
        source = servers.owner(slot)
        target = next(one for one in servers.primaries if one is not source)
        servers.begin_move(slot, target)
        servers.move_keys(slot, target, 1)
        await ask(nodes[0], "block_user", user="bob")
        while servers.move_keys(slot, target):  # noqa: ASYNC110  # nodes act meanwhile
            await trio.sleep(0.01)
        servers.end_move(slot, target)
        await until_blocked(nodes, "bob")
        await until_blocked(nodes, "cho")
        assert [len(one.control.members()) for one in nodes] == [2, 2]
        assert len((await ask(nodes[1], "info"))["nodes"]) == 2


async def test_the_control_plane_follows_a_failover() -> None:
    """The replica has members and denials; nobody is lost, and calls succeed again."""
    with watched() as engine:
        async with open_nodes(engine.url) as nodes:
            await until_blocked(nodes, "ann")
            engine.wait_in_step()
            engine.servers[0].kill()
            await until_blocked(nodes, "bob")
            assert [len(one.control.members()) for one in nodes] == [2, 2]
            assert len(nodes[1].denials) == 2
