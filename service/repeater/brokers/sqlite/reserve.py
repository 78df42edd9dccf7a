"""Room on the disk that is kept for the moment when the disk is full.

On a full disk even a DELETE fails, for it needs room in the log of the database first. So a file
holds some room, and gives it up when a write fails: then what has expired can be freed. The reserve
is made anew when the disk has room again.

All sync; called from the thread that writes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

FILE: Final = "history.reserve"
_BYTES: Final = 16 * 1024 * 1024
_LEAST: Final = 1024 * 1024  # less would not hold what frees 5,000 publications


class Reserve:
    """The reserve of one folder. Lives inside the journal."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._wanted = 0

    @property
    def bytes(self) -> int:
        """How much is held; 0 after it was given up."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def give_up(self) -> None:
        """Give its room to the disk. Idempotent."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def renew(self) -> bool:
        """Hold 16 MiB, or on a smaller disk half of the room that there was; False without room.

        A reserve that is held already stays, and grows if there is more room by now. It is never
        made anew smaller than it was: publishing would use up the rest each time.
        """
        held = self.bytes
        room = _free(self._path.parent) + held
        wanted = self._wanted = max(self._wanted, held, min(_BYTES, room // 2))
        if held == wanted:
            return held >= _LEAST
        if wanted < _LEAST or room < wanted + _LEAST:
            return False
        try:
            _fill(self._path, wanted)
        except OSError:  # a quota, or somebody was faster
            self.give_up()
            return False
        return True


def _free(folder: Path) -> int:
    """The bytes that this user may still write; 0 if that is not known."""
    try:
        disk = os.statvfs(folder)
    except (AttributeError, OSError):  # Windows has no statvfs
        return 2 * _BYTES if not hasattr(os, "statvfs") else 0
    blocks = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    return blocks * disk.f_frsize


def _fill(path: Path, size: int) -> None:
    """Make the file with all its blocks, because a sparse one would reserve nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            for start in range(0, size, _LEAST):
                os.write(descriptor, bytes(min(size - start, _LEAST)))
    finally:
        os.close(descriptor)
