"""The measured processes: started pinned to one core, read from outside, always ended.

Each reading covers the whole process tree. CPU time comes from each process's own clock
(`clock_getcpuclockid`), in nanoseconds and with the kernel's share of a `send`; memory from
`/proc`. A child never outlives its `with` block.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from benchmarks.ports import free_port

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer

ROOT: Final = Path(__file__).resolve().parent.parent
_START: Final = 60.0  # seconds until a child must accept connections; it takes one
_STOP: Final = 15.0  # seconds from SIGTERM to SIGKILL; the server's own bound is 10


class ServerError(Exception):
    """A child did not start, or ended while it was measured."""


def cores() -> tuple[int, int]:
    """The core of the measured process and the core of the load generator."""
    allowed = sorted(_ALLOWED)
    return allowed[0], allowed[1 % len(allowed)]


_ALLOWED: Final = frozenset(os.sched_getaffinity(0))


class Child:
    """A measured process. Made and ended by `running` or `started`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self.port = port
        self.pid = process.pid
        self._killed = False

    def pids(self) -> list[int]:
        """The process and all its descendants."""
        found = [self.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def cpu_ns(self) -> int:
        """User and system time of all threads of all processes so far; ended ones left out."""
        return sum(map(_cpu_ns, self.pids()))

    def first_cpu_ns(self) -> int:
        """The same of the process that was started, without its descendants."""
        return _cpu_ns(self.pid)

    def rss(self) -> int:
        """Resident bytes; of a shared page, each process counts its part."""
        return sum(_kib(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in self.pids()) * 1_024

    def private(self) -> int:
        """Resident bytes of pages that one process has for itself."""
        return 1_024 * sum(
            _kib(f"/proc/{pid}/smaps_rollup", label)
            for pid in self.pids()
            for label in ("Private_Clean:", "Private_Dirty:")
        )

    def reset_peak(self) -> None:
        """Let `peak_rss` begin again from now."""
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_rss(self) -> int:
        """Most resident bytes since the start, or since `reset_peak`."""
        return sum(_kib(f"/proc/{pid}/status", "VmHWM:") for pid in self.pids()) * 1_024

    def output(self) -> str:
        """Return the end of the process's output, for an error's text."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2_000:]

    def check(self) -> None:
        """Raise `ServerError` with the output if the process has ended."""
        if self._process.poll() is not None and not self._killed:
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

    def kill(self) -> None:
        """Kill the process, as a crash does; nobody minds that it has ended."""
        self._killed = True
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask the process to end; kill it if it does not end in time."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Spent:
    """What a child has used since this value was made."""

    def __init__(self, child: Child, *, apart: bool) -> None:
        """With `apart`, the first process counts, and the others, its engine, beside it."""
        self._child = child
        self._apart = apart
        self._all, self._first = child.cpu_ns(), child.first_cpu_ns()

    def by_event(self, name: str, events: int) -> dict[str, float]:
        """Microseconds for each of so many events: under this name, and `engine_us`."""
        whole = self._child.cpu_ns() - self._all
        first = self._child.first_cpu_ns() - self._first
        if not self._apart:
            return {name: whole / 1e3 / events}
        values = {name: first / 1e3 / events}
        if whole > first:
            values["engine_us"] = (whole - first) / 1e3 / events
        return values


@contextlib.contextmanager
def started(peer: Peer, *, pinned: bool = True) -> Iterator[Child]:
    """Start a peer on a free port, in a folder of its own, which is removed at the end.

    If it is not `pinned`, it may use all cores, also the load generator's.
    """
    with tempfile.TemporaryDirectory(prefix="repeater-benchmarks-") as folder:
        port = free_port()
        command = [word.replace("PORT", str(port)) for word in peer.command(Path(folder))]
        for file in Path(folder).iterdir():
            file.write_text(file.read_text().replace("PORT", str(port)))
        with _process(command, peer.settings(), port, pinned=pinned) as child:
            yield child


@contextlib.contextmanager
def running(
    command: Sequence[str],
    settings: Mapping[str, str] | None = None,
    patience: float = _START,
    folder: Path = ROOT,
) -> Iterator[Child]:
    """Run `command` in `folder`, with a free port in place of "PORT", on the measured core.

    `settings` are the server's variables; the `REPEATER_` variables of this process do not count.
    The server must accept connections within `patience` seconds.
    """
    port = free_port()
    words = [str(port) if word == "PORT" else word for word in command]
    with _process(words, settings or {}, port, patience, folder) as child:
        yield child


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    settings: Mapping[str, str],
    port: int,
    patience: float = _START,
    folder: Path = ROOT,
    *,
    pinned: bool = True,
) -> Iterator[Child]:
    allowed = {cores()[0]} if pinned else _ALLOWED
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REPEATER_")}
    environment.update(settings)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        child = Child(process, port, log)
        try:
            child.wait_accepting(patience)
            yield child
            child.check()
        finally:
            child.stop()


def _cpu_ns(pid: int) -> int:
    # The kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
    return time.clock_gettime_ns((~pid << 3) | 2)


def _kib(path: str, label: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(label):
            return int(line.split()[1])
    raise ServerError(f"the kernel gives no {label} in {path}")


def listen_overflows() -> int:
    """How often this machine's kernel had no room for a connection in a listener's queue.

    After each of them a client's kernel repeats its request, a second later.
    """
    lines = Path("/proc/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(values[names.index("ListenOverflows")])
