"""What the workers of a server share: broker, presence, denials, events, the control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from repeater.brokers.memory_presence import MemoryPresence
from repeater.config import CurrentSettings, Settings
from repeater.errors import open_service_nursery
from repeater.serving.callbacks import open_callbacks
from repeater.serving.extension import prepare_extension
from repeater.serving.storage import Storage, open_storage
from repeater.supervision.server import make_supervision
from repeater.workers.exchange import Exchange

if TYPE_CHECKING:
    from repeater.backend.events import EventQueue

_FINISH: Final = 0.1  # part of the shutdown timeout


class Shared(NamedTuple):
    """Lives inside `open_shared`."""

    exchange: Exchange
    """Serves the workers."""
    events: EventQueue | None
    """None if the application is not told of events."""
    storage: Storage
    """Broker and denials."""


@asynccontextmanager
async def open_shared(
    settings: Settings, workers: int, *, later: bool = False
) -> AsyncIterator[Shared]:
    """Open all of it for as long as the block lasts. Workers end inside the block.

    Args:
        settings: Say what is opened.
        workers: Their number.
        later: Whether the storage is opened later, when workers wait for it.

    Raises:
        ConfigError: `data_dir` or `ca_file` is unusable, or another process uses `data_dir`.
        ExtensionError: the application that the settings ask for cannot start.
    """
    async with AsyncExitStack() as stack:
        apart = settings.engine_in_force == "valkey"
        opened = open_storage(CurrentSettings(settings), later=later, for_workers=True)
        storage = await stack.enter_async_context(opened)
        await prepare_extension(settings)
        _, events = await open_callbacks(
            settings.callback_options(),
            stack,
            node=settings.node,
            questions=False,
            events=not apart,  # else each worker tells its own
        )
        supervision = make_supervision(lambda: range(1, workers + 1), apart=apart)
        exchange = Exchange(
            storage.broker,
            MemoryPresence(),
            storage.denials,
            events,
            timeout=settings.worker_timeout,
            supervision=supervision,
        )
        supervision.begin(
            exchange.control, lambda: exchange.channels, lambda: exchange.publications
        )
        async with open_service_nursery() as nursery:
            nursery.start_soon(exchange.run)
            yield Shared(exchange, events, storage)
            # The workers have ended. What they submitted last is committed if the disk is well.
            with trio.move_on_after(settings.node_options().shutdown_timeout * _FINISH):
                await storage.broker.finish()
            exchange.close()
