"""The server: listeners, node, application and the order in which they end.

Shutdown is written down here and not left to Quart's lifespan: stop accepting; finish what was
accepted; ask clients to leave in paced groups; let requests finish; reset the connections that are
left.
"""

from __future__ import annotations

import platform
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Unpack, cast

import trio
from quart import Blueprint

from repeater import __version__
from repeater.config import (
    Changes,
    ConfigError,
    CurrentSettings,
    ServerSettings,
    Settings,
    given_settings,
)
from repeater.config.endpoints import Endpoint
from repeater.errors import RepeaterError, open_service_nursery
from repeater.front.accept import Acceptor
from repeater.front.hypercorn import Handover
from repeater.front.listeners import ListenError, Listeners, open_all
from repeater.front.preamble import Preamble
from repeater.front.tls import Certificate, TLSError
from repeater.front.trusted_proxies import TrustedProxies
from repeater.log import configure_log, get_logger
from repeater.node import Node
from repeater.options import NodeOptions
from repeater.serving.application import create_app
from repeater.serving.assembly import Assembly, NodeParts, open_assembly
from repeater.serving.extension import EXTENSION, open_extension
from repeater.serving.python_version import safer_version
from repeater.web.lifespan import open_lifespan

_log = get_logger("server")

# Not on every system.
_RELOAD: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)


_PAGES_END: Final = 0.1  # of the shutdown timeout, for Quart's hooks behind the last request


class ServerParts(ServerSettings, NodeParts, total=False):
    """What `open_server` takes by name."""


class ServeError(RepeaterError):
    """The server cannot start; the text is one line for the user who started it."""


class Server:
    """A running server. Made and ended by `open_server`."""

    def __init__(
        self, assembly: Assembly, acceptor: Acceptor, listeners: Listeners, preamble: Preamble
    ) -> None:
        self.node = assembly.node
        self._assembly = assembly
        self.acceptor = acceptor
        self.port = listeners.port
        """The first port that it listens on: the one asked for, or the free one for 0; 0 where
        it listens on Unix sockets only."""
        self.endpoints = listeners.endpoints()
        self.certificate = preamble.certificate
        """What TLS shows new connections; None without TLS."""

    async def reload(self, settings: Settings) -> Changes:
        """Apply the settings that need no restart; see `Assembly.reload`.

        Raises:
            ConfigError: the new settings are refused, and the old ones stay in force.
        """
        return await self._assembly.reload(settings)


