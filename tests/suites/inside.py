"""Runs a part of one suite against one server, in a network of its own.

`python -m tests.suites.inside SETTINGS FOLDER PART WORKPLACE ARGUMENT...`: the server's settings,
the folder that the suite was unpacked to, which part of it (`0/3`), a new folder for the server and
for the counts of `reached`, and what pytest is told. The exit status is pytest's.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS

READY = "http://127.0.0.1:8000/health/ready"
HERE = Path(__file__).parent

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def raise_loopback() -> None:
    """Bring `lo` up, which is down in a new network (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


@contextmanager
def serving(settings: str, folder: Path) -> Iterator[None]:
    """A server with these settings and no others, once it is ready; it works in the folder."""
    command = [sys.executable, "-m", "repeater", "serve", "--config", settings]
    environment = {name: value for name, value in os.environ.items() if "REPEATER" not in name}
    server = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        _wait_ready(server)
        yield
    finally:
        server.terminate()
        try:
            server.wait(LOOP_ANSWERS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_ready(server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PROCESS_STARTS
    while True:
        try:
            urllib.request.urlopen(READY, timeout=LOOP_ANSWERS).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def main(settings: str, folder: str, part: str, workplace: str, *arguments: str) -> int:
    """Run the suite; pytest's exit status."""
    place = Path(workplace)
    place.mkdir()
    raise_loopback()
    # The suite's own packages come first; its `tests` is another one than ours.
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{HERE}"}
    environment |= {"SUITE_PART": part, "SUITE_COUNTS": str(place / "counts.json")}
    # Only the plugins that the suite was written for, and nothing written into its folder.
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "reached", "-p", "no:cacheprovider"]
    command += ["-c", "pyproject.toml"]  # the suite's, so that ours is not looked for
    with serving(settings, place):
        return subprocess.run([*command, *arguments], cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
