"""The one error of the file, with a reason that a person can act on."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Final


class JournalError(Exception):
    """The file cannot be opened, read or written. The text says why, without secrets."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn SQLite's errors into `JournalError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(reason_of(error)) from None


def reason_of(error: sqlite3.Error) -> str:
    """What went wrong, in a few words."""
    return _REASONS.get(_name_of(error), str(error))


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is wrong, and not what is done with it."""
    return _name_of(error).partition("_")[0] in ("CORRUPT", "NOTADB")


def _name_of(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_")


_REASONS: Final = {
    "FULL": "disk full",
    "IOERR_WRITE": "disk full or failing",
    "READONLY": "the disk is read-only",
    "READONLY_DIRECTORY": "the disk is read-only",
    "CANTOPEN": "the file cannot be opened",
    "BUSY": "another process uses the file",
    "LOCKED": "another process uses the file",
    "NOTADB": "the file is not a database",
    "CORRUPT": "the file is damaged",
}
