"""The lock of a data directory: one process at a time uses what is in it.

The lock is the system's, on an open file, so it ends with its process, however that ends. The file
names the process for the message of the next one. A file left behind without its process locks
nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from repeater.errors import BrokerError
from repeater.private_files import give_to_owner_of

FILE: Final = "lock"
_MODE: Final = 0o600
_LONGEST: Final = 200  # characters of a name that another process has written


class FolderInUseError(BrokerError):
    """Another process uses the folder; the text is one line that names this process."""

    def __init__(self, folder: Path, pid: int, name: str) -> None:
        by = f"process {pid} ({name})" if pid else "another process"
        super().__init__(f"{folder} is in use by {by}")
        self.pid = pid
        """0 if it is not known."""
        self.name = name


@contextlib.contextmanager
def hold_folder(folder: Path, name: str = "repeater serve") -> Iterator[None]:
    """Hold a folder for as long as the block lasts. Never waits for another process.

    Args:
        folder: It exists.
        name: What this process is, for the message of the next one.

    Raises:
        FolderInUseError: another process holds it, or this one does already.
        OSError: the file cannot be made.
    """
    # Not inherited by a child: its copy would hold the folder on.
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    try:
        give_to_owner_of(folder, descriptor)
        if not _lock(descriptor):
            raise FolderInUseError(folder, *_holder(descriptor))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {name}\n".encode(), 0)
        yield
    finally:
        # The file stays: a second process could have opened it before it was removed, and a third
        # one would then lock another file of this name.
        os.close(descriptor)


def _holder(descriptor: int) -> tuple[int, str]:
    """The process that wrote the file, and what it is; 0 if it has not written yet."""
    text = os.pread(descriptor, _LONGEST, 0).decode(errors="replace")
    pid, _, name = text.partition("\n")[0].partition(" ")
    return (int(pid), name) if pid.isdecimal() else (0, "")


if sys.platform == "win32":
    import msvcrt

    _FAR: Final = 1 << 30  # a byte behind the text, which others may still read

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
