"""The history is compacted, or an older copy takes its place, between two lives of a server."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from tests.drill.history_file import read_history
from tests.drill.ledger import BrokenPromise
from tests.drill.scene import LoadedScene

_HEARD: Final = 0.5  # seconds until everybody has read what an ended server has sent
_COMMAND: Final = 1.5  # seconds that a command takes, or more


async def compacts(scene: LoadedScene) -> None:
    """The server is ended, and `repeater data compact` is killed; then it succeeds."""
    check = scene.target.between

    def compact() -> None:
        check()
        scene.target.run_command("data", "compact", patience=scene.rng.uniform(0, _COMMAND))
        check()
        _run(scene, "data", "compact")
        check()

    await _restart(scene, compact)


async def restores(scene: LoadedScene) -> None:
    """A backup is made beside the running server, and put in the place of a newer history."""
    backup = scene.data.parent / "backup"
    before = scene.offsets.tops()
    await trio.to_thread.run_sync(partial(_run, scene, "data", "backup", str(backup)))
    stored = read_history(backup)
    for (channel, epoch), top in before.items():
        found = stored.get(channel)
        if found is None or found.epoch != epoch or found.top < top:
            raise BrokenPromise(f"the backup has {found} of {channel}, which was at {epoch} {top}")
    await trio.sleep(scene.rng.uniform(0.1, 1))
    check = scene.target.between

    def restore() -> None:
        check()
        time.sleep(_HEARD)
        scene.offsets.begin_anew()
        _run(scene, "data", "restore", str(backup))
        for one in scene.data.glob("*.replaced-*"):
            one.unlink()

    await _restart(scene, restore)


async def _restart(scene: LoadedScene, between: Callable[[], object]) -> None:
    check, scene.target.between = scene.target.between, between
    await scene.target.restart(scene.rng.choice((signal.SIGKILL, signal.SIGTERM)))
    scene.target.between = check
    await scene.traffic.wait_live()


def _run(scene: LoadedScene, *command: str) -> None:
    if status := scene.target.run_command(*command):
        raise BrokenPromise(f"`repeater {' '.join(command)}` ends with {status}")
