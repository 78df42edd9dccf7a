"""The faults: each function makes its fault once, and returns when it is over."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import trio

from tests.drill.ledger import BrokenPromise, Ledger
from tests.drill.network import Network
from tests.drill.places import (
    Place,
    behind_cable,
    ordinary,
    with_clock,
    with_few_descriptors,
    with_history,
    with_history_and_clock,
    with_tls,
)
from tests.drill.target import Publisher, Target
from tests.drill.workers import Workers, with_workers

DEAD = 12.0
"""Seconds after which nothing may be left of peers that vanished: interval of pings and timeout of
pongs are 3 s together, and the machine may be busy."""


@dataclass
class Scene:
    """What a fault can lay hands on."""

    rng: Random
    target: Target
    network: Network
    ledger: Ledger
    publishers: Sequence[Publisher]
    place: Place
    workers: Workers


Make = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    make: Make
    forgets: bool = False
    """Whether the server may forget events by it: then subscribers must be told so. Without it they
    must recover everything."""
    restarts: bool = False
    """Whether it ends the server: one that keeps its events in memory forgets them."""
    place: Callable[[Path], AbstractContextManager[Place]] = ordinary
    """Where the server runs."""

    @property
    def name(self) -> str:
        return self.make.__name__


async def nothing(scene: Scene) -> None:
    """No fault at all."""
    await trio.sleep(0.5)


async def resets(scene: Scene) -> None:
    """Connections end by a reset, at any moment of their lives."""
    for line in scene.network.some(0.3):
        line.reset()
    await trio.sleep(scene.rng.uniform(0.01, 0.4))


async def closes(scene: Scene) -> None:
    """Connections end by a FIN and nothing else."""
    for line in scene.network.some(0.3):
        line.close()
    await trio.sleep(scene.rng.uniform(0.01, 0.4))


async def half_closes(scene: Scene) -> None:
    """Subscribers say that they will send nothing more, and read on."""
    for line in scene.network.some(0.3):
        line.half_close()
    await trio.sleep(scene.rng.uniform(0.1, 0.5))


async def crumbs(scene: Scene) -> None:
    """Everything goes byte by byte, handshakes too."""
    scene.network.crumbs = True
    for line in scene.network.some(0.3):
        line.reset()
    await trio.sleep(0.5)


async def cuts(scene: Scene) -> None:
    """Every connection ends after some number of bytes, in the middle of anything."""
    scene.network.cut_within = scene.rng.choice((50, 300, 1_000, 5_000))
    for line in scene.network.some(0.3):
        line.reset()
    await trio.sleep(0.5)


async def stalls(scene: Scene) -> None:
    """Connections carry nothing for a while, shorter or longer than the server waits."""
    for line in scene.network.some(0.5):
        line.hold(scene.rng.uniform(0.2, 5))
    await trio.sleep(scene.rng.uniform(0.2, 2))


async def pauses(scene: Scene) -> None:
    """Readers pause while more is published than the kernel and their outboxes hold."""
    for line in scene.network.some(0.3):
        line.hold(scene.rng.uniform(0.5, 4))
    for _ in range(20):
        for publisher in scene.publishers:
            await publisher.publish(40_000)
    await trio.sleep(0.5)


async def stops(scene: Scene) -> None:
    """The server's process stands still (SIGSTOP)."""
    scene.target.send(signal.SIGSTOP)
    await trio.sleep(scene.rng.uniform(1, 5))
    scene.target.send(signal.SIGCONT)
    await trio.sleep(scene.rng.uniform(0.5, 1))


async def terms(scene: Scene) -> None:
    """The server is shut down and started again, while some are away."""
    await _be_away(scene)
    await scene.target.restart(signal.SIGTERM)
    await trio.sleep(scene.rng.uniform(0.5, 4))


async def kills(scene: Scene) -> None:
    """The server is killed and started again, while some are away."""
    await _be_away(scene)
    await scene.target.restart(signal.SIGKILL)
    await trio.sleep(scene.rng.uniform(0.5, 4))


async def _be_away(scene: Scene) -> None:
    for line in scene.network.some(0.3):
        line.reset()
    await trio.sleep(scene.rng.uniform(0, 0.4))


