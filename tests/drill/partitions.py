"""Partitions: nodes that cannot reach the engine or their clients, and an engine that is divided.

A node in a network namespace has two cables, one to its clients and one to the engine. Packets are
dropped, and nobody is told.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio

from tests.drill.cables import Island, island
from tests.drill.engines import Engine
from tests.drill.nodes import NodesFault, NodesScene
from tests.drill.places import Place
from tests.valkey_sentinels import watched
from tests.valkeys import LOCAL, Program, valkey

_OPEN = ("--protected-mode", "no")


@contextmanager
def nodes_on_islands(folder: Path, program: Program) -> Iterator[Engine]:
    """One server; each of two nodes has an island.

    Raises:
        Missing: this machine allows no network namespaces.
    """
    with ExitStack() as stack:
        islands = [stack.enter_context(island(2, number)) for number in range(2)]
        links = [one.cables[1] for one in islands]
        hosts = (LOCAL, *(one.near for one in links))
        server = stack.enter_context(valkey(program, "--bind", *hosts, *_OPEN))
        places = [_place(one, f"valkey://{one.cables[1].near}:{server.port}") for one in islands]
        yield Engine(server.url, (server,), places=places, cables=links)


@contextmanager
def primary_on_island(folder: Path, program: Program) -> Iterator[Engine]:
    """The primary and one of two nodes have an island; replica and Sentinels are on the mainland.

    Raises:
        Missing: this machine allows no network namespaces.
    """
    with island(2) as found:
        link = found.cables[1]
        script = folder / "valkey-on-island"
        script.write_text(f'#!/bin/sh\nexec {shlex.join((*found.inside, program.path))} "$@"\n')
        script.chmod(0o700)
        first = Program(program.name, str(script))
        with watched(program, *_OPEN, hosts=(link.far, link.near), first=first) as servers:
            places = [_place(found, servers.url), Place()]
            yield Engine(
                servers.url, servers.servers, servers.sentinels, places=places, cables=(link,)
            )


def _place(found: Island, url: str) -> Place:
    return Place(
        host=found.cables[0].far,
        prefix=found.inside,
        variables={"REPEATER_ENGINE_URL": url},
        cable=found.cables[0],
    )


async def node_partitions(scene: NodesScene) -> None:
    """A node cannot reach the engine, or its clients; or no node can reach the engine."""
    links = list(scene.engine.cables)
    clients = [one.cable for one in scene.engine.places if one.cable is not None]
    out = scene.rng.choice((links[:1], links[1:], clients[:1], clients[1:], links))
    for cable in out:
        await cable.pull()
    await trio.sleep(scene.rng.choice((scene.rng.uniform(0.1, 2), scene.rng.uniform(3, 14))))
    for cable in out:
        await cable.plug()


async def engine_partitions(scene: NodesScene) -> None:
    """The primary and a node are cut off from the rest, which goes on with the replica."""
    (cable,) = scene.engine.cables
    await cable.pull()
    await trio.sleep(scene.rng.uniform(0.5, 6))
    await cable.plug()
    await scene.engine.wait_healed()


PARTITIONS = (
    NodesFault(node_partitions, nodes_on_islands),
    NodesFault(engine_partitions, primary_on_island, forks=True),
)
