"""The file of a durable history: made, opened, loaded, written in transactions, kept small.

All sync, and no Trio: one thread at a time calls it. Every error comes out as `JournalError`, with
a reason that a person can act on.

The publications of all streams are one table in the order of their commits. It has no other index:
an index by stream costs more than the table, and the memory is the index. So an append goes to the
end of the file, and what is freed, mostly the oldest, leaves its beginning.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, Literal

from repeater.brokers.sqlite.errors import JournalError, explained
from repeater.brokers.sqlite.files import checkpoint, remove_leftovers
from repeater.brokers.sqlite.formats import format_of, prepare
from repeater.brokers.sqlite.records import (
    UINT64_DIGITS,
    Changes,
    StoredPublication,
    StoredResult,
    StreamRecord,
)
from repeater.private_files import make_private_database
from repeater.publication import StreamPosition

FILE: Final = "history.sqlite3"
Durability = Literal["disk", "process"]
"""What survives: `disk` a loss of power, `process` a kill of this process."""

_RESERVE: Final = "history.reserve"
# On a full disk even a DELETE fails, for it needs room in the WAL: this file makes that room.
_RESERVE_BYTES: Final = 16 * 1024 * 1024
_WAL_PAGES: Final = 4_000  # 16 MB between two checkpoints
_PAGE: Final = 10_000  # rows read at a time while the file is loaded


class Journal:
    """One open file. Owned by the code that called `open_journal`, which calls `close`."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._connection = connection
        self._reserve = folder / _RESERVE
        self.path = folder / FILE
        self.pinned = False
        """Whether the file stands still; see `pin`."""

    def close(self) -> None:
        """Write everything into the one file and close it. Idempotent."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def meta(self) -> dict[str, str]:
        """The small values that are kept beside the streams."""
        with explained():
            return dict(self._connection.execute("SELECT name, value FROM meta"))

    def streams(self) -> list[StreamRecord]:
        """The rows of all streams."""
        with explained():
            rows = self._connection.execute("SELECT * FROM streams").fetchall()
        return [
            StreamRecord(number, channel, epoch, top, int(version), *rest)
            for number, channel, epoch, top, version, *rest in rows
        ]

    def publications(self) -> Iterator[Sequence[StoredPublication]]:
        """The publications of all streams in the order of their commits, some at a time."""
        with explained():
            cursor = self._connection.execute("SELECT * FROM publications ORDER BY id")
            while rows := cursor.fetchmany(_PAGE):
                yield [StoredPublication(*row) for row in rows]

    def results(self) -> list[StoredResult]:
        """The results of publishes with an idempotency key."""
        with explained():
            rows = self._connection.execute("SELECT * FROM results").fetchall()
        return [
            StoredResult(
                channel, key, None if offset is None else StreamPosition(offset, epoch), until
            )
            for channel, key, offset, epoch, until in rows
        ]

    def write(self, changes: Changes) -> None:
        """Make all these changes in one transaction, or none of them.

        When it returns, they survive what the durability promises.

        Raises:
            JournalError: nothing was changed.
        """
        with explained():
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._apply(changes)
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def write_synced(self, changes: Changes) -> None:
        """As `write`, and they survive a loss of power whatever the durability.

        Raises:
            JournalError: nothing was changed.
        """
        with explained():
            (level,) = self._connection.execute("PRAGMA synchronous").fetchone()
            self._connection.execute("PRAGMA synchronous = FULL")
            try:
                self.write(changes)
            finally:
                self._connection.execute(f"PRAGMA synchronous = {level}")

    def _apply(self, changes: Changes) -> None:
        run, run_many = self._connection.execute, self._connection.executemany
        if changes.streams:
            run_many(
                "INSERT OR REPLACE INTO streams VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                map(_stream_row, changes.streams),
            )
        if changes.publications:
            run_many(
                "INSERT INTO publications VALUES(?, ?, ?, ?)",
                [(one.id, one.stream, one.offset, one.body) for one in changes.publications],
            )
        if changes.results:
            run_many(
                "INSERT OR REPLACE INTO results VALUES(?, ?, ?, ?, ?)",
                map(_result_row, changes.results),
            )
        for first, last in _ranges(changes.freed):
            run("DELETE FROM publications WHERE id BETWEEN ? AND ?", (first, last))
        if changes.forgotten_streams:
            run_many(
                "DELETE FROM streams WHERE id = ?",
                [(number,) for number in changes.forgotten_streams],
            )
        if changes.forgotten_results:
            run_many("DELETE FROM results WHERE channel = ? AND key = ?", changes.forgotten_results)
        if changes.meta:
            run_many("INSERT OR REPLACE INTO meta VALUES(?, ?)", list(changes.meta.items()))

    def size(self) -> int:
        """The bytes of the file that hold something."""
        with explained():
            (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            (page,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * page)

    def pin(self) -> None:
        """Bring all commits into the file itself, and let it stand still from now on.

        Other processes may read the file then, as immutable. Commits go on, into the WAL, which
        grows until `unpin`.

        Raises:
            JournalError: the file is pinned, or cannot be written.
        """
        if self.pinned:
            raise JournalError("another command reads the file")
        with explained():
            checkpoint(self._connection)
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        self.pinned = True

    def unpin(self) -> None:
        """Let the next commit bring the WAL into the file again. Idempotent."""
        if self.pinned:
            self.pinned = False
            with explained():
                self._connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")

    def use_reserve(self) -> bool:
        """Give the disk's reserve back, so that something can be freed; False if it is used up."""
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def renew_reserve(self) -> None:
        """Take the reserve again, if there is room for it."""
        with contextlib.suppress(OSError):
            _make_reserve(self._reserve)


def open_journal(folder: Path, durability: Durability) -> Journal:
    """Open the file in a folder, or make it.

    Raises:
        JournalError: the file cannot be opened, is another program's, has a newer format, or is in
            use by another process.
    """
    path = folder / FILE
    try:
        remove_leftovers(path)
        make_private_database(path)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"{path}: {error}") from None
    try:
        with explained():
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            format_of(connection, path)  # before anything of a foreign file is changed
            connection.execute("PRAGMA journal_mode = WAL")
            level = "FULL" if durability == "disk" else "NORMAL"
            connection.execute(f"PRAGMA synchronous = {level}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            prepare(connection, path)
        journal = Journal(connection, folder)
        journal.renew_reserve()
    except BaseException:
        connection.close()
        raise
    return journal


def _make_reserve(path: Path) -> None:
    """Fill the file, because a sparse one would reserve nothing."""
    if path.exists() and path.stat().st_size == _RESERVE_BYTES:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = _RESERVE_BYTES
        while left:
            left -= os.write(descriptor, bytes(min(left, 1 << 20)))
        os.fsync(descriptor)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def _stream_row(one: StreamRecord) -> tuple[object, ...]:
    return (
        one.id,
        one.channel,
        one.epoch,
        one.top,
        f"{one.version:0{UINT64_DIGITS}d}",
        one.version_epoch,
        one.published,
        one.history_ttl,
        one.meta_ttl,
    )


def _result_row(one: StoredResult) -> tuple[object, ...]:
    at = one.position
    place = (None, None) if at is None else (at.offset, at.epoch)
    return (one.channel, one.key, *place, one.until)


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The numbers as ranges without gaps, first and last."""
    for _, group in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        yield members[0], members[-1]
