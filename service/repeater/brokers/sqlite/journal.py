"""The file of a durable history: opened, loaded, written in transactions, kept small.

All sync, and no Trio: one thread at a time calls it. Every error comes out as `JournalError`, with
a reason that a person can act on.

The publications of all streams are one table in the order of their commits. It has no other index:
an index by stream costs more than the table, and the memory is the index. So an append goes to the
end of the file, and what is freed, mostly the oldest, leaves its beginning.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from time import time
from typing import Final, Literal

import msgspec

from repeater.brokers.sqlite.errors import JournalError, explained
from repeater.brokers.sqlite.files import checkpoint, log_size, remove_leftovers
from repeater.brokers.sqlite.formats import format_of, prepare
from repeater.brokers.sqlite.records import (
    UINT64_DIGITS,
    Changes,
    StoredPublication,
    StoredResult,
    StoredRow,
    StreamRecord,
)
from repeater.brokers.sqlite.reserve import Reserve
from repeater.private_files import make_private_database
from repeater.publication import StreamPosition

FILE: Final = "history.sqlite3"
_TRIED: Final = "tried"
Durability = Literal["disk", "process"]
"""What survives: `disk` a loss of power, `process` a kill of this process."""

_WAL_PAGES: Final = 4_000  # 16 MB between two checkpoints
_WAL_BYTES: Final = 64 * 1024 * 1024  # a longer log, of one large transaction, is cut again
_LOOSE: Final = 1_024  # free pages that the file keeps for what comes: 4 MB
_VACUUMED: Final = 1_000  # pages given back at a time: a pause of some milliseconds
_SHRUNK: Final = 5  # times that, of a full disk: as much as the reserve needs
_FREED: Final = 500  # rows freed at a time of a full disk
_APPENDED: Final = 50  # rows added by one statement
_APPEND: Final = "INSERT INTO publications VALUES(?, ?, ?, ?)"
_APPEND_MANY: Final = _APPEND + ", (?, ?, ?, ?)" * (_APPENDED - 1)
_PAGE: Final = 1_000  # rows read at a time while the file is loaded


class Sizes(msgspec.Struct, frozen=True):
    """Bytes on the disk."""

    file: int
    """The file with its log."""
    used: int
    """The part of the file that holds something."""


class Journal:
    """One open file. Owned by the code that called `open_journal`, which calls `close`."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._connection = connection
        self.path = folder / FILE
        self.pinned = False
        """Whether the file stands still; see `pin`."""
        self.reserve = Reserve(folder)

    def close(self) -> None:
        """Write everything into the one file and close it. Idempotent."""
        self.pinned = False  # the last connection's end brings the log into the file
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
                yield rows

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

    def terms(self) -> dict[str, int]:
        """The highest term of each source of rows."""
        with explained():
            return dict(self._connection.execute("SELECT source, term FROM terms"))

    def rows(self) -> list[StoredRow]:
        """The rows of other databases that are published and not forgotten."""
        with explained():
            found = self._connection.execute("SELECT * FROM rows").fetchall()
        return [
            StoredRow(source, name, None if offset is None else StreamPosition(offset, epoch))
            for source, name, offset, epoch in found
        ]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Make all changes of the block in one transaction, or none of them.

        When it ends, they survive what the durability promises.

        Raises:
            JournalError: nothing was changed.
        """
        with explained():
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def write(self, changes: Changes) -> None:
        """Make all these changes in one `transaction`."""
        with self.transaction():
            self._apply(changes)

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
        if changes.forgotten_results:
            run_many("DELETE FROM results WHERE channel = ? AND key = ?", changes.forgotten_results)
        if changes.streams:
            run_many(
                "INSERT OR REPLACE INTO streams VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                map(_stream_row, changes.streams),
            )
        if changes.publications:
            self._append(changes.publications)
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
        if changes.meta:
            run_many("INSERT OR REPLACE INTO meta VALUES(?, ?)", list(changes.meta.items()))
        if changes.terms:
            run_many("INSERT OR REPLACE INTO terms VALUES(?, ?)", list(changes.terms.items()))
        if changes.forgotten_rows:
            run_many("DELETE FROM rows WHERE source = ? AND name = ?", changes.forgotten_rows)
        if changes.rows:
            run_many(
                "INSERT OR REPLACE INTO rows VALUES(?, ?, ?, ?)",
                [(one.source, one.name, *_place(one.position)) for one in changes.rows],
            )

    def _append(self, rows: Sequence[StoredPublication]) -> None:
        """Add rows, many with one statement: around each one another thread may take the turn."""
        whole = len(rows) - len(rows) % _APPENDED
        for start in range(0, whole, _APPENDED):
            values = [*chain.from_iterable(rows[start : start + _APPENDED])]
            self._connection.execute(_APPEND_MANY, values)
        if whole < len(rows):
            self._connection.executemany(_APPEND, rows[whole:])

    def keep_house(self) -> Sizes:
        """Give free pages at the end of the file back to the disk, some at a time; say the sizes.

        Raises:
            JournalError: a write failed; the contents are as before.
        """
        self._shrink()
        self.reserve.renew()
        with explained():
            return self._sizes()[0]

    def _shrink(self) -> None:
        with explained():
            sizes, free = self._sizes()
            loose = max(_LOOSE, sizes.used // _page(self._connection) // 4)
            if free > loose and not self.pinned:
                # `execute` would do one step of it: one page.
                self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUMED})")
                self._checkpoint("TRUNCATE")  # Here the file itself becomes shorter, and the log.

    def _sizes(self) -> tuple[Sizes, int]:
        """The sizes, and the number of free pages."""
        page = _page(self._connection)
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        file = self.path.stat().st_size + log_size(self.path)
        return Sizes(file=file, used=(pages - free) * page), free

    def recover(self, changes: Changes, *, was_full: bool) -> None:
        """Find out whether a disk that failed can be written again, and free what can be freed.

        Raises:
            JournalError: it cannot, or is still full. `changes` were made or not: to make them
                again does no harm.
        """
        self.unpin()
        if was_full:
            self.reserve.give_up()
        with contextlib.suppress(sqlite3.Error):  # The log has room again if this succeeds.
            self._checkpoint("PASSIVE")
        # Some rows at a time, so that the log needs little room.
        for start in range(0, len(changes.freed), _FREED):
            self.write(Changes(freed=changes.freed[start : start + _FREED]))
            self._cut_log()
        # A transaction that changes nothing would write nothing.
        meta = {**changes.meta, _TRIED: str(time())}
        self.write(msgspec.structs.replace(changes, freed=[], meta=meta))
        self._cut_log()
        for _ in range(_SHRUNK if was_full else 0):
            self._shrink()
        if not self.reserve.renew() and was_full:
            raise JournalError("disk full", full=True)

    def _cut_log(self) -> None:
        with explained():
            self._checkpoint("TRUNCATE")

    def _checkpoint(self, kind: str) -> None:
        """Carry the log over into the file."""
        self._connection.execute(f"PRAGMA wal_checkpoint({kind})").fetchall()

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
            # Before anything of a foreign file is changed.
            if not format_of(connection, path):
                # Said to a file with tables, it does nothing but a write, which a full disk fails.
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            level = "FULL" if durability == "disk" else "NORMAL"
            connection.execute(f"PRAGMA synchronous = {level}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            prepare(connection, path)
        journal = Journal(connection, folder)
        journal.reserve.renew()
    except BaseException:
        connection.close()
        raise
    return journal


def _page(connection: sqlite3.Connection) -> int:
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    return int(page)


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
    return (one.channel, one.key, *_place(one.position), one.until)


def _place(position: StreamPosition | None) -> tuple[int | None, str | None]:
    return (None, None) if position is None else (position.offset, position.epoch)


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The numbers as ranges without gaps, first and last."""
    first, last = 0, -1  # Rows count from 1.
    for number in sorted(numbers):
        if number != last + 1:
            if first:
                yield first, last
            first = number
        last = number
    if first:
        yield first, last
