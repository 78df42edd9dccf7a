"""One server from its start to its end, and what signals do to it meanwhile."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

import trio

from repeater.config import Changes, ConfigError, Settings
from repeater.front.tls import TLSError
from repeater.log import configure_log, get_logger
from repeater.serving.early_signals import CUT, RELOAD
from repeater.serving.server import Server

if TYPE_CHECKING:
    import structlog

_log = get_logger("server")

Load = Callable[[], Settings]
"""Reads the settings again. May raise ConfigError."""


OpenedServer = AbstractAsyncContextManager[Server]


class Told(Protocol):
    """Who is told how far a server is: systemd, or the supervisor of a worker."""

    def reloading(self) -> None:
        """The server begins to read its configuration again."""

    def ready(self) -> None:
        """The server listens, or has read its configuration again."""

    def stopping(self) -> None:
        """The server begins to shut down."""


class Run:
    """Lives inside the function that receives the process's signals."""

    def __init__(self, load: Load | None, told: Told, *, has_supervisor: bool = False) -> None:
        """Keep what is needed.

        Args:
            load: Reads the settings again at a SIGHUP; None to leave them as they are.
            told: Is told how far the server is.
            has_supervisor: Whether the process is a worker. Then a second signal to stop, as
                systemd may send it beside the supervisor, cuts nothing short: `CUT` does.
        """
        self._load = load
        self._told = told
        self._has_supervisor = has_supervisor
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
        elif number == CUT or (self._stopping and not self._has_supervisor):
            self._cut(name)
        else:
            self.stop(signal=name)

    def stop(self, **why: str) -> None:
        """Begin the shutdown; of a server that is not ready, end the start. Idempotent."""
        if self._stopping:
            return
        _log.info("shutting down", **why)
        self._stopping = True
        self._told.stopping()
        if self._server is None:
            self._all.cancel("the end before the server is ready")
        else:
            if self._has_supervisor:  # which has the sockets, and another worker accepts from them
                self._server.hand_over()
            self._serving.cancel("the end")

    def _cut(self, name: str) -> None:
        _log.warning("ending without waiting for anybody", signal=name)
        self._stopping = True
        if self._server is not None:
            self._server.abort()
        self._all.cancel("a second signal")

    async def serve(self, ready: Callable[[Server], None], opened: OpenedServer) -> None:
        """Serve until `stop`, and obey the signals that ask to reload.

        Args:
            ready: Is called once the server listens, before the others are told.
            opened: Opens the server for the time of the block.
        """
        with self._all:
            async with opened as server:
                self._server = server
                ready(server)
                self._told.ready()
                with self._serving:
                    while True:  # no deadline: until a signal comes
                        await self._reload_asked.wait()
                        self._reload_asked = trio.Event()
                        self._told.reloading()
                        _reload_certificate(server)
                        if self._load is not None:
                            await _reload(server, self._load)
                        self._told.ready()


def _reload_certificate(server: Server) -> None:
    if server.certificate is None:
        return
    try:
        server.certificate.reload()
    except TLSError as error:
        _log.error("the new certificate is refused, the old one stays", reason=str(error))
    else:
        _log.info("the certificate was read again")


async def _reload(server: Server, load: Load) -> None:
    """Read the configuration again, and say in one line what came of it. Names, no values."""
    try:
        settings = load()
        changes = await server.reload(settings)
    except ConfigError as error:
        say_refused(_log, error)
    else:
        configure_log(settings.log_level, settings.log_format)
        say_reloaded(_log, changes)


def say_refused(log: structlog.stdlib.BoundLogger, error: ConfigError) -> None:
    """Log why a configuration that was read again is not used."""
    refusal = "the new configuration is refused, the old one stays"
    log.error(refusal, mistakes=list(error.lines))


def say_reloaded(log: structlog.stdlib.BoundLogger, changes: Changes) -> None:
    """Log what changed, by the names of the settings."""
    say = log.warning if changes.restart else log.info
    say(
        "the configuration was read again",
        applied=list(changes.live),
        needs_restart=list(changes.restart),
    )
