"""The server: listeners, node, application and the order in which they end.

Shutdown is written down here and not left to Quart's lifespan: stop accepting; finish what was
accepted; ask clients to leave in paced groups; let requests finish; reset whoever is still there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from service import __version__
from service.assembly import Assembly, open_assembly
from service.config import Changes, ConfigError, CurrentSettings, Settings
from service.door import Door, open_listeners
from service.handover import Handover
from service.log import configure_log, get_logger
from service.node import Node
from service.web.app import create_app, open_bundled

_log = get_logger("server")

# Not on every system.
_RELOAD: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)


class ServeError(Exception):
    """The server can't start; the text is one line for whoever started it."""


class Server:
    """A running server. Made and ended by `open_server`."""

    def __init__(self, assembly: Assembly, door: Door, port: int) -> None:
        self.node = assembly.node
        self._assembly = assembly
        self.door = door
        self.port = port
        """The port that it listens on: the one asked for, or the free one for 0."""

    async def reload(self, settings: Settings) -> Changes:
        """Take over what of these can be without a restart; see `Assembly.reload`.

        Raises:
            ConfigError: they are refused, and the old ones stay.
        """
        return await self._assembly.reload(settings)


@asynccontextmanager
async def open_server(settings: Settings) -> AsyncIterator[Server]:
    """Run a server for as long as the block lasts; then shut it down within the configured time.

    Raises:
        ServeError: the address can't be listened on.
        ConfigError: a token key is of no use.
        CommentsError: the bundled application can't start.
    """
    listeners = _listen(settings)
    port = listeners[0].getsockname()[1]
    current = CurrentSettings(settings)
    async with (
        open_assembly(current) as assembly,
        open_bundled(assembly.node, settings) as comments,
        trio.open_nursery() as connections,
    ):
        node = assembly.node
        app = create_app(node, current, comments, door=lambda: door.statistics())
        handover = Handover(app, settings)
        door = Door(node, handover, current)
        with trio.CancelScope() as accepting:
            async with trio.open_nursery() as acceptors:
                for listener in listeners:
                    acceptors.start_soon(door.accept, listener, connections)
                try:
                    yield Server(assembly, door, port)
                finally:
                    accepting.cancel()
                    for listener in listeners:
                        trio.lowlevel.notify_closing(listener)
                        listener.close()
                    await _shut_down(node, handover, door, node.options.shutdown_timeout)
                    connections.cancel_scope.cancel()


def _listen(settings: Settings) -> Sequence[socket.socket]:
    try:
        return open_listeners(settings.host, settings.port, settings.backlog)
    except OSError as error:
        raise ServeError(
            f"cannot listen on {settings.host}:{settings.port}: {_reason(error)}"
        ) from None


def _reason(error: OSError) -> str:
    """The system's words alone; Python adds its own to some."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


async def _shut_down(node: Node, handover: Handover, door: Door, seconds: float) -> None:
    """Everything that is owed to those who are connected, within the shutdown timeout."""
    deadline = trio.current_time() + seconds * 0.8  # the rest is for the cancelled to end
    with trio.CancelScope(shield=True, deadline=deadline):
        await node.shut_down()
        door.drain()
        await handover.drain()
        await door.wait_empty()
    door.abort_all()


async def serve(
    settings: Settings,
    load: Callable[[], Settings] | None = None,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down and return. Starts with the port.

    Args:
        settings: What to begin with.
        load: Reads the settings again at a SIGHUP, those of the log for the whole process.
            Without it that signal keeps its own meaning. May raise ConfigError.
        task_status: Trio's.

    Raises:
        ServeError: the address can't be listened on.
    """
    awaited = [signal.SIGINT, signal.SIGTERM]
    if load is not None and _RELOAD is not None:
        awaited.append(_RELOAD)
    with trio.open_signal_receiver(*awaited) as signals:
        async with open_server(settings) as server:
            _announce(settings, server.port)
            task_status.started(server.port)
            async for number in signals:
                if load is None or number != _RELOAD:
                    _log.info("shutting down", signal=signal.Signals(number).name)
                    break
                await _reload(server, load)
    _log.info("stopped")


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


def _announce(settings: Settings, port: int) -> None:
    """Say what is where, and loudly what is open."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = f"http://{host}:{port}"
    print(
        f"Repeater {__version__} is up on {base}  "
        f"(REST {base}/api/publish, WebSocket ws://{host}:{port}/ws?channel=..., "
        f"Centrifugo SDKs ws://{host}:{port}/connection/websocket, health {base}/health)"
        + (f"\nComments, to try it in a browser: {base}/" if settings.comments_on else ""),
        file=sys.stderr,
        flush=True,
    )
    if settings.dev:
        _log.warning(
            "DEVELOPMENT MODE: anybody on this machine may publish and subscribe, without a key"
        )
    elif settings.api_key is None:
        _log.warning("no api_key: the REST API answers 401 to everybody")
