"""The one error of the file, with a reason that a person can act on."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Final


class JournalError(Exception):
    """The file cannot be opened, read or written. The text says why, without secrets."""

    def __init__(self, reason: str, *, full: bool = False) -> None:
        super().__init__(reason)
        self.full = full
        """Whether room on the disk would help."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn SQLite's errors into `JournalError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(reason_of(error), full=_name_of(error) in _FULL) from None


def reason_of(error: sqlite3.Error) -> str:
    """What went wrong, in a few words."""
    name = _name_of(error)
    return _REASONS.get(name) or _REASONS.get(name.partition("_")[0], str(error))


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is wrong, and not what is done with it."""
    return _name_of(error).partition("_")[0] in ("CORRUPT", "NOTADB")


def _name_of(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_")


_FULL: Final = ("FULL", "IOERR_WRITE")  # a quota that is reached comes as a failed write
_REASONS: Final = {
    "FULL": "disk full",
    "IOERR_WRITE": "disk full or failing",
    "IOERR": "the disk fails",
    "READONLY": "the disk is read-only",
    "CANTOPEN": "the file cannot be opened",
    "BUSY": "another process uses the file",
    "LOCKED": "another process uses the file",
    "NOTADB": "the file is not a database",
    "CORRUPT": "the file is damaged",
}
