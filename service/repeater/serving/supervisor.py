"""The process in front of several workers: it holds what they share, and serves no client itself.

It opens the listening sockets, starts the workers, and answers their calls on broker and presence.
A signal to it is a signal to all of them. If it dies, the workers read the end of their links, ask
their clients to leave, and end.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from repeater.config import ConfigError, Settings, reloadable, with_live_of
from repeater.errors import open_service_nursery
from repeater.failures import Failures
from repeater.front.tls import Certificate, TLSError
from repeater.front.worker_listeners import WorkerListeners
from repeater.log import configure_log, get_logger
from repeater.serving.admin_call import AdminError
from repeater.serving.admin_socket import open_admin_socket
from repeater.serving.data_methods import data_methods
from repeater.serving.early_signals import RELOAD, STOP
from repeater.serving.errors import ServeError, WorkersError
from repeater.serving.greeting import greet
from repeater.serving.notify import open_notifier
from repeater.serving.orphans import reap_orphans
from repeater.serving.predecessor import Predecessor, open_predecessor
from repeater.serving.run import say_refused, say_reloaded
from repeater.serving.shared import Shared, open_shared
from repeater.serving.single import ServerHandoff, listen
from repeater.serving.successor import METHOD, Successor
from repeater.serving.workers import Workers

if TYPE_CHECKING:
    from repeater.backend.events import EventQueue
    from repeater.serving.admin_socket import Conversation
    from repeater.workers.exchange import Exchange

_log = get_logger("supervisor")

_WORKERS_UNTIL: Final = 0.9  # parts of the shutdown timeout; workers take 0.8 of it
_EVENTS_UNTIL: Final = 0.95  # part of the shutdown timeout, as in a single process


async def supervise(
    settings: Settings,
    load: Callable[[], Settings],
    workers: int,
    *,
    command: Sequence[str] = (),
    take_over: bool = False,
    earlier: Callable[[], Sequence[int]] = tuple,
) -> None:
    """Serve with workers until SIGINT or SIGTERM, then shut them down and return.

    Signals mean what they mean for `process.serve`, and are obeyed by all workers.

    Args:
        settings: What to begin with.
        load: Reads the settings again at a SIGHUP, those of the log for this process.
        workers: Their number.
        command: What a worker runs, program and arguments; by default what this process runs.
        take_over: As of `process.serve`.
        earlier: Gives the signals that the program received before it called.

    Raises:
        ServeError: the server cannot listen on the address, or a worker cannot start.
        WorkersError: five workers have died within a minute.
    """
    command = command or _this_command()
    supervisor = Supervisor(settings, load, workers, command, take_over=take_over)
    awaited = [*STOP, *(() if RELOAD is None else (RELOAD,))]
    with trio.open_signal_receiver(*awaited) as signals:
        for number in earlier():
            supervisor.take(number)
        async with open_service_nursery() as nursery:
            nursery.start_soon(supervisor.follow, signals)
            await supervisor.run()
    _log.info("stopped")


def _this_command() -> Sequence[str]:
    """The command of this process: its interpreter's options, program and arguments."""
    return [sys.executable, *sys.orig_argv[1:]]


