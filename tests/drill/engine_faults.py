"""Faults of the engine of several nodes: what it has kept is never lost in silence."""

from __future__ import annotations

import signal
from pathlib import Path

import trio

from tests.drill.backends import Batches
from tests.drill.doors import door_to
from tests.drill.engines import appending, single, with_sentinels
from tests.drill.ledger import BrokenPromise
from tests.drill.nodes import NodesFault, NodesScene
from tests.drill.target import Target
from tests.valkeys import ValkeyServer

_POLICIES = (
    *("allkeys-lru", "allkeys-lfu", "allkeys-random"),
    *("volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"),
)
_CUT = "client_output_buffer_limit_disconnections"
_LIMIT = "client-output-buffer-limit"
_PAUSE = 0.02  # seconds between batches


async def engine_stops(scene: NodesScene) -> None:
    """The engine stands still (SIGSTOP), shorter or longer than nodes wait for an answer."""
    await _stop(scene, scene.engine.server, scene.rng.uniform(0.3, 5))


async def script_flushes(scene: NodesScene) -> None:
    """The engine forgets all scripts, again and again (SCRIPT FLUSH)."""
    for _ in range(10):
        scene.engine.server.call("SCRIPT", "FLUSH", scene.rng.choice(("SYNC", "ASYNC")))
        await trio.sleep(scene.rng.uniform(0.01, 0.3))


async def client_kills(scene: NodesScene) -> None:
    """The engine ends connections of nodes: those of the bus, those of commands, or all."""
    for _ in range(scene.rng.randint(1, 5)):
        for kind in scene.rng.choice((("pubsub",), ("normal",), ("pubsub", "normal"))):
            scene.engine.server.call("CLIENT", "KILL", "TYPE", kind)
        await trio.sleep(scene.rng.uniform(0.01, 1))


async def slow_readers(scene: NodesScene) -> None:
    """A node stands still until the engine ends its bus, since it reads too slowly."""
    stands, other = scene.rng.sample(scene.nodes, 2)
    before = scene.engine.info(_CUT)
    scene.engine.server.call("CONFIG", "SET", _LIMIT, "pubsub 100kb 0 0")
    stands.send(signal.SIGSTOP)
    with trio.move_on_after(15):
        while scene.engine.info(_CUT) == before:
            await _publish_at(scene, other, 1)
    stands.send(signal.SIGCONT)
    scene.offsets.counts["cut"] += scene.engine.info(_CUT) - before
    scene.engine.server.call("CONFIG", "SET", _LIMIT, "pubsub 32mb 8mb 60")


async def forgetful_kills(scene: NodesScene) -> None:
    """The engine is killed and starts again with nothing: streams begin anew, and it is told."""
    await _restart(scene)


async def appended_kills(scene: NodesScene) -> None:
    """The engine is killed, and has everything: it syncs each change before it answers."""
    await _restart(scene)


async def both_kills(scene: NodesScene) -> None:
    """The engine and a node are killed at once; the engine has everything, and so nobody loses."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_restart, scene)
        nursery.start_soon(scene.node().restart, signal.SIGKILL)


async def cut_files(scene: NodesScene) -> None:
    """The power goes: the end of the engine's file, which was not synced yet, is cut off."""
    (file,) = scene.engine.server.folder.glob("appendonlydir/*.incr.aof")
    synced = file.stat().st_size
    await trio.sleep(1)  # `everysec`
    scene.engine.server.kill()
    _cut(file, scene.rng.randint(synced, file.stat().st_size))
    await trio.sleep(scene.rng.uniform(0, 1))
    scene.engine.server.start()


async def primary_kills(scene: NodesScene) -> None:
    """The primary is killed and its replica promoted; it comes back as a replica."""
    primary = await scene.engine.wait_primary()
    primary.kill()
    await _failed_over(scene, primary)
    primary.start()
    await scene.engine.wait_healed()


async def lagging_kills(scene: NodesScene) -> None:
    """The primary is killed while its replica is behind: what it lacks is told."""
    primary = await scene.engine.wait_primary()
    (replica,) = (one for one in scene.engine.servers if one is not primary)
    replica.pause()
    primary.call("CLIENT", "KILL", "TYPE", "replica")  # with what is on its way
    await trio.sleep(scene.rng.uniform(0.1, 0.4))  # shorter than the Sentinels wait
    primary.kill()
    replica.resume()
    await _failed_over(scene, primary)
    primary.start()
    await scene.engine.wait_healed()


async def forked_kills(scene: NodesScene) -> None:
    """The primary dies with what one node alone has seen, and the other node goes on before it."""
    primary = await scene.engine.wait_primary()
    (replica,) = (one for one in scene.engine.servers if one is not primary)
    knows, goes_on = scene.rng.sample(scene.nodes, 2)
    replica.pause()
    primary.call("CLIENT", "KILL", "TYPE", "replica")
    goes_on.send(signal.SIGSTOP)
    for port in goes_on.local_ports():  # what is on its way to it would tell it
        primary.call("CLIENT", "KILL", "ADDR", f"127.0.0.1:{port}", "SKIPME", "yes")
    forked = await _publish_at(scene, knows, 0.3)
    knows.send(signal.SIGSTOP)
    primary.kill()
    replica.resume()
    await scene.engine.wait_primary(other=primary)
    goes_on.send(signal.SIGCONT)
    await _publish_at(scene, goes_on, 2, least=2 * forked)
    knows.send(signal.SIGCONT)
    primary.start()
    await scene.engine.wait_healed()


