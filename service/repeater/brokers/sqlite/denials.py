"""Blocked users and revoked tokens in the file of the history, beside the streams.

They are few, and the node reads them only at its start. The one thread that commits publications
also writes these, so a change waits for the commit that runs, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from repeater.access.grants import Denial
from repeater.access.sqlite_denials import (
    all_denials,
    read_denials,
    sweep_denials,
    write_denial,
)
from repeater.brokers.sqlite.files import remove_database

if TYPE_CHECKING:
    from repeater.brokers.sqlite.broker import SQLiteBroker
    from repeater.brokers.sqlite.journal import Journal

OLD_FILE: Final = "denials.sqlite3"
"""Where denials are kept without a durable history."""


class StoredDenials:
    """A `DenialStore` in the file of a broker, which outlives it."""

    def __init__(self, broker: SQLiteBroker) -> None:
        self._broker = broker

    async def load(self) -> Sequence[Denial]:
        """As `DenialStore.load`."""
        return await self._broker.with_journal(_read)

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """Wait until cancelled: no other node writes into this file while we run."""
        await trio.sleep_forever()

    async def save(self, denial: Denial) -> None:
        """As `DenialStore.save`: what the durability promises holds once it returns."""
        await self._broker.with_journal(lambda journal: _write(journal, [denial]))

    async def sweep(self, now: int) -> None:
        """As `DenialStore.sweep`."""
        await self._broker.with_journal(lambda journal: _sweep(journal, now))


def _read(journal: Journal) -> list[Denial]:
    with journal.transaction() as connection:
        return all_denials(connection)


def _write(journal: Journal, denials: Iterable[Denial]) -> None:
    with journal.transaction() as connection:
        for one in denials:
            write_denial(connection, one)


def _sweep(journal: Journal, now: int) -> None:
    with journal.transaction() as connection:
        sweep_denials(connection, now)


def move_denials(journal: Journal, folder: Path) -> None:
    """Take over the denials of a file of their own, and remove it once they are committed.

    If this process dies in between, the next one takes them over again, which changes nothing.

    Raises:
        BrokerError: the file is not one of ours.
        JournalError: they could not be written.
        OSError: the file cannot be removed.
    """
    old = folder / OLD_FILE
    if not old.exists():
        return
    _write(journal, read_denials(old))
    remove_database(old)
