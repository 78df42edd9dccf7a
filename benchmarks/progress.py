"""The progress of a run: a bar at a terminal, one line a workload elsewhere.

The remaining time is estimated from the seconds that a turn took so far. Turns of different
workloads differ, so the line says "about".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Watcher(Protocol):
    """Shows the progress of a run. Entered for as long as the run lasts."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def start(self, workloads: int, turns: int) -> None:
        """The run begins, with so many workloads and turns."""

    def workload(self, title: str, servers: int, rounds: int) -> None:
        """A workload begins."""

    def turn(self, server: str) -> None:
        """A turn begins."""

    def done(self) -> None:
        """A turn ended, with or without a fault."""


def watcher(console: Console) -> Watcher:
    """Return a bar at a terminal, and lines elsewhere."""
    return Bar(console) if console.is_terminal else Lines(console.print)


class Bar:
    """A bar that shows what is being measured."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("")
        self._title = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, workloads: int, turns: int) -> None:
        self._progress.update(self._bar, total=turns)

    def workload(self, title: str, servers: int, rounds: int) -> None:
        self._title = title

    def turn(self, server: str) -> None:
        self._progress.update(self._bar, description=f"{self._title}: {server}")

    def done(self) -> None:
        self._progress.advance(self._bar)


class Lines:
    """One line a workload, for logs."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._began = clock()
        self._workloads = self._turns = 0
        self._workload = self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write(f"{self._done} of {self._turns} turns in {_duration(self._spent())}")

    def start(self, workloads: int, turns: int) -> None:
        self._workloads, self._turns = workloads, turns

    def workload(self, title: str, servers: int, rounds: int) -> None:
        self._workload += 1
        left = ""
        if self._done:
            seconds = self._spent() / self._done * (self._turns - self._done)
            left = f"; {_duration(self._spent())} so far, about {_duration(seconds)} left"
        self._write(
            f"{self._workload}/{self._workloads} {title}: "
            f"{servers} server{'s' * (servers != 1)} x {rounds}{left}"
        )

    def turn(self, server: str) -> None:
        pass

    def done(self) -> None:
        self._done += 1

    def _spent(self) -> float:
        return self._clock() - self._began


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
