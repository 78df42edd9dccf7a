"""The machine of a run, for the document."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.servers import cores

IN_MEMORY: Final = ("tmpfs", "ramfs")
"""File systems on which a durable history would cost nothing and keep nothing."""
_PACKAGES: Final = ("trio", "websockets", "httptools", "msgspec", "hypercorn", "quart")


def machine() -> dict[str, str]:
    """Return the hardware, the kernel, and the versions of Python and the packages."""
    measured, generator = cores()
    return {
        "cpu": _cpu_model(),
        "cores": f"{os.cpu_count()}; the server on {measured}, the load generator on {generator}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "disk": disk(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def disk() -> str:
    """Return the type of the file system of the temporary folder, e.g. `ext4`."""
    here = Path(tempfile.gettempdir()).resolve()
    found, longest = "unknown", -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        point = Path(mount.split()[4].replace("\\040", " "))
        # A later mount at the same place hides the earlier one.
        if here.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = source.split()[0], len(point.parts)
    return found
