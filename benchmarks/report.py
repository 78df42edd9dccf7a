"""The report: the machine, a table for people and JSON for machines."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure
from benchmarks.servers import cores, floor_c

_PACKAGES: Final = (
    *("trio", "hypercorn", "quart", "quart-trio", "trio-websocket", "websockets"),
    *("msgspec", "attrs", "h11", "httptools"),
)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    measured, generator = cores()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "server_core": measured,
        "generator_core": generator,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "floor": "Python only" if floor_c() is None else "C and Python",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def print_table(figures: Sequence[Figure], console: Console) -> None:
    """One row a figure; the details below, since a ratio alone says little."""
    info = machine()
    title = f"{info['cpu']}, {info['cores']} cores, Linux {info['kernel']}, Python {info['python']}"
    table = Table(title=title)
    table.add_column("benchmark")
    for column in ("measured", "floor", "ratio", "target"):
        table.add_column(column, justify="right")
    table.add_column("")
    for figure in figures:
        table.add_row(
            figure.name,
            f"{_number(figure.value)} {figure.unit}",
            "" if figure.floor is None else _number(figure.floor),
            "" if figure.ratio is None else _number(figure.ratio),
            _target(figure),
            "[green]pass" if figure.passed else "[red]miss",
        )
    console.print(table)
    for figure in figures:
        details = ", ".join(f"{name} {_value(value)}" for name, value in figure.detail.items())
        console.print(f"[bold]{figure.name}[/]: {figure.what}; {details}", highlight=False)


def _target(figure: Figure) -> str:
    if figure.target is None:
        return "none"
    sign = {"at most": "<=", "at least": ">="}
    text = f"{sign[figure.target.side]} {_number(figure.target.limit)} {figure.unit}"
    if figure.alternative is not None:
        text += f" or {sign[figure.alternative.side]} {_number(figure.alternative.limit)} x"
    return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _value(value: float | str | list[float]) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(_number, value)) + "]"
    return value if isinstance(value, str) else _number(value)


def write_json(figures: Sequence[Figure], errors: dict[str, str], path: Path) -> None:
    """Everything that the table says, and where each target comes from."""
    document = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "figures": [{**attrs.asdict(f), "passed": f.passed} for f in figures],
        "errors": errors,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
