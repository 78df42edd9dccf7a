"""Blocked users and revoked tokens in an SQLite file: they outlive the process, however it ends.

One worker thread writes, since a commit waits for the disk. The file is small, and the node reads
it only at its start: the node holds the denials in force in its memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from repeater.access.grants import Denial
from repeater.errors import BrokerError
from repeater.private_files import make_private_database, make_private_folder

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS denials (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    issued_before INTEGER NOT NULL,
    expire_at INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID
"""
_BUSY_TIMEOUT: Final = 2.0  # seconds that another process may hold the file

Result = TypeVar("Result")


class SQLiteDenials:
    """A `DenialStore` in one file. Made and ended by `open_sqlite_denials`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._one = trio.CapacityLimiter(1)

    async def load(self) -> Sequence[Denial]:
        """As `DenialStore.load`."""
        return await self._run(self.read)

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """Wait until cancelled: no other node writes into this file while we run."""
        await trio.sleep_forever()

    async def save(self, denial: Denial) -> None:
        """As `DenialStore.save`: written to the disk once it returns."""
        await self._run(lambda: self._change(lambda open_file: write_denial(open_file, denial)))

    async def sweep(self, now: int) -> None:
        """As `DenialStore.sweep`."""
        await self._run(lambda: self._change(lambda open_file: sweep_denials(open_file, now)))

    async def _run(self, call: Callable[[], Result]) -> Result:
        """Run a call in a worker thread; a cancelled caller waits, to know what was written."""
        try:
            return await trio.to_thread.run_sync(call, limiter=self._one)
        except sqlite3.Error as error:
            raise BrokerError(f"denials: {error}") from error

    def read(self) -> list[Denial]:
        """All denials; blocks."""
        return all_denials(self._connection)

    def _change(self, change: Callable[[sqlite3.Connection], None]) -> None:
        with self._connection:  # commits, or rolls back
            change(self._connection)


# The table `denials`, whichever file it is in. The caller has the transaction.


def all_denials(connection: sqlite3.Connection) -> list[Denial]:
    """All rows."""
    rows = connection.execute("SELECT kind, name, issued_before, expire_at FROM denials")
    return [_denial_of(*row) for row in rows]


def write_denial(connection: sqlite3.Connection, denial: Denial) -> None:
    """Replace the row of a denial, or remove it if the denial is lifted."""
    if denial.lifted:
        connection.execute("DELETE FROM denials WHERE kind = ? AND name = ?", denial.key)
        return
    row = (*denial.key, denial.issued_before, denial.expire_at)
    connection.execute("INSERT OR REPLACE INTO denials VALUES (?, ?, ?, ?)", row)


def sweep_denials(connection: sqlite3.Connection, now: int) -> None:
    """Remove the rows of denials that have expired."""
    connection.execute("DELETE FROM denials WHERE expire_at > 0 AND expire_at <= ?", (now,))


def _denial_of(kind: str, name: str, issued_before: int, expire_at: int) -> Denial:
    if kind == "token":
        return Denial(token_id=name, expire_at=expire_at)
    return Denial(user=name, issued_before=issued_before, expire_at=expire_at)


@asynccontextmanager
async def open_sqlite_denials(path: Path) -> AsyncIterator[SQLiteDenials]:
    """Open the store in this file for as long as the block lasts; make a missing file.

    Raises:
        BrokerError: the file cannot be made, or is not one of ours.
    """
    connection = await trio.to_thread.run_sync(_open, path)
    try:
        yield SQLiteDenials(connection)
    finally:
        connection.close()


def _open(path: Path) -> sqlite3.Connection:
    try:
        make_private_folder(path.parent)
        make_private_database(path)
        connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise BrokerError(f"{path}: {error}") from error
    try:
        with connection:
            connection.execute(_SCHEMA)
    except sqlite3.Error as error:
        connection.close()
        raise BrokerError(f"{path}: {error}") from error
    return connection


def read_denials(path: Path) -> Sequence[Denial]:
    """Read a whole file without a running node; blocks.

    Raises:
        BrokerError: the file is not one of ours.
    """
    connection = _open(path)
    try:
        return SQLiteDenials(connection).read()
    except sqlite3.Error as error:
        raise BrokerError(f"{path}: {error}") from error
    finally:
        connection.close()
