"""Workers are started, started again and replaced; these are small processes that only say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from repeater.config import load_settings
from repeater.front.listeners import open_all
from repeater.front.worker_listeners import WorkerListeners
from repeater.serving.errors import ServeError, WorkersError
from repeater.serving.orphans import reap_orphans
from repeater.serving.restarts import Restarts
from repeater.serving.worker import _share
from repeater.serving.worker_process import WorkerProcess
from repeater.serving.workers import Workers
from tests.deadlines import LOOP_ANSWERS

BEGIN = """
import os, signal, sys, time
report = int(os.environ["REPEATER_WORKER_REPORT"])
def say(text):
    try:
        os.write(report, text + b"\\n")
    except BrokenPipeError:
        pass  # the supervisor is gone
number = int(os.environ["REPEATER_WORKER"])
sys.stdin.buffer.read()
"""
SERVE = (
    BEGIN
    + """
def stop(*_):
    say(b"leaving")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: say(b"ready"))
signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
say(b"ready")
while True:
    time.sleep(0.02)  # `pause` could begin just behind a signal
"""
)
STUBBORN = SERVE.replace("    sys.exit(0)\n", "")


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what other processes do."""
    while True:
        if condition():
            return
        await trio.sleep(0.01)


@dataclass
class Crew:
    """Workers, and what became of them."""

    workers: Workers
    listeners: WorkerListeners
    links: list[tuple[int, Callable[[str], None]]] = field(default_factory=list)
    stopped: trio.Event = field(default_factory=trio.Event)

    async def ready(self) -> None:
        """All have listened."""
        await self.workers.ready.wait()

    async def pids(self, count: int) -> set[int]:
        """The processes, once there are so many."""
        await eventually(lambda: len(self.workers.processes or ()) == count)
        return set(self.workers.processes or ())

    async def others(self, before: set[int]) -> set[int]:
        """The processes, once there are as many as before, but other ones."""
        await eventually(lambda: set(self.workers.processes or ()) != before)
        return await self.pids(len(before))

    async def stop(self) -> None:
        """As the supervisor does it."""
        self.stopped.set()
        self.workers.stop()


@asynccontextmanager
async def working(script: str, count: int = 2) -> AsyncIterator[Crew]:
    """Workers that run a script; a failure of theirs comes out of the block."""
    settings = load_settings(dev=True, port=0)
    listeners = open_all(settings, WorkerListeners(count))

    async def attach(
        stream: trio.SocketStream, number: int, given_up: Callable[[str], None]
    ) -> None:
        crew.links.append((number, given_up))
        async with stream:
            while await stream.receive_some():
                pass

    def give_up() -> None:
        crew.stopped.set()
        crew.workers.stop()

    workers = Workers(
        count, [sys.executable, "-c", script], lambda: settings, listeners, attach, give_up
    )
    crew = Crew(workers, listeners)
    with trio.fail_after(LOOP_ANSWERS):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(workers.run)
                yield crew
                if not crew.stopped.is_set():
                    await crew.stop()
        except BaseExceptionGroup as group:
            (failure,) = group.exceptions
            raise failure from None
        finally:
            listeners.close()
    assert not workers.processes


async def test_all_are_ready_and_end() -> None:
    """As many processes as were asked for; `stop` ends them."""
    async with working(SERVE, 3) as crew:
        await crew.ready()
        assert len(await crew.pids(3)) == 3
        assert {number for number, _ in crew.links} == {1, 2, 3}


async def test_one_that_is_killed_is_started_again() -> None:
    """With the same number, and the log says why."""
    async with working(SERVE) as crew:
        await crew.ready()
        before = await crew.pids(2)
        os.kill(min(before), signal.SIGKILL)
        after = await crew.others(before)
        assert len(before & after) == 1
        await eventually(lambda: len(crew.links) == 3)  # a process is there before its link is
        assert sorted(number for number, _ in crew.links) in ([1, 1, 2], [1, 2, 2])


async def test_one_that_is_given_up_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    """The link decides that: it is silent, or reads too slowly."""
    async with working(SERVE, 1) as crew:
        await crew.ready()
        before = await crew.pids(1)
        crew.links[0][1]("silent for 10 s")
        await crew.others(before)
    assert "a worker is killed" in caplog.text
    assert "reason='silent for 10 s'" in caplog.text


async def test_one_that_is_stopped_is_replaced_while_it_leaves() -> None:
    """It needs time for its clients; the next one accepts in its place, and nothing died."""
    async with working(STUBBORN, 1) as crew:
        await crew.ready()
        (old,) = await crew.pids(1)
        os.kill(old, signal.SIGTERM)
        assert old in await crew.pids(2)
        assert not crew.workers._restarts._deaths
        crew.workers.stop()
        crew.workers.cut()
        crew.stopped.set()


async def test_all_are_replaced_one_by_one() -> None:
    """There are never fewer than were asked for; each is told of."""
    told: list[str] = []

    async def tell(line: str) -> None:
        told.append(line)

    async with working(SERVE) as crew:
        await crew.ready()
        before = await crew.pids(2)
        await crew.workers.restart(tell)
        after = await crew.pids(2)
        assert not before & after
    assert [line.partition(" is a new process")[0] for line in told] == [
        "worker 1 of 2",
        "worker 2 of 2",
    ]


async def test_no_replacement_in_a_shutdown() -> None:
    """Whoever asked is told; nothing is started any more."""
    async with working(SERVE) as crew:
        await crew.ready()
        await crew.stop()
        with pytest.raises(WorkersError, match="the server is shutting down"):
            await crew.workers.restart(never)


