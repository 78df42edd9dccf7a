"""Signals to a real server process, one and two of them, at every time of its life."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.processes import serving, starts_processes
from tests.serving import UPGRADE, Peer

pytestmark = starts_processes

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
LONG = {"REPEATER_SHUTDOWN_TIMEOUT": "1h"}
"""A shutdown that waits for its clients until the test fails."""


async def stubborn(port: int) -> Peer:
    """A subscriber that never answers the goodbye."""
    peer = Peer(await trio.open_tcp_stream("127.0.0.1", port))
    await peer.stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
    assert b" 101 " in await peer.until(b"\r\n\r\n")
    return peer


@pytest.mark.parametrize(
    ("first", "second"), [(INT, INT), (TERM, TERM), (INT, TERM), (TERM, INT)], ids=str
)
async def test_a_second_signal_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    """Who is left is reset, the log says `stopped`, and the status is 0."""
    async with serving("--dev", variables=LONG) as server:
        peer = await stubborn(await server.port())
        server.process.send_signal(first)
        await peer.until(b"\x88")  # the goodbye, which it does not answer
        assert await server.end(second) == 0
        await server.line("stopped")
        with trio.fail_after(LOOP_ANSWERS):
            await peer.rest()
        assert b"Traceback" not in server.log
        await peer.stream.aclose()


async def test_a_second_signal_drops_events_and_requests() -> None:
    """Nor does the end wait for a back end that takes no events, or for half a request."""
    nobody = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = nobody[0].socket.getsockname()
    variables = {
        **LONG,
        "REPEATER_CALLBACKS__EVENT_URL": f"http://127.0.0.1:{address[1]}/",
        "REPEATER_CALLBACKS__EVENTS": "connected,disconnected",
        "REPEATER_CALLBACKS__EVENT_TIMEOUT": "1h",
        "REPEATER_CALLBACKS__SECRET": "s3cret-of-the-back-end",
    }
    async with serving("--dev", variables=variables) as server:
        port = await server.port()
        peer = await stubborn(port)
        half = await trio.open_tcp_stream("127.0.0.1", port)
        await half.send_all(
            b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        )
        server.process.send_signal(TERM)
        await peer.until(b"\x88")
        assert await server.end(TERM) == 0
        await server.line("stopped")
        for stream in (peer.stream, half, *nobody):
            await stream.aclose()


async def test_a_reload_during_the_shutdown_is_ignored() -> None:
    """SIGHUP neither ends the process nor hurries it; it is told."""
    async with serving("--dev", variables=LONG) as server:
        peer = await stubborn(await server.port())
        server.process.send_signal(TERM)
        await peer.until(b"\x88")
        server.process.send_signal(HUP)
        await server.line("ignored during the shutdown")
        await peer.stream.aclose()
        with trio.fail_after(PROCESS_STARTS):
            assert await server.process.wait() == 0
        await server.line("stopped")
        assert b"read again" not in server.log


async def test_signals_in_a_row() -> None:
    """Many at once end it as two do: nothing is left that kills the process after its end."""
    async with serving("--dev") as server:
        await server.port()
        for number in (TERM, HUP, INT, TERM, HUP, INT):
            server.process.send_signal(number)
        with trio.fail_after(PROCESS_STARTS):
            assert await server.process.wait() == 0
        await server.line("stopped")
        assert b"Traceback" not in server.log


@pytest.fixture
def early(tmp_path: Path) -> dict[str, str]:
    """An environment in which the import of click says `importing` and then takes a second."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "click.py").write_text(
        "import importlib, sys, time\n"
        "print('importing', file=sys.stderr, flush=True)\n"
        "for _ in range(100): time.sleep(0.01)\n"
        f"sys.path.remove({str(folder)!r})\n"
        "del sys.modules['click']\n"
        "sys.modules['click'] = importlib.import_module('click')\n"
    )
    return {"PYTHONPATH": str(folder)}


async def test_a_reload_before_the_server_is_ready(early: dict[str, str]) -> None:
    """SIGHUP in the middle of the imports ends nothing, and is obeyed once the server is ready."""
    async with serving("--dev", variables=early) as server:
        await server.line("importing")
        server.process.send_signal(HUP)
        await server.port()
        await server.line("the configuration was read again")
        assert await server.end() == 0


@pytest.mark.parametrize("number", [INT, TERM], ids=str)
async def test_a_stop_before_the_server_is_ready(
    number: signal.Signals, early: dict[str, str]
) -> None:
    """It ends the start at once, with status 0 and without a traceback."""
    async with serving("--dev", variables=early) as server:
        await server.line("importing")
        assert await server.end(number) == 0
        assert b"is up on" not in server.log
        assert b"Traceback" not in server.log
        assert b"Aborted" not in server.log


async def test_a_stop_that_a_module_swallows(early: dict[str, str]) -> None:
    """A module that catches everything as it is imported does not keep the server from ending."""
    module = Path(early["PYTHONPATH"]) / "click.py"
    # The signal may come as soon as the word is out, so the word is inside, too.
    text = (
        module.read_text().replace("print(", "try:\n  print(", 1).replace("for _ in", "  for _ in")
    )
    module.write_text(text.replace("time.sleep(0.01)\n", "time.sleep(0.01)\nexcept: pass\n", 1))
    async with serving("--dev", variables=early) as server:
        await server.line("importing")
        assert await server.end(TERM) == 0
        assert b"is up on" not in server.log
        await server.line("stopped")


async def test_a_stop_while_the_application_starts(tmp_path: Path) -> None:
    """A start that waits for something is given up; the status is 0."""
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")  # a database that never answers
    port = silent[0].socket.getsockname()[1]
    variables = {
        "REPEATER_COMMENTS": "true",
        "REPEATER_COMMENTS_CACHE_URL": f"redis://127.0.0.1:{port}/0",
        "REPEATER_DATA_DIR": str(tmp_path / "data"),
    }
    async with serving("--dev", variables=variables) as server:
        with trio.fail_after(PROCESS_STARTS):
            stream = await silent[0].accept()
        assert await server.end(TERM) == 0
        await server.line("stopped")  # the cache's library tells of its connection before
        await stream.aclose()
        await silent[0].aclose()


def test_other_commands_keep_the_meaning_of_a_hang_up() -> None:
    """A closed terminal ends `repeater subscribe`, as it ends every program in it."""
    code = (
        "import os, signal, sys; sys.argv[1:] = ['--version']\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # ignored below `nohup`
        "from repeater.__main__ import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=PROCESS_STARTS
    )
    assert result.returncode == -HUP
