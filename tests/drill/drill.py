"""A drill of one fault: a server, its subscribers of every way in, and the fault beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import trio

from tests.drill.centrifugo import WAYS
from tests.drill.faults import Fault, Scene
from tests.drill.ledger import BrokenPromise, Ledger
from tests.drill.network import Network
from tests.drill.places import Place
from tests.drill.subscribers import Subscriber
from tests.drill.target import GROWTH, KEPT, Publisher, Target, until, until_left
from tests.drill.workers import Workers

CHANNELS = ("news", "sports", "weather", "chat")
RATE = 7.0  # events a second and channel
SETTLES = 30.0  # seconds until all subscribers are back and have everything


@dataclass(frozen=True)
class Drill:
    """One fault, made for a while beside one server."""

    fault: Fault
    seconds: float
    seed: int
    command: Sequence[str]
    durable: bool

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: alone or in a group.
            Missing: this machine lacks what the place needs.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with self.fault.place(folder) as place:
                return trio.run(self._with_server, folder, place)

    async def _with_server(self, folder: Path, place: Place) -> str:
        rng, ledger = Random(f"{self.seed}:{self.fault.name}"), Ledger(KEPT)
        ledger.forgetting = self.fault.forgets or (
            self.fault.restarts and not (self.durable or place.durable)
        )
        async with trio.open_nursery() as nursery:
            target = Target(self.command, place, folder)
            await nursery.start(target.run)
            network = Network(target.host, target.port, rng, place.authority)
            publishers = [Publisher(channel, target, ledger, RATE) for channel in CHANNELS]
            await self._with_subscribers(
                Scene(rng, target, network, ledger, publishers, place, Workers(target, rng))
            )
            for publisher in publishers:
                await publisher.aclose()
            await until_left(target)
            growth = target.memory_growth()
            nursery.cancel_scope.cancel()
        if growth > GROWTH:
            raise BrokenPromise(f"the server has grown by {growth >> 20} MiB")
        counts = ", ".join(f"{count} {name}" for name, count in ledger.counts.items())
        return f"{counts}, {growth / 2**20:+.1f} MiB"

    async def _with_subscribers(self, scene: Scene) -> None:
        audience = Audience(
            scene.rng,
            scene.network,
            scene.ledger,
            scene.publishers,
            secure=scene.place.authority is not None,
        )
        await audience.run(self.seconds, partial(self.fault.make, scene))
        scene.target.check_log()


@dataclass
class Audience:
    """Publishers, and some subscribers of every way in."""

    rng: Random
    network: Network
    ledger: Ledger
    publishers: Sequence[Publisher]
    secure: bool = False

    async def run(self, seconds: float, make: Callable[[], Awaitable[None]]) -> None:
        """Make faults for so many seconds; at the end everybody has everything.

        Raises:
            BrokenPromise: alone or in a group.
        """
        async with trio.open_nursery() as listeners:
            subscribers = self._subscribers(listeners)
            async with trio.open_nursery() as sources:
                for publisher in self.publishers:
                    sources.start_soon(publisher.run)
                await _all_connected(subscribers)
                deadline = trio.current_time() + seconds
                while trio.current_time() < deadline:
                    await make()
                self.network.heal()
                sources.cancel_scope.cancel()
            await self._settle(subscribers)
            listeners.cancel_scope.cancel()

    def _subscribers(self, nursery: trio.Nursery) -> list[Subscriber]:
        """Some of every way in, natively and by Hypercorn, of one channel or of some."""
        found = list[Subscriber]()
        for way in WAYS:
            for end in ("native", "http2" if self.secure and not way.upgrades else "reused"):
                for count in (1, 3):
                    channels = self.rng.sample(CHANNELS, count)
                    one = way(len(found), channels, self.ledger, self.network.open, end=end)
                    found.append(one)
                    nursery.start_soon(one.run)
        return found

    async def _settle(self, subscribers: list[Subscriber]) -> None:
        """Publish something that all must get, and wait until they have it."""
        await _all_connected(subscribers)
        for publisher in self.publishers:
            await publisher.publish()
        with trio.move_on_after(SETTLES):
            await until(lambda: not self.ledger.behind())
        self.ledger.check()


async def _all_connected(subscribers: list[Subscriber]) -> None:
    with trio.move_on_after(SETTLES):
        await until(lambda: all(one.connected for one in subscribers))
    if away := [one.name for one in subscribers if not one.connected]:
        raise BrokenPromise(f"{', '.join(away)} could not connect in {SETTLES:g} s")
