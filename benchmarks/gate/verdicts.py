"""The gate's decisions: the committed numbers, the allowances, and the verdict on each cost.

Pure values. System calls are compared with the committed numbers everywhere. Instructions and
resident bytes are compared only with the same interpreter: another compiler alone changes them by
more than any regression that matters. Two revisions that are measured in one run have the same
interpreter, so everything is compared, and more closely.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

INSTRUCTIONS: Final = "instructions"
SYSTEM_CALLS: Final = "system calls"
RESIDENT: Final = "resident bytes"

Costs = Mapping[str, Mapping[str, float]]
"""Unit, then name, then how many."""

# Six measurements of the same code, two of them with a busy loop on each core as well, differ by
# 0.15 % in instructions at most, and by nothing in system calls: `spread` in the JSON. The rest is
# for changes of the memory layout, which even unrelated code can cause.
_RELATIVE: Final = 0.02
_CALLS: Final = 0.25  # one more turn of Trio's loop is luck in a few windows, but not in all
_CALLS_PER_DELIVERY: Final = 0.05
# Of two revisions in one run, as a share of the one before. Nothing but the code differs.
_AGAINST: Final = 0.01
# What an idle subscriber keeps differs by up to 3 % between medians of three servers: the kernel
# gives whole pages, the allocator whole arenas, and a busy machine changes what happens at once.
_RESIDENT: Final = 0.05

_PACKAGES: Final = ("trio", "websockets", "msgspec", "httptools", "h11")
_INTERPRETER: Final = ("python", "compiler", "machine")


class Verdict(StrEnum):
    """The verdict on one cost."""

    SAME = "same"
    WORSE = "worse"
    BETTER = "better"
    NOT_COMPARED = "not compared"
    NOT_MEASURED = "not measured"
    NEW = "new"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One cost and its verdict."""

    unit: str
    name: str
    before: float | None
    """The committed number, or the other revision's."""
    measured: float | None
    allowance: float = 0.0
    verdict: Verdict = Verdict.NOT_COMPARED

    @property
    def ratio(self) -> float | None:
        """Measured divided by before; None where one is missing or before is zero."""
        if not self.before or self.measured is None:
            return None
        return self.measured / self.before


class Committed(msgspec.Struct, frozen=True):
    """The committed numbers in gate.json, and where they come from."""

    made_on: Mapping[str, str]
    costs: Costs
    spread: Costs
    """The largest difference between the measurements of which `costs` are the medians."""

    @classmethod
    def read(cls, path: Path) -> Committed:
        """Read the numbers; raises `OSError` or `ValueError` if the file is missing or broken."""
        document: dict[str, Any] = json.loads(path.read_text())
        return cls(document["made_on"], document["costs"], document["spread"])

    @classmethod
    def of(cls, measured: Sequence[Costs]) -> Committed:
        """Return the medians of some measurements on this machine."""
        return cls(
            here(),
            _summary(measured, statistics.median),
            _summary(measured, lambda values: max(values) - min(values)),
        )

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(msgspec.structs.asdict(self), indent=2) + "\n")

    @property
    def foreign(self) -> list[str]:
        """How the interpreter here differs; if it does, only system calls are comparable."""
        return [text for name, text in self._differences() if name in _INTERPRETER]

    @property
    def differs(self) -> list[str]:
        """The other versions that differ here: they too can change a count."""
        return [text for name, text in self._differences() if name not in _INTERPRETER]

    def _differences(self) -> list[tuple[str, str]]:
        now = here()
        return [
            (name, f"{name} {now.get(name)}, committed {self.made_on.get(name)}")
            for name in {**self.made_on, **now}
            if now.get(name) != self.made_on.get(name)
        ]


def here() -> dict[str, str]:
    """Return what the counts depend on besides the code: Python, its build, libc, packages."""
    packages = {name: _version(name) for name in _PACKAGES}
    major, minor, _ = platform.python_version_tuple()
    return {
        "python": f"{platform.python_implementation()} {major}.{minor}",
        "compiler": platform.python_compiler(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        **packages,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _summary(measured: Sequence[Costs], how: Any) -> dict[str, dict[str, float]]:
    return {
        unit: {
            name: _rounded(unit, how([costs[unit][name] for costs in measured]))
            for name in measured[0][unit]
        }
        for unit in measured[0]
    }


def _rounded(unit: str, value: float) -> float:
    return round(value, 3) if unit == SYSTEM_CALLS else round(value)


Allowance = Callable[[str, str, float], float]
"""Takes a unit, a cost's name and its number before; returns the allowed distance from it."""


def allowance(unit: str, name: str, committed: float) -> float:
    """Return how far a cost may be from the committed number."""
    if unit == RESIDENT:
        return committed * _RESIDENT
    if unit == INSTRUCTIONS:
        return committed * _RELATIVE
    return _CALLS_PER_DELIVERY if name.startswith("delivery") else _CALLS


def allowance_against(unit: str, _name: str, before: float) -> float:
    """Return how far a cost may be from another revision's, measured in the same run."""
    return before * (_RESIDENT if unit == RESIDENT else _AGAINST)


def judge(
    before: Costs,
    measured: Costs,
    *,
    allowed: Allowance = allowance,
    incomparable: Collection[str] = (),
) -> list[Row]:
    """Judge every cost from before and every measured one, in the order from before.

    `incomparable` are the units whose numbers cannot be compared here.
    """
    rows = list[Row]()
    for unit in {**before, **measured}:
        old, new = before.get(unit, {}), measured.get(unit, {})
        for name in {**old, **new}:
            one = Row(unit=unit, name=name, before=old.get(name), measured=new.get(name))
            rows.append(_judged(one, allowed, comparable=unit not in incomparable))
    return rows


def _judged(row: Row, allowed: Allowance, *, comparable: bool) -> Row:
    if row.before is None:
        return msgspec.structs.replace(row, verdict=Verdict.NEW)
    room = allowed(row.unit, row.name, row.before)
    if row.measured is None:
        verdict = Verdict.NOT_MEASURED
    elif not comparable:
        verdict = Verdict.NOT_COMPARED
    elif row.measured > row.before + room:
        verdict = Verdict.WORSE
    elif row.measured < row.before - room:
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.SAME
    return msgspec.structs.replace(row, allowance=room, verdict=verdict)


NO_VERDICT: Final = 2
"""The exit code if a cost could not be compared: neither a pass nor a regression."""


def exit_code(rows: Sequence[Row]) -> int:
    """Return 1 for a worse cost; 2 if a cost, or every cost, lacks a verdict; else 0."""
    verdicts = {row.verdict for row in rows}
    if Verdict.WORSE in verdicts:
        return 1
    if verdicts & {Verdict.NOT_COMPARED, Verdict.NOT_MEASURED}:
        return NO_VERDICT
    return 0 if verdicts & {Verdict.SAME, Verdict.BETTER} else NO_VERDICT


def lesser(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return the less disturbed of two measurements, cost by cost."""
    return {name: min(value, second.get(name, value)) for name, value in first.items()}
