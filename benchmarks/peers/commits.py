"""The floor of durable history: one SQLite commit after the other, each in a worker thread.

A connection sends how many seconds to measure. The answer is a line of JSON with the medians of a
commit and of a bare `fdatasync`, in milliseconds. A line `commit` is answered after one commit, and
a line `echo` at once. Nothing else runs in this process. The file has the settings and the row of a
durable history, and is in the folder of the first argument.
Usage: python -m benchmarks.peers.commits FOLDER PORT
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import trio

from benchmarks.generator.wire import event

_LIFETIME: Final = 600  # seconds: a floor ends soon after its benchmark in any case
_PRAGMAS: Final = (
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = FULL",
    "wal_autocheckpoint = 4000",
)
_TABLE: Final = "CREATE TABLE rows(id INTEGER PRIMARY KEY, stream, number, body)"
_SYNCS: Final = 200


def _open(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        folder / "commits.sqlite3", isolation_level=None, check_same_thread=False
    )
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(_TABLE)
    return connection


def _commit(connection: sqlite3.Connection, body: bytes) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO rows VALUES(NULL, 1, 1, ?)", (body,))
    connection.execute("COMMIT")


async def _commits_ms(connection: sqlite3.Connection, seconds: float) -> float:
    """Return the median of a commit in a worker thread, as an awaiting task sees it."""
    took = list[int]()
    body, limiter = event(0), trio.CapacityLimiter(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic_ns()
        await trio.to_thread.run_sync(_commit, connection, body, limiter=limiter)
        took.append(time.monotonic_ns() - start)
    return statistics.median(took) / 1e6


def _syncs_ms(folder: Path) -> float:
    """Return the median of an `fdatasync` after 4 KiB at the end of a file."""
    took = list[int]()
    with (folder / "syncs").open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(bytes(4_096))
            start = time.monotonic_ns()
            os.fdatasync(file.fileno())
            took.append(time.monotonic_ns() - start)
    return statistics.median(took) / 1e6


async def _serve(connection: sqlite3.Connection, folder: Path, stream: trio.SocketStream) -> None:
    """Answer one client; it is the benchmark's own, so no deadline is needed."""
    for_one = trio.CapacityLimiter(1)
    async for line in stream:
        if line == b"commit\n":
            await trio.to_thread.run_sync(_commit, connection, event(0), limiter=for_one)
        if line in (b"commit\n", b"echo\n"):
            await stream.send_all(line)
            continue
        found = {
            "commit_ms": await _commits_ms(connection, float(line)),
            "fdatasync_ms": _syncs_ms(folder),
        }
        await stream.send_all(json.dumps(found).encode() + b"\n")


async def _main(folder: Path, port: int) -> None:
    with _open(folder) as connection:
        serve = partial(_serve, connection, folder)
        await trio.serve_tcp(serve, port, host="127.0.0.1")


if __name__ == "__main__":
    signal.alarm(_LIFETIME)
    trio.run(_main, Path(sys.argv[1]), int(sys.argv[2]))
