"""A durable broker that runs, for tests of what it does with its file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from repeater.brokers.sqlite.broker import SQLiteBroker
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
