"""One worker, as its supervisor sees it: a process, the link to it, and its reports."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from repeater.config import WorkerPlace, worker_variables
from repeater.log import get_logger
from repeater.serving.early_signals import CUT, RELOAD
from repeater.serving.reports import ReadReports

if TYPE_CHECKING:
    from repeater.config import Settings

_log = get_logger("supervisor")

_STARTS: Final = 60.0  # seconds for a worker to be ready: 1 to 9 on a busy machine
_WITHOUT_LINK: Final = 10.0  # seconds for a worker to end, once its link has


class Start(NamedTuple):
    """What a worker begins with. It is pickled: a process is told by nobody but its parent."""

    settings: Settings
    """The settings in force: the file may have changed since they were read."""
    workers: int
    """The number of all workers."""


class Attach(Protocol):
    """Serves one worker at the other end of a link; see `Exchange.attach`."""

    async def __call__(
        self, stream: trio.SocketStream, number: int, given_up: Callable[[str], None], /
    ) -> None:
        """Serve until the link ends, and close the stream."""


class WorkerProcess:
    """A worker that was started. A nursery of its supervisor runs `watch`, which ends with it."""

    def __init__(
        self, number: int, process: trio.Process, link: trio.SocketStream, reports: ReadReports
    ) -> None:
        self.number = number
        self.since = trio.current_time()
        self._process = process
        self._link = link
        self.reports = reports
        self.ended = trio.Event()
        """Set when the process has ended, and all its reports have been read."""
        self._killed_for = ""

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def was_asked(self) -> bool:
        """Whether the worker, which has ended, did so because of a signal to stop."""
        return self.reports.is_leaving or self._process.returncode == 0

    def why_ended(self) -> str:
        """Why the process ended, for the log."""
        if self._killed_for:
            return self._killed_for
        code = self._process.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"status {code}"

    async def watch(self, start: Start, may_accept: trio.Event, attach: Attach) -> None:
        """Serve the worker until its process has ended.

        The worker accepts connections once it is ready and `may_accept` is set. Cancelled, as when
        the supervisor crashes, close the link and ask the worker to end; kill it when the time for
        its shutdown is over.
        """
        giving = trio.CancelScope()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give, pickle.dumps(start), may_accept, giving)
                nursery.start_soon(self.reports.read)
                nursery.start_soon(self._serve_link, attach)
                nursery.start_soon(self._time_start)
                await self._process.wait()
                giving.cancel("the worker has ended")
                self.reports.began.set()
        finally:
            if self._process.returncode is None:
                await self._end_within(start.settings.node_options().shutdown_timeout)
            self.reports.over()
            self.ended.set()

    async def _end_within(self, seconds: float) -> None:
        self.stop()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(seconds):
                await self._process.wait()
            self.kill()
            await self._process.wait()

    async def _give(self, start: bytes, may_accept: trio.Event, scope: trio.CancelScope) -> None:
        assert self._process.stdin is not None
        with scope, contextlib.suppress(trio.BrokenResourceError):  # it has ended
            async with self._process.stdin as stdin:  # its end is the word to accept
                await stdin.send_all(start)
                await may_accept.wait()

    async def _time_start(self) -> None:
        with trio.move_on_after(_STARTS):
            await self.reports.began.wait()
            return
        self._give_up(f"not ready after {_STARTS:.0f} s")

    async def _serve_link(self, attach: Attach) -> None:
        await attach(self._link, self.number, self._give_up)
        with trio.move_on_after(_WITHOUT_LINK):
            await self._process.wait()
            return
        self._give_up("the link has ended, and the process has not")

    def _give_up(self, reason: str) -> None:
        """Kill a worker that cannot be served."""
        _log.error("a worker is killed", worker=self.number, reason=reason)
        self._killed_for = reason
        self.kill()

    def stop(self) -> None:
        """Ask the worker to let its clients go, and to end."""
        self._process.terminate()

    def cut(self) -> None:
        """End the worker's shutdown at once."""
        if CUT is not None:
            self._process.send_signal(CUT)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    async def wait_ready(self) -> bool:
        """Wait until the worker listens; False if it ends before. It has a minute for that."""
        await self.reports.began.wait()
        return self.reports.is_ready

    async def reload(self) -> None:
        """Have the worker read its configuration again once it is ready, and wait for that.

        The caller sets a deadline.
        """
        if RELOAD is not None and await self.wait_ready():
            self.reports.read_again = trio.Event()
            self._process.send_signal(RELOAD)
            await self.reports.read_again.wait()


async def start_worker(
    command: Sequence[str], number: int, listeners: Sequence[socket.socket]
) -> WorkerProcess:
    """Start a worker's process; the caller runs its `watch`.

    Args:
        command: The program with its arguments.
        number: The worker's number, from 1.
        listeners: The sockets that it accepts from.

    Raises:
        OSError: the process cannot be started.
    """
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    with contextlib.ExitStack() as failed:
        failed.callback(ours.close)
        failed.callback(os.close, read)
        with theirs, contextlib.ExitStack() as given:
            given.callback(os.close, write)
            accepting = tuple(one.fileno() for one in listeners)
            place = WorkerPlace(number, theirs.fileno(), write, accepting)
            process: trio.Process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                env=worker_variables(place),
                pass_fds=(place.link, place.report, *place.listeners),
                # Not in the terminal's group: Ctrl-C is for the supervisor, who tells its workers.
                start_new_session=True,
            )
        failed.pop_all()
    link = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    return WorkerProcess(number, process, link, ReadReports(read))
