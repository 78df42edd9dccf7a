"""What systemd is told of the server's state: sd_notify, on a real socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from repeater.config import service_manager
from repeater.serving.notify import Notifier, open_notifier
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.processes import serving, starts_processes


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which a service manager is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify.sock"))
        sock.settimeout(LOOP_ANSWERS)
        yield sock


def waiting(manager: socket.socket) -> Iterator[bytes]:
    """The messages that have come."""
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            yield manager.recv(1024)


def test_each_state_is_one_message(manager: socket.socket) -> None:
    """A reload says when it began, by the clock that systemd uses for it."""
    notifier = Notifier(manager.getsockname())
    notifier.ready()
    notifier.reloading()
    notifier.stopping()
    assert manager.recv(1024) == b"READY=1"
    reloading, _, moment = manager.recv(1024).decode().partition("\nMONOTONIC_USEC=")
    assert reloading == "RELOADING=1"
    assert int(moment) > 0
    assert manager.recv(1024) == b"STOPPING=1"


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """`@` stands for the zero byte that such a name begins with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0repeater-notify-{os.getpid()}")
        sock.settimeout(LOOP_ANSWERS)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@repeater-notify-{os.getpid()}")
        open_notifier().ready()
        assert sock.recv(1024) == b"READY=1"


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a socket that is gone costs a line of log."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    open_notifier().ready()
    Notifier(str(tmp_path / "gone")).ready()


@pytest.mark.parametrize(
    ("microseconds", "process", "seconds"),
    [("30000000", "", 30.0), ("30000000", "1", 0.0), ("", "", 0.0), ("x", "", 0.0)],
)
def test_whose_watchdog_it_is(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, process: str, seconds: float
) -> None:
    """One for another process, or none at all, is not served."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", process)
    assert service_manager() == ("/run/notify", seconds)


async def test_the_watchdog_is_told_while_all_answer(
    manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    """Twice in its interval; and not at all while somebody does not answer."""
    answers = [True, True, False, True]
    notifier = Notifier(manager.getsockname(), watchdog=10.0)
    with trio.move_on_after(19.0):
        await notifier.watch(lambda: answers.pop(0))
    assert list(waiting(manager)) == [b"WATCHDOG=1"] * 3


async def test_a_long_start_is_waited_for(
    manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    """systemd is asked for more time again and again, until the start is over."""
    notifier, scope = Notifier(manager.getsockname()), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.extend, scope)
        await trio.sleep(15.0)
        scope.cancel()
    assert list(waiting(manager)) == [b"EXTEND_TIMEOUT_USEC=30000000"] * 2


@starts_processes
async def test_a_server_tells_its_life(tmp_path: Path) -> None:
    """It is ready when it listens, reads its configuration again, and stops."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        path = str(tmp_path / "notify.sock")
        await sock.bind(path)

        async def told(message: bytes) -> None:
            with trio.fail_after(PROCESS_STARTS):
                while not (await sock.recv(1024)).startswith(message):
                    pass

        variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"}
        async with serving("--dev", variables=variables) as server:
            await told(b"EXTEND_TIMEOUT_USEC=")
            await told(b"READY=1")
            await told(b"WATCHDOG=1")
            server.process.send_signal(signal.SIGHUP)
            await told(b"RELOADING=1")
            await told(b"READY=1")
            server.process.send_signal(signal.SIGTERM)
            await told(b"STOPPING=1")
            assert await server.end() == 0
