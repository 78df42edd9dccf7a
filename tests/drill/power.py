"""Loss of power: a server's writes are recorded, and undone as a disk may undo them.

A server runs under full load for some seconds. For many moments of that time, the files are made
that a loss of power might have left, and a broker is started on them: it must have everything that
anybody was told by then. The last loss of each life is real for the server: it goes on with what is
left, and its subscribers with their positions, so a second loss meets what the first left behind.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import trio

from repeater.brokers.sqlite.journal import Durability
from tests.drill.disk import Step, steps
from tests.drill.doors import door_to
from tests.drill.ledger import BrokenPromise
from tests.drill.load import SETTLES, Load, open_traffic
from tests.drill.losses import SIZE, Witness, lay, left_by, some_losses
from tests.drill.missing import Missing
from tests.drill.offsets import Offsets
from tests.drill.places import Place
from tests.drill.recorder import Unsupported, check_supported
from tests.drill.target import Target, until

_LOAD: Final = Load(channels=20, followers=20, calls=4)
_KEPT: Final = 200


@dataclass(frozen=True)
class PowerDrill:
    """The power goes at many moments, and a disk keeps what was synced and any part of the rest."""

    seed: int
    losses: int
    """In all lives together."""
    durability: Durability
    seconds: float = 2.0
    """How long a life lasts under load."""
    synchronous: str = ""
    """What SQLite is told in place of the server's choice: to see that the drill notices."""

    @property
    def name(self) -> str:
        return f"power_{self.durability}"

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: alone or in a group.
            Missing: this Python's SQLite cannot be recorded.
        """
        try:
            check_supported()
        except Unsupported as why:
            raise Missing(str(why)) from None
        with tempfile.TemporaryDirectory() as name:
            counts = trio.run(self._run, Path(name))
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    async def _run(self, folder: Path) -> Counter[str]:
        rng = Random(f"{self.seed}:{self.durability}")
        offsets = Offsets(_KEPT, forgets=self.durability == "process")
        counts = Counter[str]()
        starts: Mapping[str, tuple[str, int]] = {}
        before: Mapping[str, bytes] = {}
        lives = max(2, min(5, self.losses // 10))
        for life in range(lives):
            (folder / "boot").write_text(f"boot {life}")
            recorded, loaded = await self._live(folder, offsets, rng, starts)
            (folder / "boot").write_text(f"boot {life + 1}")
            losses = some_losses(recorded, loaded, self.losses // lives, rng)
            witness = Witness(offsets)
            for loss, files in zip(losses, left_by(before, recorded, losses), strict=True):
                lay(files, folder / "scratch")
                counts += await witness.check(
                    folder / "scratch", loss, self.durability, folder / "boot"
                )
            last = losses[-1]
            before = files
            lay(before, folder / "data")
            offsets.forget_since(last.moment)
            starts = {
                channel: (epoch, max(0, promise.offset - rng.randint(0, _KEPT // 4)))
                for (channel, epoch), promise in sorted(
                    witness.tops(last.moment).items(), key=lambda one: one[1].moment
                )
            }
            offsets.followers.clear()
        return counts + offsets.counts

    async def _live(
        self,
        folder: Path,
        offsets: Offsets,
        rng: Random,
        starts: Mapping[str, tuple[str, int]],
    ) -> tuple[Sequence[Step], int]:
        """Run the server under load.

        Returns:
            The recording of its writes, and the moment of the first promise.

        Raises:
            BrokenPromise: it promised nothing to anybody.
        """
        recording = folder / "recording"
        recording.unlink(missing_ok=True)
        variables = {
            "REPEATER_ENGINE": "sqlite",
            "REPEATER_DATA_DIR": str(folder / "data"),
            "REPEATER_DURABILITY": self.durability,
            "DRILL_BOOT": str(folder / "boot"),
            "DRILL_SYNCHRONOUS": self.synchronous,
        }
        command = (sys.executable, "-m", "tests.drill.recorder", str(recording), "serve")
        target = Target(command, Place(variables=variables), folder, recovery_limit=10_000)
        target.write(history_size=SIZE, history_ttl=3_600)
        known = len(offsets.promises)
        async with trio.open_nursery() as nursery:
            await nursery.start(target.run)
            door = door_to(target.host, target.port)
            async with open_traffic(_LOAD, door, offsets, rng, starts) as traffic:
                with trio.move_on_after(SETTLES):
                    await until(lambda: len(offsets.promises) > known)
                await trio.sleep(self.seconds)
                await traffic.settle()
            nursery.cancel_scope.cancel()  # kills it
        if len(offsets.promises) == known:
            raise BrokenPromise(f"nothing was acknowledged or delivered within {SETTLES:g} s")
        return list(steps(recording.read_bytes())), offsets.promises[known].moment
