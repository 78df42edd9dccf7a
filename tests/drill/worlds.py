"""Worlds of some nodes on an engine in memory, many of them, on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar

from tests import cluster_world, plane_world, valkey_world
from tests.drill.ledger import BrokenPromise

World = TypeVar("World")

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
        return _run_all(self.seed, self.worlds, _run_some_streams)


@dataclass(frozen=True)
class PlaneWorldsDrill:
    """Nodes whose Valkey fails over, is cut off, forgets and is late: who is there, and denials."""

    name: ClassVar[str] = "plane_worlds"

    seed: int
    worlds: int

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: nodes do not agree, or what was acknowledged is missing.
        """
        return _run_all(self.seed, self.worlds, _run_some_planes)


@dataclass(frozen=True)
class ClusterWorldsDrill:
    """Nodes that die, end and are cut off from a Valkey that fails over: presence and events."""

    name: ClassVar[str] = "cluster_worlds"

    seed: int
    worlds: int

    def run(self) -> str:
        """What was checked, in one line.

        Raises:
            BrokenPromise: presence, or what the application knows, has stayed wrong.
        """
        return _run_all(self.seed, self.worlds, _run_some_clusters)


def _run_all(first: int, worlds: int, run_some: Callable[[Sequence[int]], dict[str, int]]) -> str:
    seeds = range(first, first + worlds)
    parts = [seeds[start : start + _TOGETHER] for start in range(0, worlds, _TOGETHER)]
    found: Counter[str] = Counter()
    with ProcessPoolExecutor(
        min(os.cpu_count() or 1, len(parts)), multiprocessing.get_context("spawn")
    ) as pool:
        for one in pool.map(run_some, parts):
            found.update(one)
    return ", ".join(f"{number:,} {name}" for name, number in found.items())


def _run_some_streams(seeds: Sequence[int]) -> dict[str, int]:
    return valkey_world.sums(_each(seeds, valkey_world.run_world))


def _run_some_planes(seeds: Sequence[int]) -> dict[str, int]:
    return plane_world.sums(_each(seeds, plane_world.run_world))


def _run_some_clusters(seeds: Sequence[int]) -> dict[str, int]:
    return cluster_world.sums(_each(seeds, cluster_world.run_world))


def _each(seeds: Sequence[int], run_world: Callable[[int], World]) -> list[World]:
    worlds = []
    for seed in seeds:
        try:
            worlds.append(run_world(seed))
        except AssertionError as error:
            raise BrokenPromise(f"{error} (this world alone: --seed {seed} --worlds 1)") from None
    return worlds
