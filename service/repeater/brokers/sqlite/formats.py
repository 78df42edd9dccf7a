"""The formats of the file: which one it has, and how an older one is brought up to the newest.

A file says in its header whose it is (`application_id`) and which format it has (`user_version`).
Each format has one step to the next. All steps that a file needs are one transaction, so a file is
never between two formats; a copy of it as it was is kept beside it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.files import checkpoint, copy_file
from repeater.log import get_logger

_log = get_logger("history")

APPLICATION_ID: Final = 0x52505452
"""Marks a file as ours: "RPTR"."""

KEPT: Final = ".format-"
"""Behind the file's name and before the old format: the copy of a file that was brought up."""

SCHEMA: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE streams(
    id INTEGER PRIMARY KEY,
    channel TEXT NOT NULL UNIQUE,
    epoch TEXT NOT NULL,
    top INTEGER NOT NULL,
    version TEXT NOT NULL,
    version_epoch TEXT NOT NULL,
    published REAL NOT NULL,
    history_ttl REAL NOT NULL,
    meta_ttl REAL NOT NULL
);
CREATE TABLE publications(
    id INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE results(
    channel TEXT NOT NULL,
    key TEXT NOT NULL,
    "offset" INTEGER,
    epoch TEXT,
    until REAL NOT NULL,
    PRIMARY KEY(channel, key)
) WITHOUT ROWID;
CREATE TABLE denials(
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    issued_before INTEGER NOT NULL,
    expire_at INTEGER NOT NULL,
    PRIMARY KEY(kind, name)
) WITHOUT ROWID;
CREATE TABLE terms(source TEXT PRIMARY KEY, term INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE rows(
    source TEXT NOT NULL,
    name TEXT NOT NULL,
    "offset" INTEGER,
    epoch TEXT,
    PRIMARY KEY(source, name)
) WITHOUT ROWID;
"""
"""The tables of the newest format."""

TABLES_SINCE: Final = 1
"""The oldest format that has all tables which `inspection` reads, and rows that `records` reads."""

Step = Callable[[sqlite3.Connection], None]
"""Brings the tables of one format to the next, inside a transaction that it does not end."""


def _allow_binary_data(_connection: sqlite3.Connection) -> None:
    """Format 2: publications may be binary (`records`). The tables and older bodies stay.

    A program that knows only format 1 would send the bytes to its clients as JSON.
    """


def _remember_rows(connection: sqlite3.Connection) -> None:
    """Format 3: rows of other databases that are published, and their terms."""
    connection.execute(
        "CREATE TABLE terms(source TEXT PRIMARY KEY, term INTEGER NOT NULL) WITHOUT ROWID"
    )
    connection.execute(
        'CREATE TABLE rows(source TEXT NOT NULL, name TEXT NOT NULL, "offset" INTEGER, epoch TEXT,'
        " PRIMARY KEY(source, name)) WITHOUT ROWID"
    )


STEPS: Final[Mapping[int, Step]] = {1: _allow_binary_data, 2: _remember_rows}
"""By the format that a step begins with; format 1 is the first one.

Who changes `SCHEMA` adds one, and moves `TABLES_SINCE` if the inspection reads what is new:
`STEPS[n]` makes format n + 1 of format n, without `executescript`, which would commit.
"""


def prepare(connection: sqlite3.Connection, path: Path, steps: Mapping[int, Step] = STEPS) -> None:
    """Make the tables in a new file; bring an older file to the newest format.

    Args:
        connection: Open, and the only one that uses the file.
        path: The file, which the connection has in WAL mode.
        steps: Those of `STEPS`.

    Raises:
        JournalError: the file is another program's, its format is newer than ours, or the copy of
            an older one cannot be written. The file is not changed.
        sqlite3.Error: a statement failed; the file is not changed.
    """
    newest = newest_format(steps)
    found = format_of(connection, path, steps)
    if found == newest:
        return
    if found == 0:
        connection.executescript(
            f"BEGIN EXCLUSIVE; PRAGMA application_id = {APPLICATION_ID};"
            f" PRAGMA user_version = {newest}; {SCHEMA} COMMIT;"
        )
        return
    copy = path.with_name(f"{path.name}{KEPT}{found}")
    checkpoint(connection)  # Commits that are still in the WAL belong into the copy.
    try:
        copy_file(path, copy)
    except OSError as error:
        raise JournalError(f"{copy}: {error.strerror}") from None
    bring_up(connection, found, steps)
    _log.info("the history has a newer format now", old=found, new=newest, copy=str(copy))


def format_of(connection: sqlite3.Connection, path: Path, steps: Mapping[int, Step] = STEPS) -> int:
    """The format of a file; 0 for an empty file.

    Raises:
        JournalError: the file is another program's, or its format is newer than ours.
        sqlite3.Error: the file cannot be read.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == 0 and version == 0:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            return 0
    if application != APPLICATION_ID or version < 1:
        raise JournalError(f"{path} is another program's database")
    newest = newest_format(steps)
    if version > newest:
        raise JournalError(
            f"{path} has format {version}, and this version of Repeater reads up to {newest}"
        )
    return int(version)


def newest_format(steps: Mapping[int, Step] = STEPS) -> int:
    """The format that the steps lead to."""
    return max(steps, default=0) + 1


def bring_up(connection: sqlite3.Connection, found: int, steps: Mapping[int, Step] = STEPS) -> None:
    """Bring a file of the format `found` to the newest one, in one transaction. Keeps no copy.

    Raises:
        sqlite3.Error: a statement failed; the file is not changed.
    """
    connection.execute("BEGIN EXCLUSIVE")
    try:
        for number in range(found, newest_format(steps)):
            steps[number](connection)
            connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
