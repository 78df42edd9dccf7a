"""Fresh environments with one distribution in each, as a user's `pip install` makes them.

Nothing of this machine is in them: no site-packages of the system or of a user, no PYTHONPATH, and
the folder in which their programs run is empty. The versions of what they depend on are the pinned
ones.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from benchmarks.ports import free_port
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
UV = tuple(shlex.split(os.environ.get("UV", "uv")))
_INSTALL = 120  # seconds


def built(pattern: str) -> Path:
    """The one distribution of this name in dist/."""
    found = sorted(DIST.glob(pattern))
    assert len(found) == 1, f"{len(found)} files match dist/{pattern}; `just wheels` builds them"
    return found[0]


class Environment:
    """One environment with a folder to work in. Made by a session's fixture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        self.work = folder / "work"
        self.work.mkdir()
        _check((*UV, "venv", "--quiet", "--python", sys.executable, str(folder / "venv")))

    def install(self, requirement: str) -> None:
        """Install it, and what it needs in the pinned versions."""
        python = ("--python", str(self.bin / "python"))
        pins = ("--constraints", str(ROOT / "requirements-dev.txt"))
        build = ("--build-constraints", str(ROOT / "requirements-build.txt"))
        _check((*UV, "pip", "install", "--quiet", *python, *pins, *build, requirement))

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs to its end."""
        return subprocess.run(
            (str(self.bin / program), *arguments),
            cwd=self.work,
            env=self._variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROCESS_STARTS,
            check=False,
        )

    def printed(self, code: str) -> str:
        """What this Python code prints."""
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextlib.contextmanager
    def serving(self, *arguments: str) -> Iterator[str]:
        """A development server for the block; its URL."""
        port = str(free_port())
        command = ("serve", "--dev", "--host", "127.0.0.1", "--port", port, *arguments)
        with self.started("repeater", *command) as process:
            url = f"http://127.0.0.1:{port}"
            _wait_healthy(url, process)
            yield url

    @contextlib.contextmanager
    def started(self, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """One of its programs for the block, which ends it by SIGTERM."""
        process = subprocess.Popen(
            (str(self.bin / program), *arguments),
            cwd=self.work,
            env=self._variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(LOOP_ANSWERS)
                except subprocess.TimeoutExpired:
                    process.kill()

    def _variables(self) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}{os.pathsep}{os.defpath}",
            "HOME": str(self.work),
            "PYTHONNOUSERSITE": "1",
        }


def _wait_healthy(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PROCESS_STARTS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"the server did not start: {process.communicate()[0]}")


def _check(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
