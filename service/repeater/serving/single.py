"""A server of one process: with its stores, the admin socket, and the way to the next server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from repeater.config import CurrentSettings, Settings
from repeater.failures import Failures
from repeater.front.listeners import AnyListeners, ListenError, Listeners, open_all
from repeater.front.passed_sockets import PassedSocket
from repeater.serving.admin_socket import AdminMethod, open_admin_socket
from repeater.serving.assembly import parts_of
from repeater.serving.data_methods import data_methods
from repeater.serving.errors import ServeError
from repeater.serving.predecessor import open_predecessor
from repeater.serving.server import Server, open_server
from repeater.serving.storage import Storage, open_storage
from repeater.serving.successor import METHOD, Successor


@asynccontextmanager
async def open_single(
    settings: Settings, leave: Callable[[], None], *, take_over: bool = False
) -> AsyncIterator[Server]:
    """Run a server, and answer commands in its data directory, for as long as the block lasts.

    Args:
        settings: All of them.
        leave: Ends the block, when another server has taken over.
        take_over: Whether to ask the running server of the data directory for everything.

    Raises:
        ServeError, ConfigError, ExtensionError: as `open_server`; ServeError also if the running
            server refuses or does not answer.
    """
    current = CurrentSettings(settings)
    folder = settings.kept_in
    async with AsyncExitStack() as stack:
        listeners = None
        predecessor = await stack.enter_async_context(open_predecessor(settings, wanted=take_over))
        if predecessor is not None:
            listeners = listen(settings, Listeners(predecessor.sockets))
            stack.callback(listeners.close)
            await predecessor.let_go()
        storage = await stack.enter_async_context(open_storage(current))
        parts = parts_of(storage.stores)
        parts.update({"broker": storage.broker, "denials": storage.denials})
        server = await stack.enter_async_context(
            open_server(
                settings,
                current=current,
                listeners=listeners,
                before_accepting=None if predecessor is None else predecessor.commit,
                **parts,
            )
        )
        server.listeners.own_files()
        if folder is not None:
            # Not earlier: until it has committed, the server before this one is asked there.
            def end() -> None:
                server.hand_over()
                leave()

            handoff = ServerHandoff(server.listeners, storage, end)
            await stack.enter_async_context(_answering(folder, storage, Successor(handoff)))
        yield server


def listen(settings: Settings, listeners: AnyListeners) -> AnyListeners:
    """As `open_all`.

    Raises:
        ServeError: the server cannot listen where the settings say.
    """
    try:
        return open_all(settings, listeners)
    except ListenError as error:
        raise ServeError(str(error)) from None


@asynccontextmanager
async def _answering(folder: Path, storage: Storage, successor: Successor) -> AsyncIterator[None]:
    methods: Mapping[str, AdminMethod] = {
        **data_methods(lambda: storage.current),
        METHOD: successor.take_over,
    }
    async with open_admin_socket(folder, methods, Failures()):
        try:
            yield
        finally:
            successor.end()


class ServerHandoff:
    """Implements `Handoff`: what a server of one process or more gives to the next one."""

    def __init__(self, listeners: Listeners, storage: Storage, leave: Callable[[], None]) -> None:
        """Call `leave` for the end of the server."""
        self._listeners = listeners
        self._storage = storage
        self._leave = leave

    def passable(self) -> Sequence[PassedSocket]:
        """See `Handoff`."""
        return self._listeners.passable()

    async def let_go(self) -> None:
        """See `Handoff`."""
        await self._storage.let_go()

    async def take_again(self) -> None:
        """See `Handoff`."""
        await self._storage.take_again()

    def leave(self) -> None:
        """See `Handoff`."""
        self._listeners.leave_files()
        self._leave()
