"""The machine of a run, for the document."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Final

from benchmarks.servers import cores

_PACKAGES: Final = ("trio", "websockets", "httptools", "msgspec", "hypercorn", "quart")


def machine() -> dict[str, str]:
    """Return the hardware, the kernel, and the versions of Python and the packages."""
    measured, generator = cores()
    return {
        "cpu": _cpu_model(),
        "cores": f"{os.cpu_count()}; the server on {measured}, the load generator on {generator}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
