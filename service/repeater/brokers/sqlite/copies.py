"""A history's file copied away, and put back. Sync, for commands: they wait for disks.

A backup is one file that stands alone, and was read again before it got its name. What puts one
back makes it a history of its own: the generation is one that no subscriber has seen, so each of
them is told, whatever it has of the history that was replaced.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from repeater.brokers.sqlite.errors import JournalError, explained
from repeater.brokers.sqlite.files import (
    checkpoint,
    copy_bytes,
    copy_file,
    log_of,
    log_size,
    replacing,
    sync,
)
from repeater.brokers.sqlite.formats import APPLICATION_ID, bring_up, format_of
from repeater.brokers.sqlite.inspection import Inspection, generation_of, inspect, open_still
from repeater.brokers.sqlite.journal import FILE

REPLACED: Final = ".replaced-"
"""Behind the file's name and before the UTC time: the file that a restore replaced."""

_HEAD: Final = 72  # bytes of a file's header up to its application's id


def settle(path: Path) -> None:
    """Bring the commits that a kill left in the WAL into the file, which then stands still.

    The caller has the folder's lock.

    Raises:
        JournalError: the file is damaged or cannot be written.
        OSError: the folder cannot be read.
    """
    if not (path.exists() and log_size(path)):
        return
    with explained(), closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        checkpoint(connection)


def back_up(
    source: Path,
    target: Path,
    *,
    stood_still: Callable[[], object] = lambda: None,
    with_log: bool = False,
    copied: Callable[[int], None] | None = None,
) -> Inspection:
    """Copy a history's file, which stands still meanwhile; returns what the copy holds.

    Args:
        source: The history's file.
        target: Replaced, if it is a backup; made whole, or not at all.
        stood_still: Called once the bytes are copied; raises if they are not of one moment.
        with_log: Whether commits that a kill left in the WAL belong to it, too; nobody writes then.
        copied: Told the number of bytes from time to time.

    Raises:
        JournalError: the source has faults or holds nothing, the target is something else than a
            backup, or the copy cannot be written.
    """
    if target.parent.resolve() == source.parent.resolve() and target.name.startswith(FILE):
        raise JournalError(f"{target}: names that begin with {FILE} are the server's own")
    if target.exists() and not is_backup(target):
        raise JournalError(f"{target} exists and is not a backup: it was not changed")
    try:
        with replacing(target) as temporary:
            copy_bytes(source, temporary, copied)
            if with_log and log_size(source):
                copy_bytes(log_of(source), log_of(temporary))
            stood_still()
            _stand_alone(temporary)
            found = _whole(temporary, source)
    except OSError as error:
        raise JournalError(f"{target}: {error.strerror}") from None
    found.file = str(target)
    return found


def restore(folder: Path, backup: Path) -> tuple[Inspection, Path | None]:
    """Put a backup in the place of a folder's history.

    The caller has the folder's lock. A kill leaves the old history or the backup, each whole.

    Returns:
        What the history holds now, and where the replaced file is kept; None if there was none.

    Raises:
        JournalError: the backup has faults, or something cannot be written; nothing was changed.
    """
    path = folder / FILE
    if path.exists() and backup.exists() and path.samefile(backup):
        raise JournalError(f"{backup} is the history itself")
    if log_size(backup):
        raise JournalError(f"{backup} is not whole without the commits in {log_of(backup).name}")
    _whole(backup, backup)
    try:
        old = _settled(path)
        with replacing(path) as temporary:
            copy_bytes(backup, temporary)
            _begin_anew(temporary, old)
            found = _whole(temporary, backup)
            kept = _keep(path)
    except OSError as error:
        raise JournalError(f"{folder}: {error.strerror}") from None
    found.file = str(path)
    return found, kept


def is_backup(path: Path) -> bool:
    """Whether a file's first bytes say that it is a history; an empty file counts, too."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return not head or head[-4:] == APPLICATION_ID.to_bytes(4)


def _whole(path: Path, shown: Path) -> Inspection:
    """What a file holds, if nothing is wrong with it.

    Raises:
        JournalError: something is wrong with it, or it holds nothing.
    """
    found = inspect(path)
    if found.faults:
        raise JournalError(f"{shown} is damaged: {found.faults[0]}")
    if not found.format:
        raise JournalError(f"{shown} holds no history")
    return found


def _stand_alone(path: Path) -> None:
    """Let a copy be one file, that can be read where nothing can be written."""
    with explained(), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _settled(path: Path) -> int:
    """Settle the file that will be replaced, and return its generation; 0 for a damaged file.

    Of a file that is not even a database, SQLite would remove the WAL.
    """
    with suppress(JournalError, sqlite3.Error):
        if path.exists() and is_backup(path):
            settle(path)
            with open_still(path) as connection:
                return generation_of(dict(connection.execute("SELECT name, value FROM meta")))
    return 0


def _begin_anew(path: Path, old: int) -> None:
    """Bring a backup's copy to today's format, and give it a generation that was never told.

    Another restore of the same backup, on this machine or another, must not get the same one:
    subscribers have seen what was published after it. So it follows the clock.
    """
    with explained(), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        bring_up(connection, format_of(connection, path))
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        generation = max(old + 1, generation_of(meta) + 1, int(time.time()))
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES('generation', ?), ('clean', '1')",
            (str(generation),),
        )


def _keep(path: Path) -> Path | None:
    """Give the file that is replaced another name, beside its own, which it has until then."""
    if not path.exists():
        return None
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    kept = path.with_name(f"{path.name}{REPLACED}{moment}")
    for one, name in ((path, kept), (log_of(path), log_of(kept))):
        if one.exists():
            _link(one, name)
    sync(path.parent)
    # What is left of a damaged file's WAL would be taken for the new file's.
    log_of(path).unlink(missing_ok=True)
    return kept


def _link(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        copy_file(path, name)
