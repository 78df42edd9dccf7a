"""`repeater data` and a server, each a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from repeater.brokers.sqlite.journal import FILE
from tests.deadlines import PROCESS_STARTS
from tests.histories import dump
from tests.processes import ServerProcess, serving

pytestmark = [pytest.mark.timeout(4 * PROCESS_STARTS), pytest.mark.slow]


@asynccontextmanager
async def server_on(folder: Path, workers: int = 1) -> AsyncIterator[tuple[ServerProcess, int]]:
    """A server with this data directory, and its port."""
    variables = {
        "REPEATER_DATA_DIR": str(folder),
        "REPEATER_CHANNEL__HISTORY_SIZE": "100000",
        "REPEATER_CHANNEL__HISTORY_TTL": "3600",
    }
    async with serving("--dev", "--workers", str(workers), variables=variables) as server:
        yield server, await server.port()


async def data(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """One command, as a user runs it."""
    command = [sys.executable, "-m", "repeater", "data", *map(str, arguments)]
    with trio.fail_after(PROCESS_STARTS):
        result = await trio.run_process(
            command,
            env={"PATH": "/usr/bin:/bin", "REPEATER_DATA_DIR": str(folder)},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return subprocess.CompletedProcess(
        command, result.returncode, result.stdout.decode(), result.stderr.decode()
    )


class Load:
    """Publishes into one channel by the REST API, one after the other. Ended by its nursery."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.acknowledged = 0
        self._more = trio.Event()

    async def run(self) -> None:
        """Publish until the server ends, or until cancelled."""
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
            try:
                while True:
                    await self._publish(stream)
            except (trio.BrokenResourceError, EOFError):
                return

    async def _publish(self, stream: trio.SocketStream) -> None:
        body = b'{"channel":"news","data":%d}' % (self.acknowledged + 1)
        head = b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        await stream.send_all(head % len(body) + body)
        answer = b""
        while b'"offset"' not in answer or not answer.endswith(b"}}"):
            chunk = await stream.receive_some()
            if not chunk:
                raise EOFError
            answer += chunk
        self.acknowledged = json.loads(answer[answer.index(b"\r\n\r\n") :])["result"]["offset"]
        self._more.set()
        self._more = trio.Event()

    async def reach(self, count: int) -> None:
        """Wait for so many acknowledged publications."""
        with trio.fail_after(PROCESS_STARTS):
            while self.acknowledged < count:
                await self._more.wait()


def offsets(path: Path) -> list[object]:
    return [row[2] for row in dump(path)["publications"]]


@pytest.mark.parametrize("workers", [1, 2])
async def test_backup_check_and_restore(tmp_path: Path, workers: int) -> None:
    """All that was acknowledged before a backup is in it, and comes back contiguous."""
    folder, backup = tmp_path / "data", tmp_path / "backup"
    async with server_on(folder, workers) as (server, port), trio.open_nursery() as nursery:
        load = Load(port)
        nursery.start_soon(load.run)
        await load.reach(100)
        acknowledged = load.acknowledged
        result = await data(folder, "backup", backup, "--json")
        assert (result.returncode, result.stderr) == (0, "")
        assert load.acknowledged > acknowledged
        assert (await data(folder, "check")).returncode == 0
        for command in (["compact"], ["restore", backup]):
            result = await data(folder, *command)
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr == (
                f"Error: {folder} is in use by process {server.process.pid} (repeater serve):"
                " stop it first\n"
            )
        await load.reach(load.acknowledged + 100)
        assert await server.end() == 0
    kept = offsets(backup)
    assert kept == list(range(1, len(kept) + 1))
    assert acknowledged <= len(kept) < load.acknowledged
    assert (await data(folder, "compact")).returncode == 0
    assert offsets(folder / FILE) == list(range(1, load.acknowledged + 1))
    assert (await data(folder, "restore", backup)).returncode == 0
    async with server_on(folder) as (server, port), trio.open_nursery() as nursery:
        load = Load(port)
        nursery.start_soon(load.run)
        await load.reach(len(kept) + 1)
        nursery.cancel_scope.cancel()


async def test_a_server_killed_during_a_backup(tmp_path: Path) -> None:
    """The backup does not get its name, and the next start has all that was acknowledged."""
    folder = tmp_path / "data"
    async with server_on(folder) as (server, port), trio.open_nursery() as nursery:
        load = Load(port)
        nursery.start_soon(load.run)
        await load.reach(100)
        async with await trio.open_unix_socket(folder / "admin.sock") as stream:
            # As the command does; it would be done before a test could kill the server.
            await stream.send_all(b'{"method":"data.hold"}\n')
            assert b"progress" in await stream.receive_some()
            await load.reach(load.acknowledged + 100)
            assert await server.end(signal.SIGKILL) == -signal.SIGKILL
            assert await stream.receive_some() == b""
    result = await data(folder, "check", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["publications"] >= load.acknowledged
    assert offsets(folder / FILE)[: load.acknowledged] == list(range(1, load.acknowledged + 1))
    async with server_on(folder) as (server, _):
        assert (await data(folder, "backup", tmp_path / "backup")).returncode == 0
        assert await server.end() == 0
