"""Files written whole or not at all: a temporary one beside the target, synced, then renamed.

Temporary files stand in the folder of their target, so the rename is one step, and no other folder
has to be writable. A kill may leave one behind; `remove_leftovers` takes it away.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from repeater.brokers.sqlite.errors import JournalError
from repeater.private_files import give_to_owner_of

TEMPORARY: Final = ".tmp"
"""The end of a temporary file's name."""

_COPIED: Final = 1 << 20  # bytes copied at a time
_LOGS: Final = ("-wal", "-shm", "-journal")  # what SQLite makes beside a file


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give the path of a new, empty, private file that replaces the target at the block's end.

    An error in the block, or a file that the block leaves without its last changes on the disk,
    changes nothing of the target.

    Raises:
        OSError: the file cannot be made, synced or renamed.
    """
    temporary = target.with_name(f"{target.name}{TEMPORARY}")
    remove_database(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        try:
            give_to_owner_of(target if target.exists() else target.parent, descriptor)
        finally:
            os.close(descriptor)
        yield temporary
        sync(temporary)
        # What the block removed, a WAL above all, must not come back beside the new file.
        sync(target.parent)
        temporary.replace(target)
        sync(target.parent)
    except BaseException:
        remove_database(temporary)
        raise


def copy_file(source: Path, target: Path, copied: Callable[[int], None] | None = None) -> None:
    """Copy the bytes of a file that nobody changes.

    Args:
        source: Read to its end.
        target: Replaced, once the copy is on the disk.
        copied: Told the number of bytes from time to time.

    Raises:
        OSError: the source cannot be read, or the target cannot be written.
    """
    with replacing(target) as temporary:
        copy_bytes(source, temporary, copied)


def copy_bytes(source: Path, target: Path, copied: Callable[[int], None] | None = None) -> None:
    """Copy the bytes of a file into another one, without syncing it.

    Raises:
        OSError: the source cannot be read, or the target cannot be written.
    """
    done = 0
    with source.open("rb") as old, open(target, "wb", buffering=0, opener=_private) as new:
        while chunk := old.read(_COPIED):
            rest = memoryview(chunk)
            while rest:
                rest = rest[new.write(rest) :]
            done += len(chunk)
            if copied is not None:
                copied(done)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def log_of(path: Path) -> Path:
    """The WAL of a database: commits that are not in the file itself yet."""
    return path.with_name(f"{path.name}{_LOGS[0]}")


def log_size(path: Path) -> int:
    """The bytes of a database's WAL; 0 without one."""
    try:
        return log_of(path).stat().st_size
    except FileNotFoundError:
        return 0


def checkpoint(connection: sqlite3.Connection) -> None:
    """Bring all commits from the WAL into the file itself, and both to the disk.

    Raises:
        JournalError: another process reads the file.
        sqlite3.Error: the disk fails.
    """
    (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise JournalError("another process uses the file")


def sync(path: Path) -> None:
    """Bring a file, or the names of a folder, to the disk.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_database(path: Path) -> None:
    """Remove a file and what SQLite made beside it. What is missing is no error."""
    for end in ("", *_LOGS):
        path.with_name(f"{path.name}{end}").unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that a kill left beside a file, and second names of the file.

    The caller has the folder's lock, so nobody is writing one.
    """
    for one in path.parent.glob(f"{path.name}*"):
        with contextlib.suppress(OSError):
            if TEMPORARY in one.name or (one != path and one.samefile(path)):
                one.unlink()
