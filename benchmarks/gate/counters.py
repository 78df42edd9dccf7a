"""The gate's counters: callgrind for the server's instructions, strace for its system calls.

Both count what a running server does between two readings. Neither depends on how fast or how
busy the machine is. Instructions are those of user space alone; the kernel's work in a `send` is
not among them. Every call of a tool has a deadline. A missing or failing tool raises `ToolError`.
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
"""Counts by name: the names of system calls, or only "instructions"."""

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
        """Return the words that stand before the server's command."""

    def begin(self, child: Child) -> None:
        """Begin to count: the windows come next."""

    def pause(self) -> None:
        """Stop counting: the next work need not be counted."""

    def read(self) -> Counts:
        """Return the counts since the last reading."""


class Instructions:
    """Callgrind. It is off until `begin`: valgrind alone runs some ten times faster."""

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
        # After so many milliseconds vgdb wakes up a process that waits in the kernel.
        _run("vgdb", "--max-invoke-ms=5", self._pipes, f"--pid={self._pid}", *words)


class SystemCalls:
    """The log of `strace`; each reading counts the calls in its newest part."""

    def __init__(self, directory: Path) -> None:
        _need("strace", "-o", "/dev/null", "true")
        self._log = directory / "strace"
        self._at = 0

    def prefix(self) -> tuple[str, ...]:
        # -D: the tracer is a grandchild, so the process that is started and ended is the server.
        return ("strace", "-D", "-f", "-s", "0", "-e", "signal=none", "-o", str(self._log))

    def begin(self, child: Child) -> None:
        """Do nothing: strace counts all the time."""

    def pause(self) -> None:
        """Do nothing: strace counts on."""

    def read(self) -> Counts:
        with self._log.open("rb") as log:
            log.seek(self._at)
            part = log.read()
        self._at += len(part)
        return strace_calls(part)


def callgrind_summary(text: str) -> int:
    """Return the number of instructions in one callgrind dump."""
    found = _SUMMARY.search(text)
    if found is None:
        raise ToolError("callgrind wrote a dump without a summary")
    return int(found[1])


def strace_calls(log: bytes) -> Counter[str]:
    """Count the calls that begin in this part of a log.

    A resumed call is not counted: it began before this part, or the part has its beginning too.
    The part may begin or end within a line: a cut call counts only if its beginning is here.
    """
    return Counter(name.decode() for name in _CALL.findall(log))


def wait_quiet(child: Child) -> None:
    """Wait until the server sleeps and has used no CPU between two looks.

    Then each event finds the server asleep, and its number of polls does not depend on the machine.
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
