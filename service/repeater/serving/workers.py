"""The workers of a server: started, started again when they have died, and replaced one by one.

Each worker has a number and keeps it over its replacements. A worker that was asked to end is
replaced as soon as it says that it is leaving: it needs some seconds to let its clients go, and the
next one already accepts connections from the same sockets. So for that time there are two of one
number.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import trio

from repeater.config import Settings
from repeater.front.worker_listeners import WorkerListeners
from repeater.log import get_logger
from repeater.serving.errors import ServeError, WorkersError
from repeater.serving.restarts import Restarts
from repeater.serving.worker_process import Attach, Start, WorkerProcess, start_worker

_log = get_logger("supervisor")

_TOO_MANY: Final = "five workers have died within a minute; the log says why"
_SOON: Final = (
    0.5  # seconds that new connections may wait in the queue of a worker that is not there
)


class Workers:
    """Lives inside the supervisor, whose nursery runs `run`; that also kills what is left."""

    def __init__(
        self,
        count: int,
        command: Sequence[str],
        settings: Callable[[], Settings],
        listeners: WorkerListeners,
        attach: Attach,
        give_up: Callable[[], None],
    ) -> None:
        """Keep what is needed to start a worker.

        Args:
            count: The number of workers.
            command: The program with its arguments.
            settings: Returns the settings in force.
            listeners: Has the sockets of each worker. Its owner outlives the workers.
            attach: Serves a worker at the other end of its link.
            give_up: Is called when it makes no sense to go on, and calls `stop`.
        """
        self._count = count
        self._command = command
        self._settings = settings
        self._listeners = listeners
        self._attach = attach
        self._give_up = give_up
        self._failure: ServeError | WorkersError | None = None
        self._current: dict[int, WorkerProcess] = {}
        self._running: set[WorkerProcess] = set()
        self._changes = {number: trio.Lock() for number in range(1, count + 1)}
        self._restarts = Restarts()
        self._pauses: dict[int, float] = {}
        self._starting = 0
        self.may_accept = trio.Event()
        """Workers that are ready wait for it before they accept connections. It is set: who takes
        over from another server puts another event in its place."""
        self.may_accept.set()
        self._stopping = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._were_ready: set[int] = set()
        self.ready = trio.Event()
        """Set once every worker has listened."""

    @property
    def processes(self) -> Collection[int] | None:
        """The ids of all that have not ended, also of those that are leaving; None while one is
        being started, whose id is not known yet."""
        return None if self._starting else [worker.pid for worker in self._running]

    async def run(self) -> None:
        """Keep the workers until `stop`, and return when all have ended.

        Raises:
            ServeError: a worker cannot start because of the user's mistake.
            WorkersError: five have died within a minute.
        """
        async with trio.open_nursery() as self._nursery:
            for number in self._changes:
                self._nursery.start_soon(self._keep, number)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask all to let their clients go and to end; none is started any more."""
        self._stopping.set()
        for worker in self._running:
            worker.stop()

    def cut(self) -> None:
        """Have all end without waiting for anybody."""
        for worker in self._running:
            worker.cut()

    def kill(self) -> None:
        """End all that are left."""
        for worker in self._running:
            _log.error("a worker is killed", worker=worker.number, reason="it does not end")
            worker.kill()

    async def reload(self) -> None:
        """Have all read their configuration again, and wait until they have.

        The caller sets a deadline. Those that start meanwhile have the settings in force.
        """
        async with trio.open_nursery() as nursery:
            for worker in self._running:
                if not worker.reports.left.is_set():
                    nursery.start_soon(worker.reload)

    async def restart(self, tell: Callable[[str], Awaitable[None]]) -> None:
        """Replace all, one after the other; `tell` is told of each.

        The next one accepts connections before the one in its place is asked to end.

        Raises:
            WorkersError: one of them could not be started, and the one in its place stays; or the
                server shuts down.
        """
        for number, change in self._changes.items():
            async with change:
                if self._stopping.is_set():
                    raise WorkersError("the server is shutting down")
                old = self._current.get(number)
                try:
                    new = await self._start(number)
                except OSError as error:
                    raise WorkersError(f"worker {number}: {error.strerror}") from None
                try:
                    is_ready = await new.wait_ready()
                except trio.Cancelled:
                    new.stop()
                    raise
                if not is_ready:
                    raise WorkersError(f"worker {number} did not start, and the old one stays")
                self._current[number] = new
                if old is not None:
                    old.stop()
            if old is not None:
                await old.ended.wait()
            await tell(f"worker {number} of {self._count} is a new process, {new.pid}")

    async def _keep(self, number: int) -> None:
        """Have a worker with this number at all times, until `stop`."""
        gone: WorkerProcess | None = None
        while True:
            async with self._changes[number]:
                if self._stopping.is_set():
                    return
                if self._current.get(number) is gone:
                    try:
                        self._current[number] = await self._start(number)
                    except OSError as error:  # no descriptor, no memory, or the port is taken
                        self._count_death(number, f"it cannot be started: {error.strerror}")
                worker = self._current.get(number)
            if worker is not gone and worker is not None:
                await worker.reports.left.wait()
                gone = worker
            if pause := self._pauses.pop(number, 0.0):
                with trio.move_on_after(pause):
                    await self._stopping.wait()

    async def _start(self, number: int) -> WorkerProcess:
        listeners = self._listeners.of(number)
        self._starting += 1
        try:
            worker = await start_worker(self._command, number, listeners)
        finally:
            self._starting -= 1
        self._running.add(worker)
        assert self._nursery is not None
        self._nursery.start_soon(self._watch, worker)
        if self._stopping.is_set():
            worker.stop()
        return worker

    async def _watch(self, worker: WorkerProcess) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._see_ready, worker)
        start = Start(self._settings(), self._count)
        await worker.watch(start, self.may_accept, self._attach)
        # With no await from here on: whoever waits for the end finds all of it decided.
        self._running.discard(worker)
        if not (worker.was_asked or self._stopping.is_set()):
            self._judge_death(worker)

    async def _see_ready(self, worker: WorkerProcess) -> None:
        if await worker.wait_ready():
            self._were_ready.add(worker.number)
            if len(self._were_ready) == self._count:
                self.ready.set()

    def _judge_death(self, worker: WorkerProcess) -> None:
        """Log a death that nobody asked for, and decide what follows from it."""
        mistake, words = worker.reports.mistake, worker.reports.words
        if mistake and not self.ready.is_set():
            self._fail(ServeError(mistake))
            return
        self._count_death(worker.number, mistake or worker.why_ended(), words)

    def _count_death(self, number: int, reason: str, words: str = "") -> None:
        more = {"exception": words} if words else {}
        _log.error("a worker has died", worker=number, reason=reason, **more)
        pause = self._restarts.after_death(number, trio.current_time())
        if self._restarts.too_many:
            self._fail(WorkersError(_TOO_MANY))
            return
        self._pauses[number] = pause
        if pause > _SOON:
            self._listeners.give_up(number)

    def _fail(self, failure: ServeError | WorkersError) -> None:
        self._failure = failure
        self._give_up()
