"""The floors: the lower bounds of a server, in C and in Python, and a bare Trio server."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import trio

from benchmarks.generator.protocol import Entry, Greeting
from benchmarks.generator.wire import handshake, server_frame
from benchmarks.peers.peer import Peer
from benchmarks.servers import ROOT

_HERE: Final = "benchmarks/peers"


@cache
def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


@cache
def _workshop() -> tempfile.TemporaryDirectory[str]:
    """The folder of the compiled floor; removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="repeater-benchmarks-")


@cache
def _program() -> str:
    compiler = _compiler()
    assert compiler is not None, "asked for although it is missing"
    program = Path(_workshop().name) / "floor"
    source = ROOT / _HERE / "floor.c"
    subprocess.run([compiler, "-O2", "-o", program, source], timeout=60, check=True)
    return str(program)


def _subscribe(channels: Sequence[str]) -> Greeting:
    return Greeting(request=handshake("/ws"))


def _feed(channels: Sequence[str]) -> Entry:
    """Every subscriber gets the bytes that are sent here."""
    return Entry(
        greeting=Greeting(request=b"FEED\r\n\r\n", accepted=b""),
        encode=lambda events, _before: b"".join(map(server_frame, events)),
    )


FLOOR: Final = Peer(
    name="floor",
    title="floor: a bare loop of send() (C)",
    version=lambda: f"{Path(_compiler() or 'cc').name} -O2",
    missing=lambda: None if _compiler() else "no C compiler; apt-get install gcc libc6-dev",
    command=lambda _folder: (_program(), "PORT"),
    configuration=lambda: f"{_HERE}/floor.c",
    subscribe=_subscribe,
    entry=_feed,
    ordinary=False,
    floor=True,
)

FLOOR_PYTHON: Final = Peer(
    name="floor-python",
    title="floor: the same loop (Python)",
    version=platform.python_version,
    command=lambda _folder: (sys.executable, "-m", "benchmarks.peers.floor", "PORT"),
    configuration=lambda: f"{_HERE}/floor.py",
    subscribe=_subscribe,
    entry=_feed,
    ordinary=False,
    floor=True,
)

BARE_TRIO: Final = Peer(
    name="bare-trio",
    title="floor: accept and answer, nothing behind it (Trio, Python)",
    version=lambda: trio.__version__,
    command=lambda _folder: (sys.executable, "-m", "benchmarks.peers.bare_trio", "PORT"),
    configuration=lambda: f"{_HERE}/bare_trio.py",
    subscribe=_subscribe,
    entry=_feed,
    ordinary=False,
    floor=True,
)
