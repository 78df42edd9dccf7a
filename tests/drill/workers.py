"""Faults of a server with several workers."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import psutil
import trio

from tests.deadlines import PROCESS_STARTS
from tests.drill.ledger import BrokenPromise
from tests.drill.places import Place
from tests.drill.target import LEAVES, Target, until

TIMEOUT: Final = 3.0
COUNT: Final = 2
SETTINGS: Final[dict[str, Any]] = {"workers": COUNT, "worker_timeout": TIMEOUT}

if TYPE_CHECKING:
    from tests.drill.scene import LoadedScene

_DEATHS: Final = 3
_MINUTE: Final = 62.0
"""So many workers may die in a minute; with five the supervisor gives up."""


@contextmanager
def with_workers(folder: Path) -> Iterator[Place]:
    """Several processes that serve the clients."""
    yield Place(variables={f"REPEATER_{k.upper()}": str(v) for k, v in SETTINGS.items()})


class Workers:
    """The workers of one server, for as long as its drill lasts."""

    def __init__(self, target: Target, rng: Random) -> None:
        self._target = target
        self._rng = rng
        self._deaths: deque[float] = deque()

    async def kill(self) -> None:
        """Kill a worker, and wait until it is replaced."""
        await self._pace()
        victim = self._some()
        victim.kill()
        await self._replaced(victim)

    async def stop(self) -> None:
        """Have a worker stand still, for a moment or until it is killed and replaced."""
        if self._rng.random() < 0.5:
            victim = self._some()
            victim.suspend()
            await trio.sleep(self._rng.uniform(0.1, TIMEOUT / 2))
            victim.resume()
            return
        await self._pace()
        victim = self._some()
        victim.suspend()
        await self._replaced(victim)

    async def drain(self) -> None:
        """Tell a worker to end, and wait until it is replaced."""
        victim = self._some()
        victim.terminate()
        await self._replaced(victim)

    def _some(self) -> psutil.Process:
        workers = self._target.workers()
        if len(workers) < COUNT:
            raise BrokenPromise(f"the server has {len(workers)} workers")
        return self._rng.choice(workers)

    async def _replaced(self, victim: psutil.Process) -> None:
        """Wait until a worker has ended, and another is there in its place.

        Raises:
            BrokenPromise: that takes too long.
        """
        with trio.move_on_after(PROCESS_STARTS) as waiting:
            await until(lambda: not runs(victim) and len(self._target.workers()) == COUNT)
        if waiting.cancelled_caught:
            raise BrokenPromise(f"a worker has ended, and there are {self._target.workers()}")

    async def _pace(self) -> None:
        """Wait while as many workers have died in the last minute as may."""
        if len(self._deaths) == _DEATHS:
            await trio.sleep_until(self._deaths.popleft() + _MINUTE)
        self._deaths.append(trio.current_time())


async def worker_kills(scene: LoadedScene) -> None:
    """A worker is killed: its clients come back to others, and it is replaced."""
    await scene.workers.kill()
    await scene.traffic.wait_live()


async def worker_stops(scene: LoadedScene) -> None:
    """A worker stands still (SIGSTOP), for a moment or until it is killed and replaced."""
    await scene.workers.stop()
    await scene.traffic.wait_live()


async def worker_drains(scene: LoadedScene) -> None:
    """A worker is told to end (SIGTERM): it drains, and is replaced."""
    await scene.workers.drain()
    await scene.traffic.wait_live()


async def supervisor_kills(scene: LoadedScene) -> None:
    """The supervisor is killed: its workers end, and the history is there for the next one."""
    orphans = scene.target.workers()
    await scene.target.restart(signal.SIGKILL)
    await scene.traffic.wait_live()
    with trio.move_on_after(LEAVES):
        await until(lambda: not any(map(runs, orphans)))
    if left := [one.pid for one in orphans if runs(one)]:
        raise BrokenPromise(f"the supervisor was killed, and its workers {left} still run")


async def supervisor_stops(scene: LoadedScene) -> None:
    """The supervisor stands still (SIGSTOP) for a while: nothing is published, nothing is lost."""
    scene.target.send(signal.SIGSTOP)
    await trio.sleep(scene.rng.uniform(0.2, 2 * TIMEOUT))
    scene.target.send(signal.SIGCONT)
    await scene.traffic.wait_live()


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