@asynccontextmanager
async def open_server(
    options: NodeOptions | Settings | None = None,
    *,
    blueprints: Sequence[Blueprint] = (),
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
        more: Settings of the server by their names, `port=0` for a free port, and parts of the
            node as `open_node` takes them, `broker=...`.

    Raises:
        ServeError: the certificate is unusable, or the server cannot listen on an address.
        ConfigError: a setting or a token key is unusable.
        ExtensionError: the application that the settings ask for cannot start.
    """
    parts, chosen = _split(more)
    settings = given_settings(options, **chosen)
    preamble = _make_preamble(settings)
    current = CurrentSettings(settings)
    async with (
        _listening(settings) as listeners,
        open_assembly(current, **parts) as assembly,
        open_extension(assembly.node, settings) as running,
        open_service_nursery() as connections,
    ):
        node = assembly.node
        if EXTENSION.is_on(settings):
            blueprints = (*blueprints, *EXTENSION.blueprints(lambda: running))
        app = create_app(node, current, blueprints, acceptor=lambda: acceptor.statistics())
        handover = Handover(
            app, settings, preamble.proxies, turns=node.turns, failures=node.failures
        )
        acceptor = Acceptor(node, handover, current, preamble)
        async with open_lifespan(app, node.options.shutdown_timeout * _PAGES_END):
            try:
                async with open_service_nursery() as acceptors:
                    for listener in listeners.sockets:
                        acceptors.start_soon(acceptor.accept, listener, connections)
                    yield Server(assembly, acceptor, listeners, preamble)
            finally:
                listeners.close()
                await _shut_down(node, handover, acceptor, node.options.shutdown_timeout)


def _split(more: ServerParts) -> tuple[NodeParts, ServerSettings]:
    """Tell the parts of the node from the settings of the server."""
    parts = {name: one for name, one in more.items() if name in NodeParts.__annotations__}
    chosen = {name: one for name, one in more.items() if name not in parts}
    return cast("NodeParts", parts), cast("ServerSettings", chosen)


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
async def _listening(settings: Settings) -> AsyncIterator[Listeners]:
    """Open the listeners, and close them at the end of the block, also if the start fails."""
    try:
        listeners = open_all(settings)
    except ListenError as error:
        raise ServeError(str(error)) from None
    try:
        yield listeners
    finally:
        listeners.close()


async def _shut_down(node: Node, handover: Handover, acceptor: Acceptor, seconds: float) -> None:
    """Finish what is owed to the connected clients, within the shutdown timeout."""
    deadline = trio.current_time() + seconds * 0.8  # the rest is for the cancelled to end
    with trio.CancelScope(shield=True, deadline=deadline):
        await node.shut_down()
        acceptor.drain()
        await handover.drain()
        await acceptor.wait_empty()
    acceptor.abort_all()


async def serve(
    settings: Settings,
    load: Callable[[], Settings] | None = None,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down and return. Starts with the port.

    With TLS, SIGHUP has the certificate read again in any case.

    Args:
        settings: What to begin with.
        load: Reads the settings again at a SIGHUP, those of the log for the whole process.
            Without it, and without TLS, that signal keeps its own meaning. May raise ConfigError.
        task_status: Trio's.

    Raises:
        ServeError: the server cannot listen on the address.
    """
    awaited = [signal.SIGINT, signal.SIGTERM]
    if _RELOAD is not None and not (load is None and settings.tls_cert is None):
        awaited.append(_RELOAD)
    with trio.open_signal_receiver(*awaited) as signals:
        async with open_server(settings) as server:
            _announce(settings, server.endpoints)
            task_status.started(server.port)
            async for number in signals:
                if number != _RELOAD:
                    _log.info("shutting down", signal=signal.Signals(number).name)
                    break
                _reload_certificate(server)
                if load is not None:
                    await _reload(server, load)
    _log.info("stopped")


def _reload_certificate(server: Server) -> None:
    if server.certificate is None:
        return
    try:
        server.certificate.reload()
    except TLSError as error:
        _log.error("the new certificate is refused, the old one stays", reason=str(error))
    else:
        _log.info("the certificate was read again")


async def _reload(server: Server, load: Callable[[], Settings]) -> None:
    """Read the configuration again, and say in one line what came of it. Names, no values."""
    try:
        settings = load()
        changes = await server.reload(settings)
    except ConfigError as error:
        refusal = "the new configuration is refused, the old one stays"
        _log.error(refusal, mistakes=list(error.lines))
        return
    configure_log(settings.log_level, settings.log_format)
    say = _log.warning if changes.restart else _log.info
    say(
        "the configuration was read again",
        applied=list(changes.live),
        needs_restart=list(changes.restart),
    )


def _announce(settings: Settings, endpoints: Sequence[Endpoint]) -> None:
    """Say what is where, and loudly what is open."""
    secure = "s" if settings.tls_cert is not None else ""
    bases = [
        f"{endpoint}" if endpoint.path else f"http{secure}://{endpoint}" for endpoint in endpoints
    ]
    reachable = [endpoint for endpoint in endpoints if not endpoint.path]
    lines = [f"Repeater {__version__} is up on {' and '.join(bases)}"]
    if reachable:
        base, socket_base = f"http{secure}://{reachable[0]}", f"ws{secure}://{reachable[0]}"
        lines[0] += (
            f"  (REST {base}/api/publish, WebSocket {socket_base}/ws?channel=..., "
            f"Centrifugo SDKs {socket_base}/connection/websocket, health {base}/health)"
        )
        if EXTENSION.is_on(settings):
            lines.append(EXTENSION.greeting(base))
    print(*lines, sep="\n", file=sys.stderr, flush=True)
    if notice := EXTENSION.notice(settings):
        _log.info(notice)
    if safer := safer_version():
        running = platform.python_version()
        _log.warning("this Python has known faults", running=running, least=safer)
    if settings.dev:
        _log.warning(
            "DEVELOPMENT MODE: anybody on this machine may publish and subscribe, without a key"
        )
    elif settings.api_key is None:
        _log.warning("no api_key: the REST API answers 401 to everybody")
