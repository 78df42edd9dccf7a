"""The server: listeners, node, application and the order in which they end.

`process.py` runs a server until a signal.

Shutdown is written down here and not left to Quart's lifespan: stop accepting; finish what was
accepted; ask clients to leave in paced groups; let requests finish; reset the connections that are
left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Unpack, cast

import trio
from quart import Blueprint

from repeater.config import (
    Changes,
    CurrentSettings,
    ServerSettings,
    Settings,
    given_settings,
    worker_place,
)
from repeater.errors import open_service_nursery
from repeater.front.accept import Acceptor
from repeater.front.hypercorn import Handover
from repeater.front.listeners import ListenError, Listeners, open_all, take_over
from repeater.front.preamble import Preamble
from repeater.front.tls import Certificate, TLSError
from repeater.front.trusted_proxies import TrustedProxies
from repeater.node import Node
from repeater.options import NodeOptions
from repeater.serving.admin_socket import open_admin_socket
from repeater.serving.assembly import Assembly, ServerNodeParts, open_assembly, with_stores
from repeater.serving.data_methods import data_methods
from repeater.serving.errors import ServeError
from repeater.serving.extension import EXTENSION, open_extension
from repeater.web.app import Holder, make_app
from repeater.web.lifespan import open_lifespan

_PATIENCE: Final = 1.0  # seconds for peers to notice that another server accepts connections
_PAGES_END: Final = 0.1  # of the shutdown timeout, for Quart's hooks behind the last request


class ServerParts(ServerSettings, ServerNodeParts, total=False):
    """What `open_server` takes by name."""


class Server:
    """A running server. Made and ended by `open_server`."""

    def __init__(
        self,
        assembly: Assembly,
        acceptor: Acceptor,
        listeners: Listeners,
        preamble: Preamble,
        shutdown: trio.CancelScope,
    ) -> None:
        self.node = assembly.node
        self._assembly = assembly
        self.listeners = listeners
        self._shutdown = shutdown
        self.acceptor = acceptor
        self.port = listeners.port
        """The first port that it listens on: the one asked for, or the free one for 0; 0 where
        it listens on Unix sockets only."""
        self.endpoints = listeners.endpoints()
        self.patience = 0.0
        """Seconds for which the shutdown lets peers notice that another server accepts now."""
        self.certificate = preamble.certificate
        """What TLS shows new connections; None without TLS."""

    async def reload(self, settings: Settings) -> Changes:
        """Apply the settings that need no restart; see `Assembly.reload`.

        Raises:
            ConfigError: the new settings are refused, and the old ones stay in force.
        """
        return await self._assembly.reload(settings)

    def hand_over(self) -> None:
        """Let the peers notice, in the shutdown that comes, that another server accepts now.

        That one has the listening sockets, too; see `Acceptor.move_on`.
        """
        self.patience = _PATIENCE

    def abort(self) -> None:
        """Let the shutdown, also one that comes, wait for nobody: as if its time were over.

        Connections are reset, and events that are not yet delivered are dropped.
        """
        self._shutdown.cancel("the shutdown waits no longer")
        if self.node.events is not None:
            self.node.events.shut_down_by(trio.current_time())


@asynccontextmanager
async def open_server(
    options: NodeOptions | Settings | None = None,
    *,
    blueprints: Sequence[Blueprint] = (),
    listeners: Listeners | None = None,
    current: CurrentSettings | None = None,
    before_accepting: Callable[[], Awaitable[None]] | None = None,
    **more: Unpack[ServerParts],
) -> AsyncIterator[Server]:
    """Run a server for as long as the block lasts; then shut it down within the configured time.

    Reads neither a file nor the environment. To use these, pass the result of `load_settings()`.
    An error of the block comes out as it is (see `open_service_nursery`).

    Args:
        options: The node's options, or all settings of a server.
        blueprints: One's own pages, served by Quart-Trio beside Repeater's routes; a route of
            theirs wins. What belongs to subscribers and to `/api/` keeps its native path. Quart's
            hooks around serving and its background tasks run.
        listeners: Open ones, instead of those that the settings say. The server closes them.
        current: Holds the settings in force, from a caller whose parts follow them; they are
            `options`.
        before_accepting: Awaited once, when everything else is ready.
        more: Settings of the server by their names, `port=0` for a free port, and parts of the
            node as `open_node` takes them, `broker=...`.

    Raises:
        ServeError: the certificate is unusable, or the server cannot listen on an address.
        ConfigError: a setting or a token key is unusable.
        ExtensionError: the application that the settings ask for cannot start.
    """
    parts, chosen = _split(more)
    own_backend = parts.get("backend") is not None
    settings = given_settings(options, own_backend=own_backend, **chosen)
    preamble = _make_preamble(settings)
    current = current or CurrentSettings(settings)
    async with (
        # Loaded before it listens: nobody connects to a server that cannot answer yet.
        with_stores(current, parts) as kept,
        _listening(settings, listeners) as listeners,
        open_assembly(current, **kept) as assembly,
        open_extension(assembly.node, settings) as running,
        open_service_nursery() as connections,
    ):
        node = assembly.node
        if EXTENSION.is_on(settings):
            blueprints = (*blueprints, *EXTENSION.blueprints(lambda: running))
        holder = Holder(node, lambda: acceptor.statistics())
        app = make_app(holder, current, blueprints)
        handover = Handover(
            app,
            settings,
            preamble.proxies,
            turns=node.turns,
            failures=node.failures,
            refusals=node.refusals,
        )
        acceptor = Acceptor(node, handover, current, preamble)
        shutdown = trio.CancelScope(shield=True)
        server = Server(assembly, acceptor, listeners, preamble, shutdown)
        async with (
            open_lifespan(app, node.options.shutdown_timeout * _PAGES_END),
            open_admin_socket(
                _asked_in(settings, parts), data_methods(lambda: node.broker), node.failures
            ),
        ):
            try:
                if before_accepting is not None:
                    await before_accepting()
                async with open_service_nursery() as acceptors:
                    for listener in listeners.sockets:
                        acceptors.start_soon(acceptor.accept, listener, connections)
                    yield server
            finally:
                listeners.close()
                with shutdown:
                    if server.patience:
                        await acceptor.move_on(server.patience)
                    await _shut_down(node, handover, acceptor, shutdown)
                acceptor.abort_all()


def _asked_in(settings: Settings, parts: ServerNodeParts) -> Path | None:
    """The data directory, if this server holds it: a worker's, or a program's own, is another's."""
    return None if parts.keys() & {"broker", "denials"} else settings.kept_in


