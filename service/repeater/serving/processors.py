"""How many workers: the processors that this process may use, by affinity and cgroups."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from repeater.serving.errors import ServeError

_CGROUPS: Final = "sys/fs/cgroup"
_MINE: Final = "proc/self/cgroup"


def count_workers(workers: int | Literal["auto"]) -> int:
    """The number of workers that the setting asks for.

    Raises:
        ServeError: this system has no workers.
    """
    count = usable_processors() if workers == "auto" else workers
    if count > 1 and sys.platform == "win32":
        raise ServeError("workers need a system that passes sockets on, not Windows: workers = 1")
    return count


def usable_processors(root: Path = Path("/")) -> int:
    """The processors of this process's affinity, but not more than its quota rounded up.

    Args:
        root: Holds `proc` and `sys`.
    """
    return max(1, min([_affinity(), *_quotas(root)]))


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[int]:
    """The quota of each cgroup (version 2) that this process is in, in whole processors."""
    for group in _groups(root):
        try:
            quota, period = (root / _CGROUPS / group / "cpu.max").read_text().split()
            if quota != "max":
                yield -(-int(quota) // int(period))  # rounded up: 1.5 processors feed two workers
        except (OSError, ValueError, ZeroDivisionError):
            continue


def _groups(root: Path) -> Iterator[PurePosixPath]:
    """This process's cgroup and those around it, relative to where cgroups are mounted."""
    try:
        lines = (root / _MINE).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            group = PurePosixPath(line.removeprefix("0::/"))
            # A container may see the host's path, of which nothing is mounted; its own group is
            # the root of the mount then. The root is the last of the parents.
            yield from (group, *group.parents) if group.parts else (group,)
