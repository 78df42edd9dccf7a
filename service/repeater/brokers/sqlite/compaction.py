"""A history's file written anew, without what was freed. Sync, for a command.

Everything that is kept goes into a new file, which then takes the old one's name in one step. So
a kill leaves the old file or the new one, each whole, and the disk needs room for both.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from repeater.brokers.sqlite.errors import JournalError, explained
from repeater.brokers.sqlite.files import replacing
from repeater.brokers.sqlite.formats import format_of
from repeater.brokers.sqlite.inspection import Inspection, inspect


def compact(path: Path) -> Inspection:
    """Write the file anew; returns what it holds now. The caller has the folder's lock.

    Raises:
        JournalError: the file is damaged, or cannot be written; nothing was changed.
    """
    if not path.exists():
        raise JournalError(f"{path.parent} holds no history")
    try:
        with (
            replacing(path) as temporary,
            explained(),
            closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection,
        ):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA temp_store = MEMORY")  # no file outside of the folder
            if not format_of(connection, path):
                raise JournalError(f"{path} holds no history")
            connection.execute("VACUUM INTO ?", (str(temporary),))
            found = inspect(temporary)
            if found.faults:
                raise JournalError(f"{path} is damaged: {found.faults[0]}")
            # The WAL must be gone before another file gets the name: it would be taken for its.
            (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode != "delete":
                raise JournalError(f"{path}: another process uses the file")
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    found.file = str(path)
    return found
