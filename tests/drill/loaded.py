"""Faults under full load: made in rounds, while back ends publish as fast as they are answered."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from tests.drill import workers
from tests.drill.copies import compacts, restores
from tests.drill.disks import (
    breakable_disk,
    full_disks,
    read_only_disks,
    small_memory_disk,
    stuck_files,
)
from tests.drill.doors import door_to
from tests.drill.history_file import check_history, check_once, copy_of, read_history
from tests.drill.ledger import BrokenPromise
from tests.drill.load import Load, open_traffic
from tests.drill.offsets import Offsets
from tests.drill.places import Place, ordinary
from tests.drill.scene import LoadedScene
from tests.drill.target import GROWTH, Target, until_left

SIZE: Final = 5_000
"""Publications that a channel keeps: more than come in one round."""
KEPT: Final = 200
"""Publications that a follower must be able to recover: some come while it connects."""
_SETTINGS: Final[Mapping[str, Any]] = {
    "recovery_limit": 10_000,
    "outbox_limit": 8 << 20,
    # The followers share one process: on a busy machine it answers a ping late.
    "ping_interval": 4.0,
    "pong_timeout": 3.9,
    "write_timeout": 10.0,
}

_CROWD: Final = Load(followers=200)


@dataclass(frozen=True)
class LoadedFault:
    """One kind of fault, beside a server with a durable history."""

    make: Callable[[LoadedScene], Awaitable[None]]
    load: Load = field(default_factory=Load)
    settings: Mapping[str, Any] = field(default_factory=dict)
    place: Callable[[Path], AbstractContextManager[Place]] = ordinary

    @property
    def name(self) -> str:
        return self.make.__name__


async def durable_kills(scene: LoadedScene) -> None:
    """The server is killed, and started again with the history that it kept."""
    await scene.target.restart(signal.SIGKILL)
    await scene.traffic.wait_live()


async def durable_terms(scene: LoadedScene) -> None:
    """The server is shut down, and started again with the history that it kept."""
    await scene.target.restart(signal.SIGTERM)
    await scene.traffic.wait_live()


async def loaded_reloads(scene: LoadedScene) -> None:
    """SIGHUP, with another size of history: no connection and no event is touched."""
    before = scene.offsets.counts["reconnects"]
    for size in (SIZE, 2 * SIZE, SIZE):
        scene.target.write(history_size=size, history_ttl=3_600)
        scene.target.send(signal.SIGHUP)
        await trio.sleep(scene.rng.uniform(0.1, 1))
    if scene.offsets.counts["reconnects"] > before:
        raise BrokenPromise("the settings were read again, and so subscribers had to come back")


LOADED: Final = (
    LoadedFault(durable_kills),
    LoadedFault(durable_terms),
    LoadedFault(loaded_reloads, settings=workers.SETTINGS),
    LoadedFault(full_disks, place=small_memory_disk),
    LoadedFault(stuck_files),
    LoadedFault(read_only_disks, place=breakable_disk),
    LoadedFault(compacts),
    LoadedFault(restores),
    LoadedFault(workers.worker_kills, _CROWD, workers.SETTINGS),
    LoadedFault(workers.worker_stops, _CROWD, workers.SETTINGS),
    LoadedFault(workers.worker_drains, _CROWD, workers.SETTINGS),
    LoadedFault(workers.supervisor_kills, _CROWD, workers.SETTINGS),
    LoadedFault(workers.supervisor_stops, _CROWD, workers.SETTINGS),
)


@dataclass(frozen=True)
class LoadedDrill:
    """One fault, made some times, and so many deliveries at least."""

    fault: LoadedFault
    rounds: int
    deliveries: int
    seed: int
    command: Sequence[str]

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: alone or in a group.
            Missing: this machine lacks what the fault needs.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with self.fault.place(folder) as place:
                data = (place.disk or folder) / "data"
                return trio.run(self._run, folder, data, place.with_history(data))

    async def _run(self, folder: Path, data: Path, place: Place) -> str:
        rng, offsets = Random(f"{self.seed}:{self.fault.name}"), Offsets(KEPT)
        target = Target(self.command, place, folder, **_SETTINGS, **self.fault.settings)
        target.write(history_size=SIZE, history_ttl=3_600)
        target.between = partial(_check_file, data, folder / "copy", offsets)
        async with trio.open_nursery() as nursery:
            await nursery.start(target.run)
            door = door_to(target.host, target.port)
            async with open_traffic(self.fault.load, door, offsets, rng) as traffic:
                names = self.fault.load.names
                some = workers.Workers(target, rng)
                scene = LoadedScene(rng, target, traffic, offsets, names, data, some)
                for _ in range(self.rounds):
                    await trio.sleep(rng.uniform(0.3, 1.5))
                    await self.fault.make(scene)
                while offsets.counts["deliveries"] < self.deliveries:  # noqa: ASYNC110
                    await trio.sleep(0.1)
                await traffic.settle()
                target.check_log()
            await until_left(target)
            growth, most = target.memory_growth(), GROWTH * (1 + len(target.workers()))
            await target.end(signal.SIGTERM)
            nursery.cancel_scope.cancel()
        if growth > most:
            raise BrokenPromise(f"the server has grown by {growth >> 20} MiB")
        found = _check_file(data, folder / "copy", offsets)
        counts = ", ".join(f"{count} {name}" for name, count in {**offsets.counts, **found}.items())
        return f"{self.rounds} rounds, {counts}, {growth / 2**20:+.1f} MiB"


def _check_file(data: Path, copy: Path, offsets: Offsets) -> Mapping[str, int]:
    """Compare what a server has left in its file with what it promised."""
    with copy_of(data, copy) as file:
        stored = read_history(file)
    check_once(stored)
    return check_history(stored, offsets, size=SIZE)
