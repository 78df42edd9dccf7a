"""The server as a process of its own: it serves until a signal, reloads at one, and says so."""

from __future__ import annotations

import platform
import signal
from collections.abc import AsyncIterator, Callable, Sequence

import trio

from repeater import __version__
from repeater.config import ConfigError, Settings
from repeater.config.endpoints import Endpoint
from repeater.errors import open_service_nursery
from repeater.front.tls import TLSError
from repeater.log import configure_log, get_logger, say
from repeater.serving.early_signals import RELOAD, STOP
from repeater.serving.extension import EXTENSION
from repeater.serving.python_version import safer_version
from repeater.serving.server import Server, open_server

_log = get_logger("server")

_Load = Callable[[], Settings]


async def serve(
    settings: Settings,
    load: _Load | None = None,
    *,
    earlier: Callable[[], Sequence[int]] = tuple,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down and return. Starts with the port.

    A second SIGINT or SIGTERM cuts the shutdown short. One that comes before the server is ready
    ends the start. A SIGHUP before that is obeyed once the server is ready; during the shutdown it
    is ignored. With TLS, SIGHUP has the certificate read again in any case.

    Args:
        settings: What to begin with.
        load: Reads the settings again at a SIGHUP, those of the log for the whole process.
            Without it, and without TLS, that signal keeps its own meaning. May raise ConfigError.
        earlier: Gives the signals that the program received before it called.
        task_status: Trio's.

    Raises:
        ServeError: the server cannot listen on the address.
    """
    awaited = list(STOP)
    if RELOAD is not None and not (load is None and settings.tls_cert is None):
        awaited.append(RELOAD)
    run = _Run(settings, load)
    with trio.open_signal_receiver(*awaited) as signals:
        for number in earlier():
            run.take(number)
        async with open_service_nursery() as nursery:
            nursery.start_soon(run.follow, signals)
            await run.serve(task_status)
    _log.info("stopped")


class _Run:
    """A server from its start to its end, and the signals meanwhile. Lives inside `serve`."""

    def __init__(self, settings: Settings, load: _Load | None) -> None:
        self._settings = settings
        self._load = load
        self._server: Server | None = None
        self._all = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._stopping = False
        self._reload_asked = trio.Event()

    async def follow(self, signals: AsyncIterator[int]) -> None:
        """Take the signals until cancelled, with no deadline: most servers never get one."""
        async for number in signals:
            self.take(number)

    def take(self, number: int) -> None:
        """Do what the signal asks for."""
        name = signal.Signals(number).name
        if number == RELOAD:
            if self._stopping:
                _log.info("ignored during the shutdown", signal=name)
            self._reload_asked.set()
        elif not self._stopping:
            _log.info("shutting down", signal=name)
            self._stopping = True
            if self._server is None:
                self._all.cancel("a signal before the server is ready")
            else:
                self._serving.cancel("a signal")
        else:
            _log.warning("ending without waiting for anybody", signal=name)
            if self._server is not None:
                self._server.abort()
            self._all.cancel("a second signal")

    async def serve(self, task_status: trio.TaskStatus[int]) -> None:
        """Serve until a signal, and obey those that ask to reload."""
        with self._all:
            async with open_server(self._settings) as server:
                self._server = server
                _announce(self._settings, server.endpoints)
                task_status.started(server.port)
                with self._serving:
                    while True:  # no deadline: until a signal comes
                        await self._reload_asked.wait()
                        self._reload_asked = trio.Event()
                        _reload_certificate(server)
                        if self._load is not None:
                            await _reload(server, self._load)


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
    say(*lines)
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
