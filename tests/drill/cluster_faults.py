"""Faults of an engine that is a cluster of three: slots move, and primaries are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from repeater.valkey.slots import partition_of, slot_of, tags
from tests.drill.engines import clustered
from tests.drill.nodes import NodesFault, NodesScene
from tests.valkey_clusters import ClusterServer, ClusterServers

_PART = 1, 3  # keys that are moved at a time: a channel has two and more


async def slot_moves(scene: NodesScene) -> None:
    """Slots of channels move to other primaries, key by key, while much is published."""
    async with trio.open_nursery() as nursery:
        for slot in scene.rng.sample(_slots(scene.channels), 3):
            nursery.start_soon(_move, scene, slot)


async def slot_moves_and_flushes(scene: NodesScene) -> None:
    """The same, while the servers forget all scripts and end connections of nodes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_disturb, scene)
        await slot_moves(scene)
        nursery.cancel_scope.cancel()


async def cluster_kills(scene: NodesScene) -> None:
    """A primary of the cluster is killed, its replica takes its place, and it comes back."""
    servers = _cluster(scene)
    slot = scene.rng.choice(_slots(scene.channels))
    primary = servers.owner(slot)
    primary.kill()
    await scene.engine.until(partial(_has_other, servers, slot, primary))
    await trio.sleep(scene.rng.uniform(0, 1))
    primary.start()
    await scene.engine.until(partial(_follows, primary))


def _cluster(scene: NodesScene) -> ClusterServers:
    assert scene.engine.cluster is not None
    return scene.engine.cluster


def _slots(channels: Sequence[str]) -> list[int]:
    return sorted({slot_of(tags()[partition_of(channel)]) for channel in channels})


async def _move(scene: NodesScene, slot: int) -> None:
    servers, rng = _cluster(scene), scene.rng
    source = servers.owner(slot)
    target = rng.choice([one for one in servers.primaries if one is not source])
    servers.begin_move(slot, target)
    await trio.sleep(rng.uniform(0, 0.3))
    while servers.move_keys(slot, target, rng.randint(*_PART)):  # noqa: ASYNC110
        await trio.sleep(rng.uniform(0, 0.2))
    servers.end_move(slot, target)


async def _disturb(scene: NodesScene) -> None:
    while True:
        await trio.sleep(scene.rng.uniform(0.05, 0.2))
        server = scene.rng.choice(_cluster(scene).primaries)
        if scene.rng.random() < 0.8:
            server.call("SCRIPT", "FLUSH")
        else:
            server.call("CLIENT", "KILL", "TYPE", scene.rng.choice(("normal", "pubsub")))


def _has_other(servers: ClusterServers, slot: int, before: ClusterServer) -> bool:
    return servers.owner(slot) is not before


def _follows(server: ClusterServer) -> bool:
    role = server.call("ROLE")
    return isinstance(role, list) and role[0] == b"slave" and role[3] == b"connected"


CLUSTER_FAULTS = (
    NodesFault(slot_moves, clustered(replicas=False), count=3),
    NodesFault(slot_moves_and_flushes, clustered(replicas=False), brief=True),
    NodesFault(cluster_kills, clustered(replicas=True), forks=True),
)
