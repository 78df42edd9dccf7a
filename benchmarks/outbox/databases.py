"""The measured database, with the schema and with a table of rows that nobody publishes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.peers.postgresql import PostgreSQL, binaries
from repeater.postgres.schema import migrate

Connection = psycopg.Connection[tuple[Any, ...]]

# PostgreSQL's own, but for the room of 64 publishers; each commit waits for the disk.
_SETTINGS: Final = ("max_connections=120", "shared_buffers=256MB", "log_min_messages=fatal")
_TABLES: Final = """
    CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        channel text NOT NULL, data text NOT NULL);
    CREATE FUNCTION bare (channel text, data jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
        DECLARE made bigint;
        BEGIN
            INSERT INTO bare (channel, data) VALUES (bare.channel, bare.data::text)
            RETURNING id INTO made;
            RETURN made;
        END $$;
    CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        channel text NOT NULL, state text NOT NULL);
"""
DATA: Final = '{"id": 4711, "text": "%s"}' % ("x" * 110)
"""What is published: 136 bytes."""


@contextmanager
def database(version: int) -> Iterator[PostgreSQL]:
    """A database for the time of a block."""
    found = binaries(version)
    assert found is not None, f"PostgreSQL {version} is not installed"
    folder = Path(tempfile.mkdtemp(prefix="repeater-pg-"))
    try:
        server = PostgreSQL(found, folder, _SETTINGS)
        server.start()
        try:
            migrate(server.url)
            with psycopg.connect(server.url) as connection:
                connection.execute(_TABLES)
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pgbench(
    server: PostgreSQL, script: str, *, clients: int, seconds: float, rate: float = 0
) -> list[float]:
    """Run a script of pgbench for some seconds; the milliseconds of each transaction, sorted.

    With a `rate`, so many transactions a second, and the time from when each was due.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "script").write_text(script)
        command = [str(server.binaries / "pgbench"), "-n", "-M", "prepared", "-f", "script"]
        command += ["-c", str(clients), "-j", str(min(clients, 2)), "-T", str(round(seconds))]
        command += ["-l", "--log-prefix=log", "-h", str(server.folder), "-U", "postgres"]
        if rate:
            command += ["--rate", str(rate)]
        done = subprocess.run(
            [*command, "postgres"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = [line for log in Path(folder).glob("log*") for line in log.read_text().splitlines()]
    return sorted(int(line.split()[2]) / 1_000 for line in lines)


def at(values: list[float], share: float) -> float:
    """A percentile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]