async def _publish_at(scene: NodesScene, node: Target, seconds: float, *, least: int = 0) -> int:
    """Have one more back end, which publishes at this node; gives how many were acknowledged.

    It goes on until `least` events were, for 20 s at most: nodes of a busy machine come back late.
    """
    doors, counts = door_to(node.host, node.port), scene.offsets.counts
    before = counts["acknowledged"]
    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                Batches(doors(), scene.channels, scene.offsets, scene.rng, _PAUSE).run
            )
            await trio.sleep(seconds)
            while counts["acknowledged"] - before < least:  # noqa: ASYNC110
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    return counts["acknowledged"] - before


async def primary_stops(scene: NodesScene) -> None:
    """The primary stands still until its replica is promoted, and then finds itself replaced."""
    primary = await scene.engine.wait_primary()
    primary.pause()
    await trio.sleep(scene.rng.uniform(2.5, 5))
    primary.resume()
    await scene.engine.wait_healed()


async def replica_kills(scene: NodesScene) -> None:
    """A replica is killed, or stands still: no node notices."""
    primary = await scene.engine.wait_primary()
    (replica,) = (one for one in scene.engine.servers if one is not primary)
    if scene.rng.random() < 0.5:
        await _stop(scene, replica, scene.rng.uniform(0.3, 3))
    else:
        replica.kill()
        await trio.sleep(scene.rng.uniform(0.1, 2))
        replica.start()
    await scene.engine.wait_healed()


async def sentinel_kills(scene: NodesScene) -> None:
    """One Sentinel, two or all are killed or stand still: the primary goes on."""
    some = scene.rng.sample(scene.engine.sentinels, scene.rng.randint(1, 3))
    if scene.rng.random() < 0.5:
        for sentinel in some:
            sentinel.pause()
        await trio.sleep(scene.rng.uniform(0.3, 3))
        for sentinel in some:
            sentinel.resume()
        return
    for sentinel in some:
        sentinel.kill()
    await trio.sleep(scene.rng.uniform(0.3, 3))
    for sentinel in some:
        sentinel.start()


async def failovers(scene: NodesScene) -> None:
    """An administrator has the Sentinels move the primary, which then loses nothing or tells it."""
    primary = await scene.engine.wait_primary()
    scene.engine.sentinels[0].call("SENTINEL", "FAILOVER", "primary")
    await scene.engine.wait_primary(other=primary)
    await scene.engine.wait_healed()


async def full_memory(scene: NodesScene) -> None:
    """The engine has no more memory and refuses to write: publishing fails, nothing is lost."""
    before = scene.offsets.counts["refused"]
    server = scene.engine.server
    server.call("CONFIG", "SET", "maxmemory", scene.engine.info("used_memory"))
    with trio.move_on_after(20):
        while scene.offsets.counts["refused"] == before:  # noqa: ASYNC110
            await trio.sleep(0.05)
    await trio.sleep(scene.rng.uniform(0.1, 1))
    if scene.offsets.counts["refused"] == before:
        raise BrokenPromise("the engine had no memory, and nobody was refused")
    server.call("CONFIG", "SET", "maxmemory", 0)


async def evictions(scene: NodesScene) -> None:
    """The engine evicts keys by a policy: a stream that has lost something begins anew."""
    before = scene.engine.info("evicted_keys")
    for share in (0.95, 0.8, scene.rng.uniform(0.3, 0.9)):
        most = int(scene.engine.info("used_memory") * share)
        scene.engine.server.call("CONFIG", "SET", "maxmemory", most)
        await trio.sleep(scene.rng.uniform(0.1, 1))
    scene.engine.server.call("CONFIG", "SET", "maxmemory", 0)
    evicted = scene.engine.info("evicted_keys") - before
    if not evicted:
        raise BrokenPromise("the engine was to evict keys, and has not")
    scene.offsets.counts["evicted"] += evicted


async def _stop(scene: NodesScene, server: ValkeyServer, seconds: float) -> None:
    server.pause()
    await trio.sleep(seconds)
    server.resume()


async def _restart(scene: NodesScene) -> None:
    scene.engine.server.kill(scene.rng.choice((signal.SIGKILL, signal.SIGTERM)))
    await trio.sleep(scene.rng.uniform(0, 3))
    scene.engine.server.start()


async def _failed_over(scene: NodesScene, before: ValkeyServer) -> None:
    await scene.engine.wait_primary(other=before)
    await trio.sleep(scene.rng.uniform(0, 1))


def _cut(file: Path, size: int) -> None:
    with file.open("r+b") as opened:
        opened.truncate(size)


ENGINE_FAULTS = (
    NodesFault(engine_stops),
    NodesFault(script_flushes),
    NodesFault(client_kills),
    NodesFault(slow_readers),
    NodesFault(forgetful_kills, forgets=True),
    NodesFault(appended_kills, appending("always")),
    NodesFault(both_kills, appending("always")),
    NodesFault(cut_files, appending("everysec"), forks=True),
    NodesFault(primary_kills, with_sentinels, forks=True, brief=True),
    NodesFault(lagging_kills, with_sentinels, forks=True),
    NodesFault(forked_kills, with_sentinels, forks=True),
    NodesFault(
        forked_kills,
        with_sentinels,
        forgets=True,
        settings={"engine_failover": "strict"},
        called="strict_kills",
    ),
    NodesFault(primary_stops, with_sentinels, forks=True),
    NodesFault(failovers, with_sentinels, forks=True),
    NodesFault(replica_kills, with_sentinels),
    NodesFault(sentinel_kills, with_sentinels),
    NodesFault(full_memory),
    *(
        NodesFault(
            evictions,
            single("--maxmemory-policy", policy),
            evicts=True,
            called=f"evictions_{policy.replace('-', '_')}",
        )
        for policy in _POLICIES
    ),
)