async def reloads(scene: Scene) -> None:
    """SIGHUP, with other sizes and times of history; off and on again, too."""
    for size in (0, scene.rng.choice((0, 1, 5, 1_000)), 100):
        scene.target.write(history_size=size, history_ttl=scene.rng.choice((0.05, 1, 300)))
        scene.target.send(signal.SIGHUP)
        for line in scene.network.some(0.3):
            line.reset()
        await trio.sleep(scene.rng.uniform(0.05, 0.8))
    scene.target.write()
    scene.target.send(signal.SIGHUP)
    await trio.sleep(scene.rng.uniform(0.05, 0.5))


async def clocks(scene: Scene) -> None:
    """The clock is set, forward and back, by seconds or days."""
    scene.place.set_clock(scene.rng.choice((-86_400, -3_600, -1, 1, 60, 3_600, 86_400)))
    for line in scene.network.some(0.2):
        line.reset()
    await trio.sleep(scene.rng.uniform(0.2, 0.6))


async def descriptors(scene: Scene) -> None:
    """Strangers take all descriptors that the server may have, while subscribers come back."""
    async with AsyncExitStack() as strangers:
        for _ in range(scene.rng.randint(40, 80)):
            with suppress(OSError):
                await strangers.enter_async_context(await scene.network.open_line())
        for line in scene.network.some(0.3):
            line.reset()
        await trio.sleep(scene.rng.uniform(0.2, 1.5))
    await trio.sleep(0.3)


async def cables(scene: Scene) -> None:
    """The cable is out: no packet comes or goes, and nobody is told. The server lets all go."""
    assert scene.place.cable is not None
    await scene.place.cable.pull()
    if scene.rng.random() < 0.5:
        await trio.sleep(scene.rng.uniform(0.1, 2))
    else:
        with trio.move_on_after(DEAD):
            while (await scene.target.clients())["clients"]:  # noqa: ASYNC110  # the server tells
                await trio.sleep(0.2)
        if left := (await scene.target.clients())["clients"]:
            raise BrokenPromise(
                f"{left} clients whose peers vanished {DEAD:g} s ago are still there"
            )
    await scene.place.cable.plug()
    await trio.sleep(scene.rng.uniform(0.5, 1.5))


async def durable(scene: Scene) -> None:
    """Any fault of a server whose history outlives it: nobody is told of a loss."""
    await scene.rng.choice((stops, terms, kills))(scene)


async def durable_clocks(scene: Scene) -> None:
    """The clock is set beside a history that outlives the server; what becomes too old goes."""
    await clocks(scene)
    if scene.rng.random() < 0.3:
        await scene.target.restart(scene.rng.choice((signal.SIGTERM, signal.SIGKILL)))


async def workers(scene: Scene) -> None:
    """A worker is killed, stands still or is told to end: its clients come back to others."""
    await scene.rng.choice((scene.workers.kill, scene.workers.stop, scene.workers.drain))()
    await trio.sleep(scene.rng.uniform(0, 1))


async def tls(scene: Scene) -> None:
    """Any fault of connections, over TLS and HTTP/2."""
    scene.network.heal()
    await scene.rng.choice(_OF_CONNECTIONS)(scene)


async def everything(scene: Scene) -> None:
    """Some faults of connections and one of the server, all at once."""
    async with trio.open_nursery() as nursery:
        for make in scene.rng.sample(_OF_CONNECTIONS, 3):
            nursery.start_soon(make, scene)
        nursery.start_soon(scene.rng.choice(_OF_THE_SERVER), scene)
    scene.network.heal()
    await trio.sleep(scene.rng.uniform(0.2, 2))  # some come back, and some are late


_OF_CONNECTIONS: Sequence[Make] = (
    *(resets, closes, half_closes, crumbs, cuts, stalls, pauses, descriptors),
)
_OF_THE_SERVER: Sequence[Make] = (nothing, nothing, nothing, stops, reloads, reloads, terms, kills)

FAULTS = (
    Fault(nothing),
    Fault(resets),
    Fault(closes),
    Fault(half_closes),
    Fault(crumbs),
    Fault(cuts),
    Fault(stalls),
    Fault(pauses, forgets=True),
    Fault(stops),
    Fault(terms, restarts=True),
    Fault(kills, restarts=True),
    Fault(reloads, forgets=True),
    Fault(clocks, place=with_clock),
    Fault(durable, restarts=True, place=with_history),
    Fault(durable_clocks, forgets=True, place=with_history_and_clock),
    Fault(workers, place=with_workers),
    Fault(descriptors, place=with_few_descriptors),
    Fault(cables, place=behind_cable),
    Fault(tls, forgets=True, place=with_tls),
    Fault(everything, forgets=True),
)
