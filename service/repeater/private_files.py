"""Folders and files that only the server's own user may read: what they hold is nobody else's."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

from repeater.log import get_logger

_log = get_logger("files")

_FOLDER: Final = 0o700
_FILE: Final = 0o600
_OTHERS: Final = 0o077  # what the group and everybody else may do

# SQLite gives these the mode of the database, but not those that another process left.
_BESIDE: Final = ("", "-wal", "-shm", "-journal")


_told: Final[set[Path]] = set()


def make_private_folder(path: Path) -> None:
    """Make the folder, and the missing ones above it, each for this user alone.

    Of an existing folder nothing is changed; its owner may have reasons. If others may do something
    with it, one line of log says so, once for each folder.

    Raises:
        OSError: the folder cannot be made, or is a file.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(_FOLDER, exist_ok=True)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS and path.absolute() not in _told:
        _told.add(path.absolute())
        _log.warning("others may look into the folder", folder=str(path), mode=f"{mode:04o}")


def make_private_database(path: Path) -> None:
    """Make the file before SQLite does, which would let everybody read it; take old ones back.

    Raises:
        OSError: the file cannot be made.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE))
    for end in _BESIDE:
        file = path.with_name(path.name + end)
        # Somebody else's file is their own matter, and a missing one is nobody's.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if file.stat().st_mode & _OTHERS:
                file.chmod(_FILE)


def give_to_owner_of(place: Path, descriptor: int) -> None:
    """Give a new file to whom a file or folder belongs, if this is the administrator's process.

    Else a command that the administrator runs would leave files that the server cannot open.

    Raises:
        OSError: the file system has no owners.
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        owner = place.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
