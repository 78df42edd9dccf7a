"""Programs that are not ours: their paths and their versions."""

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
"""The command that installs the peers from PyPI and Debian."""
_PATIENCE: Final = 10  # seconds that a program may take to say its version


@cache
def find_program(name: str) -> str | None:
    """Return its path beside this Python, on the PATH, or where Debian puts servers; or None."""
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin")
    return shutil.which(name, path=os.pathsep.join(places))


def program(name: str) -> str:
    """Return the path of a program that is not missing."""
    path = find_program(name)
    assert path is not None, f"{name} is asked for although it is missing"
    return path


@cache
def printed(*command: str) -> str:
    """Return what a program prints on both of its outputs; empty if it cannot run."""
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
    """Return why a program cannot be measured; None if it can. Only its project publishes it.

    `oldest` is the first major version for which the adapter is written.
    """
    if find_program(name) is None:
        return f"no {name} on the PATH; its project publishes a binary"
    text = printed(program(name), "version")
    if (major_in(text) or 0) < oldest:
        return f"{name} {version_in(text)}; {oldest} or newer is needed"
    return None


def version_in(text: str) -> str:
    """Return the first version number in a text, e.g. in `nginx version: nginx/1.22.1`."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return match[0] if match else "of unknown version"


def major_in(text: str) -> int | None:
    """Return the first part of the first version number in a text; None without one."""
    match = re.search(r"(\d+)\.\d+", text)
    return int(match[1]) if match else None
