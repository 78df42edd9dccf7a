"""The command: make one fault after the other, and say how to see again what broke a promise."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import click
import trio

from tests.drill.centrifugo import WAYS
from tests.drill.faults import FAULTS, Fault, Scene
from tests.drill.ledger import BrokenPromise, Ledger
from tests.drill.network import Network
from tests.drill.places import Missing, Place
from tests.drill.subscribers import Subscriber
from tests.drill.target import KEPT, Publisher, Target, until
from tests.processes import SERVE

CHANNELS = ("news", "sports", "weather", "chat")
RATE = 7.0  # events a second and channel
SETTLES = 30.0  # seconds until all subscribers are back and have everything
LEAVES = 15.0  # seconds until nothing is left of them: above all deadlines of the settings
GROWTH = 64 << 20  # bytes of the server's memory


@click.command(context_settings={"show_default": True})
@click.option("--seconds", default=300.0, help="How long to make faults, all together.")
@click.option("--seed", default=1, help="The same seed makes the same faults.")
@click.option("--fault", "names", multiple=True, help="Only this fault; may be repeated.")
@click.option("--list", "listing", is_flag=True, help="Name the faults, and make none.")
@click.option("--command", default=shlex.join(SERVE), help="Starts the server.")
@click.option("--durable", is_flag=True, help="It must keep its events when it is ended.")
def main(
    seconds: float,
    seed: int,
    names: tuple[str, ...],
    listing: bool,
    command: str,
    durable: bool,
) -> None:
    """Make faults beside a running server, and check that no event is lost in silence.

    Subscribers of every way in come back as SDKs do, and know what they must get.
    """
    chosen = [one for one in FAULTS if not names or one.name in names]
    if unknown := set(names) - {one.name for one in FAULTS}:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: see --list")
    for fault in chosen:
        if listing:
            click.echo(f"{fault.name}: {fault.make.__doc__}")
            continue
        drill = Drill(fault, seconds / len(chosen), seed, shlex.split(command), durable)
        try:
            click.echo(f"{fault.name}: {drill.run()}")
        except* BrokenPromise as group:
            again = f"just drill --fault {fault.name} --seed {seed} --seconds {drill.seconds:g}"
            reason = f"{fault.name}: {_first(group)}\nTo see it again: {again}"
            raise click.ClickException(reason) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


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
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                with self.fault.place(folder) as place:
                    return trio.run(self._with_server, folder, place)
            except Missing as missing:
                return f"skipped, {missing}"

    async def _with_server(self, folder: Path, place: Place) -> str:
        rng, ledger = Random(f"{self.seed}:{self.fault.name}"), Ledger(KEPT)
        ledger.forgetting = self.fault.forgets or (self.fault.restarts and not self.durable)
        async with trio.open_nursery() as nursery:
            target = Target(self.command, place, folder)
            await nursery.start(target.run)
            network = Network(target.host, target.port, rng, place.authority)
            publishers = [Publisher(channel, target, ledger, RATE) for channel in CHANNELS]
            await self._with_subscribers(Scene(rng, target, network, ledger, publishers, place))
            for publisher in publishers:
                await publisher.aclose()
            await _left(target)
            growth = target.memory_growth()
            nursery.cancel_scope.cancel()
        if growth > GROWTH:
            raise BrokenPromise(f"the server has grown by {growth >> 20} MiB")
        counts = ", ".join(f"{count} {name}" for name, count in ledger.counts.items())
        return f"{counts}, {growth / 2**20:+.1f} MiB"

    async def _with_subscribers(self, scene: Scene) -> None:
        async with trio.open_nursery() as listeners:
            subscribers = _subscribers(scene, listeners)
            async with trio.open_nursery() as sources:
                for publisher in scene.publishers:
                    sources.start_soon(publisher.run)
                await _all_connected(subscribers)
                deadline = trio.current_time() + self.seconds
                while trio.current_time() < deadline:
                    await self.fault.make(scene)
                scene.network.heal()
                sources.cancel_scope.cancel()
            await _settle(scene, subscribers)
            listeners.cancel_scope.cancel()


def _subscribers(scene: Scene, nursery: trio.Nursery) -> list[Subscriber]:
    """Some of every way in, natively and by Hypercorn, of one channel or of some."""
    found = list[Subscriber]()
    secure = scene.place.authority is not None
    for way in WAYS:
        for end in ("native", "http2" if secure and not way.upgrades else "reused"):
            for count in (1, 3):
                channels = scene.rng.sample(CHANNELS, count)
                one = way(len(found), channels, scene.ledger, scene.network.open, end=end)
                found.append(one)
                nursery.start_soon(one.run)
    return found


async def _all_connected(subscribers: list[Subscriber]) -> None:
    with trio.move_on_after(SETTLES):
        await until(lambda: all(one.connected for one in subscribers))
    if away := [one.name for one in subscribers if not one.connected]:
        raise BrokenPromise(f"{', '.join(away)} could not connect in {SETTLES:g} s")


async def _settle(scene: Scene, subscribers: list[Subscriber]) -> None:
    """Publish something that all must get, and wait until they have it."""
    await _all_connected(subscribers)
    for publisher in scene.publishers:
        await publisher.publish()
    with trio.move_on_after(SETTLES):
        await until(lambda: not scene.ledger.behind())
    scene.ledger.check()
    scene.target.check_log()


async def _left(target: Target) -> None:
    with trio.move_on_after(LEAVES):
        while left := await target.left():  # noqa: ASYNC110  # the server tells
            await trio.sleep(0.2)
    if left:
        raise BrokenPromise(f"the subscribers have gone, and the server still has {dict(left)}")


if __name__ == "__main__":
    main()
