"""What the gate decides: the committed numbers, the allowances, and the verdict on each cost.

Pure values. System calls are compared everywhere; instruction counts only where the interpreter
is the one that the numbers were made with, since another compiler alone changes them by more
than any regression worth a gate.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

INSTRUCTIONS: Final = "instructions"
SYSTEM_CALLS: Final = "system calls"

Costs = Mapping[str, Mapping[str, float]]
"""Unit, then name, then how many."""

# Six measurements of the same code, two of them with a busy loop on each core as well, differ by
# 0.15 % in instructions at most, and by nothing in system calls: `spread` in the JSON. The rest is
# for what the layout of memory does when code that has nothing to do with it changes.
_RELATIVE: Final = 0.02
_CALLS: Final = 0.25  # one more turn of Trio's loop in a few windows is luck, in all of them not
_CALLS_PER_DELIVERY: Final = 0.05

_PACKAGES: Final = ("trio", "websockets", "msgspec", "httptools", "attrs", "h11")
_INTERPRETER: Final = ("python", "compiler", "machine")


class Verdict(StrEnum):
    """What is said of one cost."""

    SAME = "same"
    WORSE = "worse"
    BETTER = "better: renew the numbers"
    NOT_COMPARED = "not compared"
    NOT_MEASURED = "not measured"
    NEW = "new: not committed yet"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One cost and its verdict."""

    unit: str
    name: str
    committed: float | None
    measured: float | None
    allowance: float
    verdict: Verdict

    @property
    def change(self) -> float | None:
        if self.committed is None or self.measured is None:
            return None
        return self.measured - self.committed


class Committed(msgspec.Struct, frozen=True):
    """The numbers beside the gate, and where they come from."""

    made_on: Mapping[str, str]
    costs: Costs
    spread: Costs
    """The widest difference between the measurements that `costs` are the medians of."""

    @classmethod
    def read(cls, path: Path) -> Committed:
        """Raise `OSError` or `ValueError` where there are none."""
        document: dict[str, Any] = json.loads(path.read_text())
        return cls(document["made_on"], document["costs"], document["spread"])

    @classmethod
    def of(cls, measured: Sequence[Costs]) -> Committed:
        """The medians of some measurements on this machine."""
        return cls(
            here(),
            _summary(measured, statistics.median),
            _summary(measured, lambda values: max(values) - min(values)),
        )

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(msgspec.structs.asdict(self), indent=2) + "\n")

    @property
    def foreign(self) -> list[str]:
        """In what the interpreter here is another one; instruction counts then say nothing."""
        return [text for name, text in self._differences() if name in _INTERPRETER]

    @property
    def differs(self) -> list[str]:
        """What else is another version here: a reason for a change that is not the code's."""
        return [text for name, text in self._differences() if name not in _INTERPRETER]

    def _differences(self) -> list[tuple[str, str]]:
        now = here()
        return [
            (name, f"{name} {now.get(name)}, committed {self.made_on.get(name)}")
            for name in {**self.made_on, **now}
            if now.get(name) != self.made_on.get(name)
        ]


def here() -> dict[str, str]:
    """What the counts depend on, besides the code: Python, its build, libc and the packages."""
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
    return round(value) if unit == INSTRUCTIONS else round(value, 3)


def allowance(unit: str, name: str, committed: float) -> float:
    """How far from the committed number a cost may be."""
    if unit == INSTRUCTIONS:
        return committed * _RELATIVE
    return _CALLS_PER_DELIVERY if name.startswith("delivery") else _CALLS


def judge(committed: Costs, measured: Costs, *, comparable: Mapping[str, bool]) -> list[Row]:
    """Every cost that is committed or measured, in the committed order."""
    rows = list[Row]()
    for unit in {**committed, **measured}:
        before, after = committed.get(unit, {}), measured.get(unit, {})
        for name in {**before, **after}:
            rows.append(
                _row(unit, name, before.get(name), after.get(name), comparable.get(unit, True))
            )
    return rows


def _row(
    unit: str, name: str, committed: float | None, measured: float | None, comparable: bool
) -> Row:
    allowed = 0.0 if committed is None else allowance(unit, name, committed)
    if committed is None:
        verdict = Verdict.NEW
    elif measured is None:
        verdict = Verdict.NOT_MEASURED
    elif not comparable:
        verdict = Verdict.NOT_COMPARED
    elif measured > committed + allowed:
        verdict = Verdict.WORSE
    elif measured < committed - allowed:
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.SAME
    return Row(
        unit=unit,
        name=name,
        committed=committed,
        measured=measured,
        allowance=allowed,
        verdict=verdict,
    )


def exit_code(rows: Sequence[Row]) -> int:
    """1 for anything worse, 2 where nothing at all could be compared, 0 otherwise."""
    verdicts = {row.verdict for row in rows}
    if Verdict.WORSE in verdicts:
        return 1
    return 0 if verdicts & {Verdict.SAME, Verdict.BETTER} else 2


def lesser(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Of two measurements the less disturbed one, cost by cost."""
    return {name: min(value, second.get(name, value)) for name, value in first.items()}
