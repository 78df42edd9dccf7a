"""Several nodes on one engine under full load, beside faults of both, and what must come of it."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from tests.drill.doors import doors_to
from tests.drill.engines import Engine, EnginePlace, single
from tests.drill.ledger import BrokenPromise
from tests.drill.load import Load, Traffic, open_traffic
from tests.drill.missing import Missing
from tests.drill.offsets import Offsets
from tests.drill.target import GROWTH, Target, until_left
from tests.drill.truth import wait_agreed
from tests.valkeys import VALKEY, Program

SIZE: Final = 5_000
"""Publications that a channel keeps: more than come while a node is away."""
KEPT: Final = 1_000
"""Publications that a subscriber must be able to recover."""
_SETTINGS: Final[Mapping[str, Any]] = {
    "recovery_limit": 10_000,
    "outbox_limit": 8 << 20,
    # The followers share one process: on a busy machine it answers a ping late.
    "ping_interval": 4.0,
    "pong_timeout": 3.9,
    "write_timeout": 10.0,
}
_BACK: Final = 0.3, 1.5  # seconds between two rounds
_CONNECTS: Final = 1.0  # seconds until a node has all its connections to the engine
LOAD: Final = Load(channels=8, followers=32, calls=3, pause=0.15)
"""Not as fast as the back ends are answered: the programs of a drill share the machine."""


@dataclass
class NodesScene:
    """What a fault can lay hands on."""

    rng: Random
    nodes: Sequence[Target]
    engine: Engine
    traffic: Traffic
    offsets: Offsets
    channels: Sequence[str]

    def node(self) -> Target:
        """Any of the nodes."""
        return self.rng.choice(self.nodes)


@dataclass(frozen=True)
class NodesFault:
    """One kind of fault, beside several nodes.

    What the engine may do by it: `forgets`, `forks` and `evicts` are those of `Offsets`.
    """

    make: Callable[[NodesScene], Awaitable[None]]
    engine: EnginePlace = field(default_factory=single)
    count: int = 2
    forgets: bool = False
    forks: bool = False
    evicts: bool = False
    brief: bool = False
    """Whether it is made in a short drill, too."""
    load: Load = LOAD
    called: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.called or self.make.__name__


@dataclass(frozen=True)
class NodesDrill:
    """One fault, made some times, and so many deliveries at least."""

    fault: NodesFault
    rounds: int
    deliveries: int
    seed: int
    commands: Sequence[Sequence[str]]
    """Start the nodes, in turn."""
    program: Program = VALKEY
    """The engine's."""

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: alone or in a group.
            Missing: this machine lacks what the fault needs.
        """
        if not self.program.path:
            raise Missing(f"{self.program} is not installed")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with self.fault.engine(folder, self.program) as engine:
                return trio.run(self._run, folder, engine)

    async def _run(self, folder: Path, engine: Engine) -> str:
        fault = self.fault
        rng = Random(f"{self.seed}:{fault.name}")
        offsets = Offsets(KEPT, forgets=fault.forgets, forks=fault.forks, evicts=fault.evicts)
        targets = [self._target(number, folder, engine) for number in range(fault.count)]
        addresses = [(one.host, one.port) for one in targets]
        async with trio.open_nursery() as nursery:
            await start_nodes(targets, nursery)
            async with open_traffic(fault.load, doors_to(addresses, rng), offsets, rng) as traffic:
                await self._rounds(
                    NodesScene(rng, targets, engine, traffic, offsets, fault.load.names)
                )
                traffic.backends.cancel()
                await wait_agreed(targets, traffic.followers, epochs=not fault.evicts)
            growth = await wait_ended(targets)
            nursery.cancel_scope.cancel()
        self._check(offsets)
        counts = ", ".join(f"{count} {name}" for name, count in offsets.counts.items())
        return f"{self.rounds} rounds, {counts}, {growth / 2**20:+.1f} MiB"

    def _target(self, number: int, folder: Path, engine: Engine) -> Target:
        command = self.commands[number % len(self.commands)]
        more = {**_SETTINGS, **self.fault.settings}
        target = node_on(engine, number, folder, command, **more)
        target.write(history_size=SIZE, history_ttl=3_600)
        return target

    async def _rounds(self, scene: NodesScene) -> None:
        for _ in range(self.rounds):
            await trio.sleep(scene.rng.uniform(*_BACK))
            await self.fault.make(scene)
            await scene.traffic.wait_live()
        while scene.offsets.counts["deliveries"] < self.deliveries:  # noqa: ASYNC110
            await trio.sleep(0.1)

    def _check(self, offsets: Offsets) -> None:
        """The last word about what was acknowledged.

        Raises:
            BrokenPromise: an acknowledged event is nowhere.
        """
        if offsets.forgets:
            return  # whoever lacks something was told, or was at a place that differs
        for name in offsets.behind():
            raise BrokenPromise(f"{name} never got what was acknowledged")
        if lost := {channel: len(numbers) for channel, numbers in offsets.unplaced().items()}:
            raise BrokenPromise(f"acknowledged, and never delivered: {lost}")


def node_on(
    engine: Engine, number: int, folder: Path, command: Sequence[str], **settings: Any
) -> Target:
    """One of several nodes; its files are in a folder of its own inside this one."""
    own = folder / f"node{number}"
    own.mkdir()
    more = {"engine": "valkey", "engine_url": engine.url, "node_name": f"node{number}"}
    return Target(command, engine.place(number), own, **more, **settings)


async def start_nodes(targets: Sequence[Target], nursery: trio.Nursery) -> None:
    """Start nodes side by side, and have them measured when they have all connections."""
    async with trio.open_nursery() as starts:
        for target in targets:
            starts.start_soon(nursery.start, target.run)
    await trio.sleep(_CONNECTS)
    for target in targets:
        target.measure()


async def wait_ended(targets: Sequence[Target]) -> int:
    """Wait until nothing is left of the load; the bytes that the nodes have grown by.

    Raises:
        BrokenPromise: a node has an error of its own, keeps something or has grown too much.
    """
    growth = 0
    for target in targets:
        target.check_log()
        await until_left(target)
        found = target.memory_growth()
        if found > GROWTH:
            raise BrokenPromise(f"a node has grown by {found >> 20} MiB")
        growth += found
    return growth