class Supervisor:
    """Lives inside `supervise`."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        count: int,
        command: Sequence[str],
        *,
        take_over: bool = False,
    ) -> None:
        self._settings = settings
        self._load = load
        self._count = count
        self._command = command
        self._take_over = take_over
        self._notifier = open_notifier()
        self._listeners = WorkerListeners(count)
        self._workers: Workers | None = None
        self._events: EventQueue | None = None
        self._all = trio.CancelScope()
        self._stop_asked = trio.Event()
        self._reload_asked = trio.Event()

    async def follow(self, signals: AsyncIterator[int]) -> None:
        """Take the signals until cancelled, with no deadline: most servers never get one."""
        async for number in signals:
            self.take(number)

    def take(self, number: int) -> None:
        """Do what the signal asks for."""
        name = signal.Signals(number).name
        if number == RELOAD:
            if self._stop_asked.is_set():
                _log.info("ignored during the shutdown", signal=name)
            self._reload_asked.set()
        elif not self._stop_asked.is_set():
            _log.info("shutting down", signal=name)
            self._stop()
        else:
            _log.warning("ending without waiting for anybody", signal=name)
            self._deliver_until(0.0)
            if self._workers is not None:
                self._workers.cut()

    def _stop(self) -> None:
        """Begin the shutdown; before there are workers, end the start. Idempotent."""
        if self._stop_asked.is_set():
            return
        self._stop_asked.set()
        self._notifier.stopping()
        self._listeners.close()
        self._deliver_until(self._settings.node_options().shutdown_timeout * _EVENTS_UNTIL)
        if self._workers is None:
            self._all.cancel("the end before there are workers")
        else:
            self._workers.stop()

    def _give_way(self) -> None:
        """End this server: another one has its sockets, and serves."""
        self._notifier.mute()
        _log.info("shutting down", reason="another server has taken over")
        self._stop()

    def _deliver_until(self, seconds: float) -> None:
        """Drop the events that the back end has not taken by then."""
        if self._events is not None:
            self._events.shut_down_by(trio.current_time() + seconds)

    async def run(self) -> None:
        """Serve until `_stop`."""
        _check_certificate(self._settings)
        with self._all:
            async with (
                self._open_listeners() as predecessor,
                self._open_shared(later=predecessor is not None) as shared,
                open_service_nursery() as nursery,
            ):
                exchange, self._events = shared.exchange, shared.events
                self._workers = workers = Workers(
                    self._count,
                    self._command,
                    lambda: self._settings,
                    self._listeners,
                    exchange.attach,
                    self._stop,
                )
                if predecessor is None:
                    await nursery.start(self._answer, shared)
                else:
                    workers.may_accept = trio.Event()
                nursery.start_soon(self._greet, workers, shared, predecessor, nursery)
                nursery.start_soon(self._obey_reloads, workers)
                nursery.start_soon(self._end_in_time, workers)
                nursery.start_soon(self._notifier.watch, lambda: self._all_answer(exchange))
                nursery.start_soon(reap_orphans, lambda: workers.processes)
                await workers.run()

    @asynccontextmanager
    async def _open_shared(self, *, later: bool) -> AsyncIterator[Shared]:
        """Open what the workers share; systemd waits as long as that takes."""
        loading = trio.CancelScope()
        async with open_service_nursery() as nursery:
            nursery.start_soon(self._notifier.extend, loading)
            async with open_shared(self._settings, self._count, later=later) as shared:
                loading.cancel("what the workers share is open")
                yield shared

    def _all_answer(self, exchange: Exchange) -> bool:
        """Whether systemd's watchdog is to be told that all is well."""
        return exchange.silence < self._settings.worker_timeout / 2

    async def _restart(self, _params: dict[str, Any], conversation: Conversation) -> object:
        """Replace the workers one by one, for `repeater workers restart`."""
        if self._workers is None or not self._workers.ready.is_set():
            raise AdminError("the workers are still being started")
        try:
            await self._workers.restart(conversation.say)
        except WorkersError as error:
            raise AdminError(str(error)) from None
        return {}

    @asynccontextmanager
    async def _open_listeners(self) -> AsyncIterator[Predecessor | None]:
        """Listen where the settings say; first ask the server before this one, if that is wanted.

        Gives that server, which serves on.
        """
        async with open_predecessor(self._settings, wanted=self._take_over) as predecessor:
            if predecessor is not None:
                self._listeners.passed = predecessor.sockets
            listen(self._settings, self._listeners)
            try:
                yield predecessor
            finally:
                self._listeners.close()

    async def _answer(
        self, shared: Shared, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer commands in the data directory, until cancelled."""
        successor = Successor(ServerHandoff(self._listeners, shared.storage, self._give_way))
        asked = {
            **data_methods(lambda: shared.storage.current),
            "workers.restart": self._restart,
            METHOD: successor.take_over,
        }
        async with open_admin_socket(self._settings.kept_in, asked, Failures()):
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                successor.end()

    async def _greet(
        self,
        workers: Workers,
        shared: Shared,
        predecessor: Predecessor | None,
        nursery: trio.Nursery,
    ) -> None:
        """Say that the server is up, once every worker listens."""
        if predecessor is not None:
            # As late as that: nobody can publish until the new workers are ready.
            await shared.storage.wait_asked(self._count)
            await predecessor.let_go()
            await shared.storage.open()
        await workers.ready.wait()
        if predecessor is not None:
            await predecessor.commit()
            workers.may_accept.set()
            self._listeners.own_files()
            self._notifier.is_main()
            await nursery.start(self._answer, shared)
        greet(self._settings, self._listeners.endpoints(), self._count)
        self._notifier.ready()

    async def _end_in_time(self, workers: Workers) -> None:
        """Kill the workers that have not ended when the shutdown's time is over."""
        await self._stop_asked.wait()
        await trio.sleep(self._settings.node_options().shutdown_timeout * _WORKERS_UNTIL)
        workers.kill()

    async def _obey_reloads(self, workers: Workers) -> None:
        """Read the configuration again whenever a signal asks for it, until cancelled."""
        await workers.ready.wait()
        while True:
            await self._reload_asked.wait()
            self._reload_asked = trio.Event()
            if self._stop_asked.is_set():
                return
            self._notifier.reloading()
            self._reload()
            with trio.move_on_after(self._settings.worker_timeout):
                await workers.reload()
            self._notifier.ready()

    def _reload(self) -> None:
        """Take over what workers that start from now on are to know, and say so in one line."""
        try:
            new = self._load()
            changes = reloadable(self._settings, new)
            self._settings = with_live_of(self._settings, new)
        except ConfigError as error:
            say_refused(_log, error)
        else:
            configure_log(self._settings.log_level, self._settings.log_format)
            say_reloaded(_log, changes)


def _check_certificate(settings: Settings) -> None:
    """Find a mistake before a worker finds it.

    Raises:
        ServeError: the certificate or its key is unusable.
    """
    if settings.tls_cert is not None and settings.tls_key is not None:
        try:
            Certificate(settings.tls_cert, settings.tls_key)
        except TLSError as error:
            raise ServeError(f"cannot serve TLS: {error}") from None
