"""A real pgbouncer in transaction mode, in front of a PostgreSQL of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.peers.postgresql import PostgreSQL
from tests.deadlines import PROCESS_STARTS

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
"""Where it is; None if it is not installed."""


@contextmanager
def pooled(server: PostgreSQL) -> Iterator[str]:
    """libpq's URL of a pooler in front of a server, for the time of the block."""
    assert PGBOUNCER is not None
    folder = Path(tempfile.mkdtemp(prefix="repeater-pb-"))  # short: it holds the socket
    (folder / "users").write_text('"postgres" ""\n')
    (folder / "ini").write_text(
        f"[databases]\n* = host={server.folder} user=postgres\n[pgbouncer]\n"
        f"listen_addr=\nunix_socket_dir={folder}\nauth_type=any\nauth_file={folder}/users\n"
        "pool_mode=transaction\ndefault_pool_size=2\nignore_startup_parameters=extra_float_digits\n"
    )
    if server.user is not None:  # it refuses to run as root
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, server.user)
    process = subprocess.Popen([PGBOUNCER, "-q", str(folder / "ini")], user=server.user, cwd=folder)
    url = f"postgresql://postgres@/postgres?host={folder}&port=6432"
    try:
        _wait(url)
        yield url
    finally:
        process.terminate()
        process.wait(PROCESS_STARTS)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str) -> None:
    ends = time.monotonic() + PROCESS_STARTS
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert time.monotonic() < ends
            time.sleep(0.02)
        else:
            return
