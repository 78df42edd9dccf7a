"""The server as a process of its own: it serves until a signal, reloads at one, and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from repeater.config import Settings
from repeater.errors import open_service_nursery
from repeater.log import get_logger
from repeater.serving.early_signals import RELOAD, STOP
from repeater.serving.greeting import greet
from repeater.serving.notify import open_notifier
from repeater.serving.run import Load, Run
from repeater.serving.server import Server
from repeater.serving.single import open_single

_log = get_logger("server")


async def serve(
    settings: Settings,
    load: Load | None = None,
    *,
    take_over: bool = False,
    earlier: Callable[[], Sequence[int]] = tuple,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down and return. Starts with the port.

    A second SIGINT or SIGTERM cuts the shutdown short. One that comes before the server is ready
    ends the start. A SIGHUP before that is obeyed once the server is ready; during the shutdown it
    is ignored. With TLS, SIGHUP has the certificate read again in any case. systemd is told of the
    server's state if it asked for that.

    Args:
        settings: What to begin with.
        load: Reads the settings again at a SIGHUP, those of the log for the whole process.
            Without it, and without TLS, that signal keeps its own meaning. May raise ConfigError.
        take_over: Whether to take over from the running server of the data directory, if there is
            one, without refusing a connection.
        earlier: Gives the signals that the program received before it called.
        task_status: Trio's.

    Raises:
        ServeError: the server cannot listen on the address, or cannot take over.
    """
    awaited = list(STOP)
    if RELOAD is not None and not (load is None and settings.tls_cert is None):
        awaited.append(RELOAD)
    notifier = open_notifier()
    run = Run(load, notifier)
    loading = trio.CancelScope()

    def ready(server: Server) -> None:
        loading.cancel("the server is ready")
        if take_over:
            notifier.is_main()
        greet(settings, server.endpoints)
        task_status.started(server.port)

    def leave() -> None:
        notifier.mute()  # The service goes on, with another process.
        run.stop(reason="another server has taken over")

    with trio.open_signal_receiver(*awaited) as signals:
        for number in earlier():
            run.take(number)
        async with open_service_nursery() as nursery:
            nursery.start_soon(run.follow, signals)
            nursery.start_soon(notifier.extend, loading)
            nursery.start_soon(notifier.watch, lambda: True)
            await run.serve(ready, open_single(settings, leave, take_over=take_over))
    _log.info("stopped")
