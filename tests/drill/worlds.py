"""Worlds of two nodes on an engine in memory, many of them, on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Final

from tests.drill.ledger import BrokenPromise
from tests.valkey_world import run_world, sums

_TOGETHER: Final = 50  # worlds that a process runs before it tells of them


@dataclass(frozen=True)
class WorldsDrill:
    """Two nodes on a simulated Valkey that fails over, is cut off, forgets, refuses and is late."""

    name: ClassVar[str] = "valkey_worlds"

    seed: int
    worlds: int

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: a node was told what it should not have been, or too little.
        """
        seeds = range(self.seed, self.seed + self.worlds)
        parts = [seeds[start : start + _TOGETHER] for start in range(0, self.worlds, _TOGETHER)]
        found: Counter[str] = Counter()
        with ProcessPoolExecutor(
            min(os.cpu_count() or 1, len(parts)), multiprocessing.get_context("spawn")
        ) as pool:
            for one in pool.map(_run_some, parts):
                found.update(one)
        return ", ".join(f"{number:,} {name}" for name, number in found.items())


def _run_some(seeds: Sequence[int]) -> dict[str, int]:
    worlds = []
    for seed in seeds:
        try:
            worlds.append(run_world(seed))
        except AssertionError as error:
            raise BrokenPromise(f"{error} (this world alone: --seed {seed} --worlds 1)") from None
    return sums(worlds)
