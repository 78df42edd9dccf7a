"""Programs that are not ours: where they are, and what they call themselves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

INSTALL: Final = "just bench-peers"
"""What installs the peers that come from PyPI and Debian."""
_PATIENCE: Final = 10  # seconds that a program may take to say its version


@cache
def find_program(name: str) -> str | None:
    """Its path: beside this Python, on the PATH, or where Debian puts servers."""
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin")
    return shutil.which(name, path=os.pathsep.join(places))


def program(name: str) -> str:
    """The same, of one that is not missing."""
    path = find_program(name)
    assert path is not None, f"{name} is asked for although it is missing"
    return path


@cache
def printed(*command: str) -> str:
    """What a program prints, on both of its outputs; empty if it can't be run."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def unfit(name: str, oldest: int) -> str | None:
    """Why a program that only its project publishes can't be measured; None if it can.

    `oldest` is the first major version that its adapter is written for.
    """
    if find_program(name) is None:
        return f"no {name} on the PATH; its project publishes a binary"
    text = printed(program(name), "version")
    if (major_in(text) or 0) < oldest:
        return f"{name} {version_in(text)}; {oldest} or newer is needed"
    return None


def version_in(text: str) -> str:
    """The first version number in it, e.g. of `nginx version: nginx/1.22.1`."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return match[0] if match else "of unknown version"


def major_in(text: str) -> int | None:
    """The first part of that number."""
    match = re.search(r"(\d+)\.\d+", text)
    return int(match[1]) if match else None
