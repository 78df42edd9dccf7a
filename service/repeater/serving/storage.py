"""The stores of a server that can let go of them and take them again while it serves.

For `repeater serve --take-over`: the next server needs the files, and their lock, before it is
ready; if it fails, this one goes on with them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from repeater.access.denial_store import DenialStore, MemoryDenials
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.replaceable import ReplaceableBroker
from repeater.config import ConfigError, CurrentSettings
from repeater.errors import BrokerError
from repeater.serving.stores import Stores, hold_data_dir, open_stores

if TYPE_CHECKING:
    from repeater.access.grants import Denial
    from repeater.brokers.contract import Broker

_AWAY: Final = "another server takes over"


class Storage:
    """Broker and denials as the settings say. Made and ended by `open_storage`."""

    def __init__(
        self, current: CurrentSettings, stores: Stores, stack: AsyncExitStack, folder: ExitStack
    ) -> None:
        self._current = current
        settings = current()
        self._stack = stack
        self._folder = folder  # holds the folder where the engine does not
        self._in_memory = settings.engine_in_force == "memory"
        self._is_shared = settings.engine_in_force == "valkey"
        self._replaceable = ReplaceableBroker(stores.broker)
        self._denials = _ReplaceableDenials(stores.denials)
        self.current = stores.broker
        """The real broker, which may be away."""
        self.stores = stores
        """What was opened first."""
        # Without files there is nothing to let go of, and no need for one call more.
        kept = settings.kept_in is not None and not self._is_shared
        self.broker: Broker = self._replaceable if kept else stores.broker
        self.denials: DenialStore = self._denials if kept else stores.denials

    async def wait_asked(self, count: int) -> None:
        """Wait until so many nodes wait for the denials: of all their parts these come first.

        For a storage that is opened later. No deadline: nodes that cannot start end the server.
        """
        if self._is_shared:  # each of them reads the engine
            return
        while self._denials.waiting < count:
            self._denials.asked = trio.Event()
            await self._denials.asked.wait()

    async def open(self) -> None:
        """Open the files of a storage that is opened later. The broker runs already.

        Raises:
            ConfigError: as `open_storage`.
        """
        if self._is_shared:
            self._folder.enter_context(hold_data_dir(self._current()))
            return
        stores = await self._stack.enter_async_context(open_stores(self._current))
        await self._replaceable.end()
        self._put_back(stores, stores.broker)

    def _put_back(self, stores: Stores, broker: Broker | None) -> None:
        self.current = broker or self.current
        self._denials.replace(stores.denials)
        self._replaceable.put_back(broker)

    def bar(self) -> None:
        """Answer every call with an error from now on."""
        self._replaceable.bar(_AWAY)
        self._denials.replace(None)

    async def let_go(self) -> None:
        """Close the files, and free their lock, when all that was accepted is committed.

        Every call on `broker` is a `BrokerError` from now on. Not cancelled. Where nodes share the
        engine there is only the lock to let go of: both serve until this one ends.
        """
        if self._is_shared:
            self._folder.close()
            return
        with trio.CancelScope(shield=True):
            self.bar()
            if not self._in_memory:  # that one has no file, and would forget everything
                await self._replaceable.end()
            await self._stack.aclose()

    async def take_again(self) -> None:
        """Open the files again, and answer again.

        Raises:
            BrokerError: they cannot be opened now.
        """
        if self._is_shared:
            try:
                self._folder.enter_context(hold_data_dir(self._current()))
            except ConfigError as error:
                raise BrokerError(str(error)) from None
            return
        await self._stack.aclose()  # if they could not be closed whole
        stack = AsyncExitStack()
        try:
            stores = await stack.enter_async_context(open_stores(self._current))
        except ConfigError as error:
            raise BrokerError(str(error)) from None
        self._stack = stack
        self._put_back(stores, None if self._in_memory else stores.broker)

    async def close(self) -> None:
        """Close what is open."""
        await self._stack.aclose()


class _ReplaceableDenials:
    """Implements `DenialStore` by the one that is open now."""

    def __init__(self, store: DenialStore | None) -> None:
        self._store = store
        self._came = trio.Event()
        self.asked = trio.Event()
        self.waiting = 0

    def replace(self, store: DenialStore | None) -> None:
        self._store = store
        if store is not None:
            self._came.set()
            self._came = trio.Event()

    def _open(self) -> DenialStore:
        if self._store is None:
            raise BrokerError(_AWAY)
        return self._store

    async def load(self) -> Sequence[Denial]:
        # A node that starts waits: it is not ready without the denials. The server's end ends that.
        self.waiting += 1
        self.asked.set()
        try:
            while self._store is None:
                await self._came.wait()
        finally:
            self.waiting -= 1
        return await self._store.load()

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        # No other process changes what is kept in a folder: its lock is ours.
        await trio.sleep_forever()

    async def save(self, denial: Denial) -> None:
        await self._open().save(denial)

    async def sweep(self, now: int) -> None:
        await self._open().sweep(now)


@asynccontextmanager
async def open_storage(
    current: CurrentSettings, *, later: bool = False, for_workers: bool = False
) -> AsyncIterator[Storage]:
    """Open what the settings ask for, for as long as the block lasts.

    If it is to be opened `later`, all calls fail until `Storage.open`, and loading denials waits.
    Workers whose engine is shared open it themselves: then nothing is opened `for_workers`.

    Raises:
        ConfigError: `data_dir` is unusable, or another process uses it.
    """
    with ExitStack() as folder:
        if not later:
            folder.enter_context(hold_data_dir(current()))
        if later or (for_workers and current().engine_in_force == "valkey"):
            storage = Storage(current, _nothing(), AsyncExitStack(), folder)
        else:
            async with AsyncExitStack() as stack:
                stores = await stack.enter_async_context(open_stores(current))
                storage = Storage(current, stores, stack.pop_all(), folder)
        if later:
            storage.bar()
        try:
            yield storage
        finally:
            await storage.close()


def _nothing() -> Stores:
    return Stores(MemoryBroker(), MemoryDenials())