async def never(line: str) -> None:
    """Nothing is told."""
    raise AssertionError(line)


async def test_a_replacement_that_does_not_start(tmp_path: Path) -> None:
    """The old one stays, and whoever asked is told."""
    once = f"""
import pathlib
first = pathlib.Path({str(tmp_path / "first")!r})
if first.exists():
    sys.exit(3)
first.touch()
"""
    async with working(BEGIN + once + SERVE.removeprefix(BEGIN), 1) as crew:
        await crew.ready()
        before = await crew.pids(1)
        with pytest.raises(WorkersError, match="worker 1 did not start"):
            await crew.workers.restart(never)
        assert before <= set(crew.workers.processes or ())


async def test_all_read_their_configuration_again() -> None:
    """And the caller waits for that, also for one that is not ready yet."""
    async with working(SERVE) as crew:
        await crew.workers.reload()
        await crew.ready()
        await crew.workers.reload()


async def test_five_deaths_in_a_minute_are_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers together; the log has what each one said last."""
    monkeypatch.setattr("repeater.serving.restarts._FIRST", 0.01)
    script = BEGIN + "say(b'Traceback: no luck'); sys.exit(1)\n"
    with pytest.raises(WorkersError, match="five workers have died within a minute"):
        async with working(script) as crew:
            await crew.stopped.wait()
    died = [one for one in caplog.records if "a worker has died" in one.getMessage()]
    assert len(died) >= 5
    assert "Traceback: no luck" in caplog.text


async def test_a_program_that_cannot_be_started(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That counts as a death: tried again, and given up in the end."""
    monkeypatch.setattr("repeater.serving.restarts._FIRST", 0.01)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(WorkersError, match="five workers have died within a minute"):
        async with working("") as crew:
            await crew.stopped.wait()
    assert "it cannot be started: No such file or directory" in caplog.text


async def test_a_crash_of_the_supervisor() -> None:
    """Its workers are asked to end, and have their time for it; nobody kills them."""
    found: list[WorkerProcess] = []

    async def crash() -> None:
        async with working(SERVE) as crew:
            await crew.ready()
            found.extend(crew.workers._running)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await crash()
    assert [one._process.returncode for one in found] == [0, 0]


async def test_a_mistake_is_one_line() -> None:
    """A worker that cannot start because of the user's mistake is not tried again."""
    script = BEGIN + "say(b'mistake the database is missing'); sys.exit(1)\n"
    with pytest.raises(ServeError, match=r"^the database is missing$"):
        async with working(script) as crew:
            await crew.stopped.wait()


async def test_a_crash_of_the_interpreter_says_where(caplog: pytest.LogCaptureFixture) -> None:
    """`faulthandler` writes into the reports."""
    script = (
        BEGIN
        + "from repeater.serving.reports import Reports\nReports(report)\n"
        + "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    async with working(script, 1) as crew:
        await eventually(lambda: bool(crew.workers._restarts._deaths))
    assert "Segmentation fault" in caplog.text
    assert "reason=SIGSEGV" in caplog.text


async def test_a_shutdown_that_is_cut_short() -> None:
    """Who does not leave ends at the signal for it; who does not heed that is killed."""
    async with working(STUBBORN) as crew:
        await crew.ready()
        await crew.stop()
        crew.workers.cut()
    deaf = STUBBORN.replace("os._exit(0)", "None")
    async with working(deaf) as crew:
        await crew.ready()
        await crew.stop()
        crew.workers.cut()
        crew.workers.kill()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended, and that nobody has waited for."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process


async def test_orphans_of_the_first_process(
    child: subprocess.Popen[bytes], autojump_clock: trio.testing.MockClock
) -> None:
    """It reaps the children that nobody else waits for, and no others."""

    async def reap(own: list[int] | None) -> str:
        with trio.move_on_after(1.5):
            await reap_orphans(lambda: own, process=1)
        return psutil.Process(child.pid).status() if psutil.pid_exists(child.pid) else "gone"

    assert await reap(None) == psutil.STATUS_ZOMBIE  # one is being started just now
    assert await reap([child.pid]) == psutil.STATUS_ZOMBIE
    assert await reap([]) == "gone"


async def test_other_processes_reap_nobody() -> None:
    """They have no orphans: the function returns."""
    with trio.fail_after(LOOP_ANSWERS):
        await reap_orphans(lambda: [])


@pytest.mark.parametrize(("lines", "shares"), [(20, [7, 7, 6]), (1, [1, 0, 0]), (0, [0, 0, 0])])
def test_lines_about_connections_are_shared_out(lines: int, shares: list[int]) -> None:
    """All workers together write as many as one process would."""
    settings = load_settings(connection_log_limit=lines)
    found = [_share(settings, number, 3) for number in (1, 2, 3)]
    assert [one.node_options().connection_log_limit for one in found] == shares


def test_pauses_double() -> None:
    """From 0.1 s to 5 s for one worker; after a quiet minute they begin anew."""
    restarts = Restarts()
    pauses = [restarts.after_death(1, 14.0 * number) for number in range(8)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert restarts.after_death(2, 100.0) == 0.1
    assert restarts.after_death(1, 14.0 * 7 + 60.0) == 0.1


@pytest.mark.parametrize(("seconds", "expected"), [(14.0, True), (15.0, False)])
def test_five_within_a_minute(seconds: float, expected: bool) -> None:
    """Whichever workers they were."""
    restarts = Restarts()
    for number in range(5):
        assert not restarts.too_many
        restarts.after_death(number % 2, seconds * number)
    assert restarts.too_many is expected
