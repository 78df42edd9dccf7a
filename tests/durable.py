"""A durable broker that runs, for tests of what it does with its file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import pytest
import trio

from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.journal import Journal
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.fanout.intake import Intake


@asynccontextmanager
async def opened(folder: Path, **more: Any) -> AsyncIterator[tuple[SQLiteBroker, Intake]]:
    """A broker on this folder for the time of the block, and where its events go.

    At its end the broker finishes, for two seconds at the most: its disk may hang.
    """
    intake = Intake(1_000_000, 1 << 40, 1 << 20)
    async with (
        open_sqlite_broker(folder, **more) as broker,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(broker.run, intake)
        await broker.wait_room()
        yield broker, intake
        with trio.move_on_after(2):
            await broker.finish()
        nursery.cancel_scope.cancel()


class Disk:
    """Lets every transaction fail for as long as it has an error, and counts the tries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: JournalError | None = None
        self.tries = 0
        real = Journal.transaction

        @contextmanager
        def transaction(journal: Journal) -> Iterator[Connection]:
            self.tries += 1
            if self.error is not None:
                raise self.error
            with real(journal) as connection:
                yield connection

        monkeypatch.setattr(Journal, "transaction", transaction)
