"""What the gate counts: the server's instructions by callgrind, its system calls by strace.

Both count what a running server does between two readings. Neither depends on how fast or how
busy the machine is. Instructions are those of user space alone; what the kernel does in a `send`
is not among them. Every call of a tool has a deadline; `ToolError` when one is missing or fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from benchmarks.servers import Child, ServerError

Counts = Mapping[str, float]
"""How often, by what: by the system call's name, or only "instructions"."""

_TOOL_SECONDS: Final = 120.0  # one command to valgrind; it takes 0.1 to 0.3
_QUIET_SECONDS: Final = 120.0
_LOOK: Final = 0.001  # seconds between two looks at whether the server sleeps

_SUMMARY: Final = re.compile(r"^summary: (\d+)", re.MULTILINE)
_CALL: Final = re.compile(rb"^(?:\d+ +)?(\w+)\(", re.MULTILINE)


class ToolError(Exception):
    """A measuring tool is missing, or does not work on this machine."""


class Tool(Protocol):
    """Counts what one server does. Lives inside one session; owns no process of its own."""

    def __init__(self, directory: Path) -> None: ...

    def prefix(self) -> tuple[str, ...]:
        """What stands before the server's command."""

    def begin(self, child: Child) -> None:
        """The windows come next: count."""

    def pause(self) -> None:
        """What comes next need not be counted."""

    def read(self) -> Counts:
        """What happened since it was last read."""


class Instructions:
    """Callgrind, off until `begin`, since valgrind alone runs some ten times faster."""

    def __init__(self, directory: Path) -> None:
        _need("valgrind", "--version")
        _need("vgdb", "--help")
        self._out = directory / "callgrind"
        self._pipes = f"--vgdb-prefix={directory / 'vgdb'}"
        self._pid = 0
        self._dumps = 0

    def prefix(self) -> tuple[str, ...]:
        return (
            *("valgrind", "--tool=callgrind", "--instr-atstart=no", self._pipes),
            f"--callgrind-out-file={self._out}",
        )

    def begin(self, child: Child) -> None:
        self._pid = child.pid
        self._tell("instrumentation", "on")

    def pause(self) -> None:
        self._tell("instrumentation", "off")

    def read(self) -> Counts:
        self._tell("dump")
        self._dumps += 1
        path = self._out.with_name(f"{self._out.name}.{self._dumps}")
        text = path.read_text()
        path.unlink()
        return {"instructions": callgrind_summary(text)}

    def _tell(self, *words: str) -> None:
        # It asks a process that waits for the kernel to wake up after so many milliseconds.
        _run("vgdb", "--max-invoke-ms=5", self._pipes, f"--pid={self._pid}", *words)


class SystemCalls:
    """The log of `strace`, which is counted from one place in it to another."""

    def __init__(self, directory: Path) -> None:
        _need("strace", "-o", "/dev/null", "true")
        self._log = directory / "strace"
        self._at = 0

    def prefix(self) -> tuple[str, ...]:
        # -D: the tracer is a grandchild, so that the process started, and ended, is the server.
        return ("strace", "-D", "-f", "-s", "0", "-e", "signal=none", "-o", str(self._log))

    def begin(self, child: Child) -> None:
        """Nothing: it counts all the time."""

    def pause(self) -> None:
        """Nothing, either."""

    def read(self) -> Counts:
        with self._log.open("rb") as log:
            log.seek(self._at)
            part = log.read()
        self._at += len(part)
        return strace_calls(part)


def callgrind_summary(text: str) -> int:
    """The instructions in one callgrind dump."""
    found = _SUMMARY.search(text)
    if found is None:
        raise ToolError("callgrind wrote a dump without a summary")
    return int(found[1])


def strace_calls(log: bytes) -> Counter[str]:
    """The calls that begin in this part of a log: a resumed one began before, or is there twice.

    The part may begin within a line: the call under way then is not counted, that at the end is.
    """
    return Counter(name.decode() for name in _CALL.findall(log))


def wait_quiet(child: Child) -> None:
    """Wait until the server sleeps and has used no CPU between two looks.

    So each event finds it asleep: how often it polls is then its own doing, not the machine's.
    """
    deadline = time.monotonic() + _QUIET_SECONDS
    before = -1
    while time.monotonic() < deadline:
        used = child.cpu_ns() if _state(child.pid) == "S" else -1
        if used == before >= 0:
            return
        before = used
        time.sleep(_LOOK)
    raise ServerError(f"the server did not come to rest within {_QUIET_SECONDS:.0f} s")


def _state(pid: int) -> str:
    """The one letter that `ps` shows; under strace a traced stop is "t"."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _need(program: str, *arguments: str) -> None:
    if shutil.which(program) is None:
        raise ToolError(f"{program} is not installed")
    _run(program, *arguments)


def _run(program: str, *arguments: str) -> None:
    command = (program, *arguments)
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{program} did not answer within {_TOOL_SECONDS:.0f} s") from None
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip()[-300:]
        raise ToolError(f"{program} does not work here: {said or result.returncode}")
