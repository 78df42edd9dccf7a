"""The clients under test: each SDK in each format that it speaks, and what it lacks.

Each SDK has one driver program (drivers/, go/, java/), which speaks both formats. What is missing
here is skipped by name; `just clients` installs it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.browsing import FLAGS, MISSING, NAMES, chromium

HERE = Path(__file__).parent
DRIVERS = HERE / "drivers"
GO = HERE / "go"
JAVA = HERE / "java"


class Client(NamedTuple):
    """One SDK in one format."""

    sdk: str
    protobuf: bool = False
    lacks: frozenset[str] = frozenset()
    """What the SDK does not have, by the names of the mark `needs`."""
    workers: bool = False
    """Whether every conversation goes on with two workers, too."""


_PYTHON = frozenset({"send"})
# At error 109 of a subscribe it wants a new token, but gives the subscription up as well.
_JAVA = frozenset({"deltas", "tags filters", "a new token for a subscription"})

CLIENTS = {
    "python": Client("python", lacks=_PYTHON, workers=True),
    "python-protobuf": Client("python", protobuf=True, lacks=_PYTHON),
    "node": Client("node", workers=True),
    "node-protobuf": Client("node", protobuf=True, workers=True),
    "chromium": Client("chromium", workers=True),
    "chromium-protobuf": Client("chromium", protobuf=True),
    "go": Client("go"),
    "go-protobuf": Client("go", protobuf=True),
    # This SDK has no other format.
    "java-protobuf": Client("java", protobuf=True, lacks=_JAVA),
}

PROTOBUF = [name for name, client in CLIENTS.items() if client.protobuf]
JSON = [name for name, client in CLIENTS.items() if not client.protobuf]


class Program(NamedTuple):
    """How an SDK's driver is run, and what builds it before."""

    command: Sequence[str]
    build: Sequence[str] | None = None
    environment: Mapping[str, str] = {}
    """Of what builds it, beside the own one."""


def programs(folder: Path) -> dict[str, Program]:
    """Each SDK's driver. What is built is put into this folder, once a session."""
    go, java = str(folder / "go-driver"), str(folder / "java")
    libraries = f"{JAVA / 'libraries'}/*"
    return {
        "python": Program([sys.executable, str(DRIVERS / "python.py")]),
        "node": Program(["node", str(DRIVERS / "node.mjs")]),
        "chromium": Program(
            [sys.executable, str(DRIVERS / "browser.py"), chromium() or NAMES[0], *FLAGS]
        ),
        "go": Program(
            [go], ["go", "build", "-C", str(GO), *BUILD_FLAGS, "-o", go, "."], OWN_TOOLCHAIN
        ),
        "java": Program(
            ["java", *JAVA_FLAGS, "-cp", f"{java}:{libraries}", "Driver"],
            ["javac", "--release", "8", "-cp", libraries, "-d", java, str(JAVA / "Driver.java")],
        ),
    }


# Use the installed Go; never download another.
OWN_TOOLCHAIN = {"GOTOOLCHAIN": "local"}
# The folder `vendor` holds all modules. No version control: the folder may be somebody else's.
BUILD_FLAGS = ("-mod=vendor", "-buildvcs=false")
# It starts sooner, and one small program needs no more.
JAVA_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-Xshare:auto")


def missing(sdk: str) -> str | None:
    """Why an SDK can't be driven here; None if it can."""
    match sdk:
        case "node":
            return _missing_programs("node") or _missing_packages(HERE / "package.json")
        case "chromium":
            return MISSING if chromium() is None else missing("node")
        case "go":
            return _missing_programs("go") or _missing_packages(GO / "go.mod")
        case "java":
            return _missing_programs("java", "javac") or _missing_packages(JAVA / "pom.xml")
        case _:
            return None


def _missing_programs(*names: str) -> str | None:
    absent = [name for name in names if not shutil.which(name)]
    return f"{absent[0]} is not on the PATH" if absent else None


PACKAGES = {
    HERE / "package.json": HERE / "node_modules",
    GO / "go.mod": GO / "vendor",
    JAVA / "pom.xml": JAVA / "libraries",
}
"""Where the packages that a file pins are installed."""


def _missing_packages(pins: Path) -> str | None:
    """Why the pinned packages can't be used: the stamp is a copy of the file that pinned them."""
    stamp = PACKAGES[pins] / ".installed"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return None
    return f"what tests/sdk/{pins.relative_to(HERE)} pins is not installed: just clients"
