"""Repeater with each of its engines, and the floor of a durable history.

All of them keep the last 100 publications of each channel. `repeater-memory` is what the others are
divided by.
"""

from __future__ import annotations

import json
import shlex
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.peers.floors import BARE_TRIO
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import REPEATER, SERVE, centrifugo

HISTORY: Final = 100
WORKERS: Final = 2
_SETTINGS: Final = {
    "REPEATER_CHANNEL__HISTORY_SIZE": str(HISTORY),
    "REPEATER_CHANNEL__HISTORY_TTL": "3600",
}


def _settings() -> Mapping[str, str]:
    return _SETTINGS


def _server(*arguments: str) -> Callable[[Path], Sequence[str]]:
    def command(_folder: Path) -> Sequence[str]:
        return sys.executable, *SERVE, "--port", "PORT", *arguments

    return command


def _durable(folder: Path) -> Sequence[str]:
    """The server that keeps its history in a folder of its own inside this one."""
    settings = folder / "repeater.toml"
    settings.write_text(f'engine = "sqlite"\ndata_dir = {json.dumps(str(folder / "data"))}\n')
    return (*_server()(folder), "--config", str(settings))


def _configuration(*arguments: str) -> str:
    settings = (f"{name}={shlex.quote(value)}" for name, value in _SETTINGS.items())
    return " ".join((*settings, shlex.join(("python", *SERVE, "--port", "PORT", *arguments))))


def _engine(name: str, title: str, **changes: object) -> Peer:
    return msgspec.structs.replace(
        REPEATER,
        name=f"repeater-{name}",
        title=f"Repeater, {title}",
        ordinary=False,
        core=False,
        variant_of="repeater",
        subscribe=centrifugo,
        settings=_settings,
        **changes,
    )


MEMORY: Final = _engine(
    "memory", "one process, memory", command=_server(), configuration=_configuration
)
DURABLE: Final = _engine(
    "durable",
    "one process, SQLite",
    command=_durable,
    configuration=lambda: f"REPEATER_ENGINE=sqlite REPEATER_DATA_DIR=data {_configuration()}",
)
TWO_WORKERS: Final = _engine(
    "workers",
    f"{WORKERS} workers, memory",
    command=_server("--workers", str(WORKERS)),
    configuration=lambda: _configuration("--workers", str(WORKERS)),
)
COMMITS: Final = msgspec.structs.replace(
    BARE_TRIO,
    name="commits",
    title="floor: SQLite commits in a worker thread (Trio, Python)",
    version=lambda: f"SQLite {sqlite3.sqlite_version}",
    command=lambda folder: (
        *(sys.executable, "-m", "benchmarks.peers.commits"),
        *(str(folder), "PORT"),
    ),
    configuration=lambda: "benchmarks/peers/commits.py",
)

ENGINES: Final = (COMMITS, MEMORY, DURABLE, TWO_WORKERS)
