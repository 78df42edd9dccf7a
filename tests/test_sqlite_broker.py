"""A broker whose streams outlive it: the contract, restarts, kills, full disks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from repeater.brokers.contract import Broker
from repeater.brokers.sqlite.journal import Journal
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.random_id import random_id
from repeater.testing.broker import check_broker

pytestmark = pytest.mark.timeout(120)


async def test_it_keeps_the_contract(tmp_path: Path) -> None:
    """The conformance suite, in real time: its threads do not follow a mock clock."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        # A file that others have used heeds positions that are ahead of it, which is another story.
        folder = tmp_path / random_id()
        async with open_sqlite_broker(folder, idempotency_ttl=1) as broker:
            yield broker

    await check_broker(opened, idempotency_ttl=1)


async def test_a_closed_file_stands_still_no_more(tmp_path: Path) -> None:
    """Whoever reads the file meanwhile is told: its end brings the log into it."""
    async with open_sqlite_broker(tmp_path) as broker:
        journal = await broker.with_journal(lambda journal: journal)
        await broker.with_journal(Journal.pin)
        assert journal.pinned
    assert not journal.pinned