def _split(more: ServerParts) -> tuple[ServerNodeParts, ServerSettings]:
    """Tell the parts of the node from the settings of the server."""
    parts = {name: one for name, one in more.items() if name in ServerNodeParts.__annotations__}
    chosen = {name: one for name, one in more.items() if name not in parts}
    return cast("ServerNodeParts", parts), cast("ServerSettings", chosen)


def _make_preamble(settings: Settings) -> Preamble:
    certificate = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        try:
            certificate = Certificate(settings.tls_cert, settings.tls_key)
        except TLSError as error:
            raise ServeError(f"cannot serve TLS: {error}") from None
    proxies = TrustedProxies(settings.trusted_proxies, settings.forwarded_header)
    return Preamble(certificate, proxies, proxy_protocol=settings.proxy_protocol)


@asynccontextmanager
async def _listening(settings: Settings, given: Listeners | None) -> AsyncIterator[Listeners]:
    """Open the listeners, and close them at the end of the block, also if the start fails.

    A worker has those that its supervisor opened.
    """
    place = worker_place()
    try:
        if given is not None:
            listeners = given
        else:
            listeners = take_over(place.listeners) if place else open_all(settings, Listeners())
    except ListenError as error:
        raise ServeError(str(error)) from None
    try:
        yield listeners
    finally:
        listeners.close()


async def _shut_down(
    node: Node, handover: Handover, acceptor: Acceptor, scope: trio.CancelScope
) -> None:
    """Finish what is owed to the connected clients, within the shutdown timeout."""
    seconds = node.options.shutdown_timeout * 0.8  # the rest is for the cancelled to end
    scope.deadline = trio.current_time() + seconds
    await node.shut_down()
    acceptor.drain()
    await handover.drain()
    await acceptor.wait_empty()
