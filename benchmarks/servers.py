"""The measured processes: started pinned to one core, read from outside, always ended.

CPU time comes from the process's own clock (`clock_getcpuclockid`), in nanoseconds and with the
kernel's share of a `send`; memory from `/proc`. A child never outlives its `with` block.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).resolve().parent.parent
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_START: Final = 20.0  # seconds until a child must accept connections
_STOP: Final = 15.0  # seconds from SIGTERM to SIGKILL; the server's own bound is 10


class ServerError(Exception):
    """A child did not start, or died while it was measured."""


def cores() -> tuple[int, int]:
    """The core of the measured process and the core of the load generator."""
    allowed = sorted(_ALLOWED)
    return allowed[0], allowed[1 % len(allowed)]


_ALLOWED: Final = frozenset(os.sched_getaffinity(0))


class Child:
    """A measured process. Made and ended by `running`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self.port = port
        self.pid = process.pid
        # The kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
        self._clock = (~process.pid << 3) | 2

    def cpu_ns(self) -> int:
        """User and system time of all its threads so far."""
        return time.clock_gettime_ns(self._clock)

    def rss(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE

    def reset_peak(self) -> None:
        """Let `peak_rss` begin again from now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_rss(self) -> int:
        """Most resident bytes since its start, or since `reset_peak`."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1_024
        raise ServerError("the kernel does not say how much memory it took at most")

    def output(self) -> str:
        """The end of what it printed, for an error's text."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2_000:]

    def check(self) -> None:
        """Raise with its output if it died."""
        if self._process.poll() is not None:
            raise ServerError(f"the process ended early:\n{self.output()}")

    def wait_accepting(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.02)
        raise ServerError(f"nothing accepts on port {self.port}:\n{self.output()}")

    def stop(self) -> None:
        """Ask it to end, then make it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextlib.contextmanager
def running(
    command: Sequence[str], settings: Mapping[str, str] | None = None, patience: float = _START
) -> Iterator[Child]:
    """Run `command`, with a free port in place of "PORT", on the measured core.

    `settings` are the server's variables; those of this process do not count. It must accept
    connections within `patience` seconds.
    """
    port = _free_port()
    core, _ = cores()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REPEATER_")}
    environment.update(settings or {})
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(port) if word == "PORT" else word for word in command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        child = Child(process, port, log)
        try:
            child.wait_accepting(patience)
            yield child
            child.check()
        finally:
            child.stop()


def listen_overflows() -> int:
    """How often this machine's kernel had no room for a connection in a listener's queue.

    Each makes a client's kernel ask again, a second later.
    """
    lines = Path("/proc/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(values[names.index("ListenOverflows")])


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


SERVICE: Final = (
    *(sys.executable, "-m", "service", "serve", "--dev", "--no-comments"),
    *("--host", "127.0.0.1", "--port", "PORT"),
)
FLOOR_PYTHON: Final = (sys.executable, "-m", "benchmarks.floor", "PORT")
BARE_TRIO: Final = (sys.executable, "-m", "benchmarks.bare_trio", "PORT")


@cache
def floor_c() -> tuple[str, ...] | None:
    """The command of the compiled floor; None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    program = Path(_workshop().name) / "floor"
    source = ROOT / "benchmarks" / "floor.c"
    result = subprocess.run(
        [compiler, "-O2", "-o", program, source], capture_output=True, timeout=60, check=False
    )
    return (str(program), "PORT") if result.returncode == 0 else None


@cache
def _workshop() -> tempfile.TemporaryDirectory[str]:
    """Where the compiled floor lies; removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="repeater-benchmarks-")
