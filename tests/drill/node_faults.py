"""Faults of one of several nodes: its clients go to another one, and lose nothing."""

from __future__ import annotations

import signal

import trio

from tests.drill import workers
from tests.drill.nodes import NodesFault, NodesScene
from tests.drill.target import Target


async def node_kills(scene: NodesScene) -> None:
    """A node is killed: its clients come back to another one, and recover everything there."""
    await scene.node().restart(signal.SIGKILL)


async def node_terms(scene: NodesScene) -> None:
    """A node is shut down and started again, as for an update: nobody loses anything."""
    await scene.node().restart(signal.SIGTERM)


async def node_stops(scene: NodesScene) -> None:
    """A node stands still (SIGSTOP), shorter or longer than others wait for it."""
    node = scene.node()
    node.send(signal.SIGSTOP)
    await trio.sleep(scene.rng.uniform(0.5, 12))
    node.send(signal.SIGCONT)


async def rolls(scene: NodesScene) -> None:
    """All nodes are updated, one after the other, under load; --beside gives the other version."""
    for node in scene.nodes:
        await node.restart(signal.SIGTERM)
        await scene.traffic.wait_live()


async def two_kills(scene: NodesScene) -> None:
    """Two of three nodes are killed at once."""

    async def kill(node: Target) -> None:
        await node.restart(signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        for node in scene.rng.sample(scene.nodes, 2):
            nursery.start_soon(kill, node)


async def member_kills(scene: NodesScene) -> None:
    """A worker, which is a node of its own with this engine, is killed, stands still or drains."""
    some = workers.Workers(scene.nodes[0], scene.rng)
    await scene.rng.choice((some.kill, some.stop, some.drain))()


NODE_FAULTS = (
    NodesFault(node_kills, brief=True),
    NodesFault(node_terms),
    NodesFault(node_stops),
    NodesFault(rolls),
    NodesFault(two_kills, count=3),
    NodesFault(member_kills, count=1, settings=workers.SETTINGS),
)
