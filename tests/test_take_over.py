"""`repeater serve --take-over` with real processes: nobody is refused, and nothing is lost."""

from __future__ import annotations

import signal
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.drill.clients import KEY
from tests.drill.upgrade import Upgrade, measure
from tests.processes import ServerProcess, serving
from tests.serving import Peer

pytestmark = [pytest.mark.timeout(4 * PROCESS_STARTS), pytest.mark.slow]

EVENT = b'{"channel":"news","data":[1]}'
REFUSED = b'"code":100'


@asynccontextmanager
async def first(folder: Path, *arguments: str, **more: str) -> AsyncIterator[ServerProcess]:
    """A server with a data directory."""
    async with serving("--dev", *arguments, variables=variables(folder, **more)) as server:
        yield server


def variables(folder: Path, **more: str) -> Mapping[str, str]:
    return {"REPEATER_DATA_DIR": str(folder), "REPEATER_CHANNEL__HISTORY_SIZE": "10", **more}


async def publish(port: int) -> bytes:
    """Publish by a connection of its own; the answer."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await Peer(stream).call("POST", "/api/publish", EVENT, f"X-API-Key: {KEY}\r\n")


async def serves(server: ServerProcess, port: int) -> None:
    """The server publishes, at the latest when it has its files again."""
    with trio.fail_after(LOOP_ANSWERS):
        while REFUSED in (answer := await publish(port)):  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.05)
    assert b'"offset"' in answer
    assert server.process.returncode is None


async def test_nobody_notices_under_load(tmp_path: Path) -> None:
    """No connection is refused, reset or left without an answer; each event comes once, in order.

    What was published while nobody could is told to its publisher, as error 100.
    """
    report = await measure(Upgrade(tmp_path), "take-over")
    assert not report.lost_connections
    assert report.counts["asked to come back"] >= 20
    assert report.counts["told"] == 0
    others = set(report.counts) - {"asked to come back", "error 100", "subscribe answered 100"}
    assert others == {"events", "deliveries", "recovered"}


async def test_workers_take_over(tmp_path: Path) -> None:
    """All sockets of all workers are passed on; the new workers accept when the old ones end."""
    report = await measure(Upgrade(tmp_path, ("--workers", "2")), "take-over")
    assert not report.lost_connections
    assert report.counts["asked to come back"] >= 20
    assert report.counts["told"] == 0


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
async def test_another_number_of_workers(tmp_path: Path, before: int, after: int) -> None:
    """No socket of the old server is left without somebody who accepts."""
    async with first(tmp_path, "--workers", str(before)) as old:
        port = await old.port()
        where = ("--listen", f"127.0.0.1:{port}", "--workers", str(after))
        async with first(tmp_path, "--take-over", *where) as new:
            await new.line("is up on")
            with trio.fail_after(PROCESS_STARTS):
                assert await old.process.wait() == 0
            for _ in range(20):
                with trio.fail_after(LOOP_ANSWERS):
                    assert b'"offset"' in await publish(port)


async def test_history_in_memory_is_told_as_lost(tmp_path: Path) -> None:
    """Whoever comes back to the new server hears `recovered: false`; connections are not lost."""
    upgrade = Upgrade(tmp_path, settings='engine = "memory"')
    report = await measure(upgrade, "take-over", forgets=True)
    assert not report.lost_connections
    assert report.counts["told"] > 0


async def test_an_address_that_is_taken(tmp_path: Path) -> None:
    """The new server ends with one line before the old one has let go of anything."""
    async with first(tmp_path) as old:
        port = await old.port()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            other = f"127.0.0.1:{taken.getsockname()[1]}"
            addresses = ("--listen", f"127.0.0.1:{port}", "--listen", other)
            async with first(tmp_path, "--take-over", *addresses) as new:
                await new.line(f"Error: cannot listen on {other}: Address already in use")
                assert await new.process.wait() == 1
        assert REFUSED not in await publish(port)
        await old.line("the new server has failed, this one serves on")
        await serves(old, port)


async def test_an_application_that_cannot_start(tmp_path: Path) -> None:
    """The new server fails when the old one has let go: the old one takes its files again."""
    async with first(tmp_path) as old:
        port = await old.port()
        await serves(old, port)
        broken = {
            "REPEATER_COMMENTS": "true",
            "REPEATER_COMMENTS_DATABASE_URL": "postgresql://127.0.0.1:1/x",
        }
        where = ("--listen", f"127.0.0.1:{port}")
        async with first(tmp_path, "--take-over", *where, **broken) as new:
            assert await new.process.wait() == 1
            assert new.log.count(b"Error: ") == 1
        await old.line("the new server has failed, this one serves on")
        await serves(old, port)
        await _take_over(tmp_path, old, port)


async def test_a_new_server_that_is_killed(tmp_path: Path) -> None:
    """While it loads; what it had locked is free at once."""
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")  # a cache that never answers
    cache = f"redis://127.0.0.1:{silent[0].socket.getsockname()[1]}/0"
    waiting = {"REPEATER_COMMENTS": "true", "REPEATER_COMMENTS_CACHE_URL": cache}
    async with first(tmp_path) as old:
        port = await old.port()
        await serves(old, port)
        where = ("--listen", f"127.0.0.1:{port}")
        async with first(tmp_path, "--take-over", *where, **waiting) as new:
            with trio.fail_after(PROCESS_STARTS):
                stream = await silent[0].accept()
            assert REFUSED in await publish(port)  # accepted by the old one
            new.process.kill()
        await old.line("the new server has failed, this one serves on")
        await serves(old, port)
        assert b"cannot be taken again" not in old.log
        await stream.aclose()
    await silent[0].aclose()


async def _take_over(folder: Path, old: ServerProcess, port: int) -> None:
    async with first(folder, "--take-over", "--listen", f"127.0.0.1:{port}") as new:
        await new.line("is up on")
        with trio.fail_after(PROCESS_STARTS):
            assert await old.process.wait() == 0
        await serves(new, port)
    assert b"Traceback" not in old.log + new.log


async def test_a_unix_socket_keeps_its_file(tmp_path: Path) -> None:
    """The old server leaves the file, the new one sets its mode, and removes it at its end."""
    path = tmp_path / "repeater.sock"
    where = ("--listen", f"unix:{path}")
    async with first(tmp_path, *where) as old:
        await old.line("is up on")
        inode = path.stat().st_ino
        async with first(tmp_path, "--take-over", *where, REPEATER_UNIX_MODE="0600") as new:
            await new.line("is up on")
            with trio.fail_after(PROCESS_STARTS):
                assert await old.process.wait() == 0
            assert path.stat().st_ino == inode
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with await trio.open_unix_socket(str(path)) as stream:
                assert b" 200 " in await Peer(stream).call("GET", "/health")
            assert await new.end() == 0
    assert not path.exists()


async def test_other_addresses(tmp_path: Path) -> None:
    """A socket that the new server does not want is closed, and said; a new one is opened."""
    async with first(tmp_path, "--listen", "127.0.0.1:0", "--listen", "[::1]:0") as old:
        port = await old.port()
        addresses = ("--listen", f"127.0.0.1:{port}", "--listen", f"unix:{tmp_path}/new.sock")
        async with first(tmp_path, "--take-over", *addresses) as new:
            await new.line("not listening there any more endpoint=[::1]:")
            await new.line("is up on")
            with trio.fail_after(PROCESS_STARTS):
                assert await old.process.wait() == 0
            await serves(new, port)
            async with await trio.open_unix_socket(f"{tmp_path}/new.sock") as stream:
                assert b" 200 " in await Peer(stream).call("GET", "/health")


async def test_nobody_to_take_over_from(tmp_path: Path) -> None:
    """The server just starts; without a data directory it says what is missing."""
    async with first(tmp_path, "--take-over") as server:
        await server.line("no server to take over from")
        await server.port()
        assert await server.end() == 0
    async with serving("--dev", "--take-over") as server:
        await server.line("Error: --take-over finds the running server by data_dir: set it")
        assert await server.process.wait() == 1


async def test_systemd_follows(tmp_path: Path) -> None:
    """Sockets that the service manager opened are passed on, and it is told of the new process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LOOP_ANSWERS)
        told = {"REPEATER_UNIX_MODE": "0660", "NOTIFY_SOCKET": str(tmp_path / "notify")}
        upgrade = Upgrade(tmp_path)
        upgrade.variables = told
        async with upgrade.open("sockets"):
            new = await upgrade.change("take-over")
            await serves(new, upgrade.port)
            pid = new.process.pid
        messages = [message async for message in _received(manager)]
    assert f"MAINPID={pid}" in messages
    assert messages.index(f"MAINPID={pid}") < len(messages) - 1
    assert messages.count("READY=1") == 2
    assert "STOPPING=1" not in messages


async def _received(manager: socket.socket) -> AsyncIterator[str]:
    manager.setblocking(False)
    while True:
        try:
            yield manager.recv(4_096).decode()
        except BlockingIOError:
            return


async def test_the_old_server_is_stopped_meanwhile(tmp_path: Path) -> None:
    """The new one goes on alone with its sockets, and nobody is refused."""
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    cache = f"redis://127.0.0.1:{silent[0].socket.getsockname()[1]}/0"
    waiting = {"REPEATER_COMMENTS": "true", "REPEATER_COMMENTS_CACHE_URL": cache}
    async with first(tmp_path) as old:
        port = await old.port()
        where = ("--listen", f"127.0.0.1:{port}")
        async with first(tmp_path, "--take-over", *where, **waiting) as new:
            with trio.fail_after(PROCESS_STARTS):
                stream = await silent[0].accept()
            assert await old.end(signal.SIGTERM) == 0
            await stream.aclose()  # the application starts without a cache
            await new.line("is up on")
            await serves(new, port)
    await silent[0].aclose()
