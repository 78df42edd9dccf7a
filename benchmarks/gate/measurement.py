"""All measurements of the gate, on one server or on two in turns.

The counts of a missing tool are left out, and named. A deadline bounds each measurement of one
server; when it has passed, the servers are ended.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from benchmarks.gate import bulk
from benchmarks.gate.builds import Build
from benchmarks.gate.bulk import BULKS, Bulk
from benchmarks.gate.costs import PROTOCOLS, Protocol, idle, measure, total
from benchmarks.gate.counters import Counts, Instructions, SystemCalls, Tool, ToolError
from benchmarks.gate.verdicts import INSTRUCTIONS, RESIDENT, SYSTEM_CALLS

_SECONDS: Final = 900  # for one server; two and a half minutes where the machine is idle
_TOOLS: Final[dict[str, Callable[[Path], Tool]]] = {
    SYSTEM_CALLS: SystemCalls,
    INSTRUCTIONS: Instructions,
}
# strace first: its run also compiles the modules, which takes long under valgrind.
UNITS: Final = (SYSTEM_CALLS, RESIDENT, INSTRUCTIONS)
_SUBJECTS: Final[Sequence[Protocol | Bulk]] = (*PROTOCOLS, *BULKS)


class OutOfTimeError(Exception):
    """The measurement took longer than its deadline allows."""


def _costs(unit: str, subject: Protocol | Bulk) -> set[str]:
    """The names of a subject's costs in one unit."""
    if unit != RESIDENT:
        return set(subject.costs)
    return {subject.idle} if isinstance(subject, Protocol) else set()


class Measurement:
    """Measures the costs of some servers; keeps the calls by name and the reasons of gaps."""

    def __init__(self, console: Console, builds: Sequence[Build]) -> None:
        self._console = console
        self._builds = builds
        self.missing: dict[str, str] = {}
        """The reason why a unit was not measured, by unit."""
        self.calls: dict[tuple[str, str], Counts] = {}
        """System calls by the server's title and the cost's name."""

    def everything(self) -> list[dict[str, dict[str, float]]]:
        """Return each server's costs by unit and name; a unit without its tool is left out."""
        found: list[dict[str, dict[str, float]]] = [{} for _ in self._builds]
        with self._deadline():
            for unit in UNITS:
                for costs, named in zip(found, self._of(unit, _SUBJECTS), strict=True):
                    if named:
                        costs[unit] = named
        return found

    def again(self, unit: str, names: set[str]) -> list[dict[str, float]]:
        """Measure the subjects of these costs once more."""
        with self._deadline():
            return self._of(unit, [one for one in _SUBJECTS if names & _costs(unit, one)])

    def _of(self, unit: str, subjects: Sequence[Protocol | Bulk]) -> list[dict[str, float]]:
        """Measure the costs in one unit, the servers in turns."""
        found: list[dict[str, float]] = [{} for _ in self._builds]
        for subject in subjects:
            for build, named in zip(self._builds, found, strict=True):
                if _costs(unit, subject):
                    named |= self._one(unit, subject, build)
        return [{} if unit in self.missing else named for named in found]

    def _one(self, unit: str, subject: Protocol | Bulk, build: Build) -> dict[str, float]:
        """Measure one subject in one unit; empty if the tool does not work."""
        if unit in self.missing:
            return {}
        with self._console.status(f"{unit}, {subject.name}, {build.title}"):
            try:
                if isinstance(subject, Bulk):
                    costs = bulk.measure(_TOOLS[unit], subject, build)
                elif unit == RESIDENT:
                    costs = idle(subject, build)
                else:
                    costs = measure(_TOOLS[unit], subject, build)
            except ToolError as error:
                self.missing[unit] = str(error)
                return {}
        if unit == SYSTEM_CALLS:
            self.calls |= {(build.title, name): counts for name, counts in costs.items()}
        return {name: total(counts) for name, counts in costs.items()}

    @contextlib.contextmanager
    def _deadline(self) -> Iterator[None]:
        seconds = _SECONDS * len(self._builds)

        def out_of_time(_number: int, _frame: FrameType | None) -> None:
            raise OutOfTimeError(f"not done within {seconds} s")

        signal.signal(signal.SIGALRM, out_of_time)
        signal.alarm(seconds)
        try:
            yield
        finally:
            signal.alarm(0)
