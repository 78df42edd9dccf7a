"""A server with two workers: real processes, and what clients notice when one of them ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
import trio

from repeater.subscriber import Subscriber, open_subscriber
from tests.certificates import Authority
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.processes import SERVE, ServerProcess, serving, starts_processes
from tests.serving import UPGRADE, Peer, close_code

pytestmark = [starts_processes, pytest.mark.slow]

HISTORY = {
    "REPEATER_CHANNEL__HISTORY_SIZE": "1000",
    "REPEATER_CHANNEL__HISTORY_TTL": "1h",
    "REPEATER_CHANNEL__FORCE_RECOVERY": "true",
}


def workers_of(server: ServerProcess) -> set[int]:
    """The ids of the worker processes that run now."""
    with suppress(psutil.NoSuchProcess):
        return {one.pid for one in psutil.Process(server.process.pid).children()}
    return set()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what other processes do."""
    with trio.fail_after(PROCESS_STARTS):
        while True:
            if condition():
                return
            await trio.sleep(0.02)


async def answers(port: int, target: str = "/health") -> bytes:
    """The answer of whichever worker accepts."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await Peer(stream).call("GET", target)


async def publish(port: int, data: int) -> None:
    """One event, which must be accepted."""
    body = b'{"channel":"news","data":%d}' % data
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        answer = await Peer(stream).call("POST", "/api/publish", body)
    assert b'"offset"' in answer or b'"result"' in answer, answer


@asynccontextmanager
async def plain_subscribers(port: int, count: int) -> AsyncIterator[Sequence[Peer]]:
    """Plain WebSocket subscribers that hear `news`, spread over the workers."""
    async with AsyncExitStack() as stack:
        peers = []
        for _ in range(count):
            stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
            peer = Peer(stream)
            await stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
            assert b" 101 " in await peer.until(b"\r\n\r\n")
            peers.append(peer)
        for peer in peers:
            # Its channel is held a moment after the answer; nothing but an event shows it.
            while True:
                await publish(port, 0)
                with trio.move_on_after(0.1):
                    await peer.until(b"\x81\x010")
                    break
        yield peers


async def heard(subscriber: Subscriber, last: int) -> list[int]:
    """The events up to and including `last`."""
    numbers = []
    async for event in subscriber:
        numbers.append(int(event.text))
        if numbers[-1] == last:
            break
    return numbers


async def test_two_workers_are_one_server() -> None:
    """An event reaches everybody, and who was on a worker that is killed misses nothing."""
    gaps: list[str] = []
    async with serving("--dev", "--workers", "2", variables=HISTORY) as server:
        port = await server.port()
        before = workers_of(server)
        assert len(before) == 2
        url = f"ws://127.0.0.1:{port}"
        async with AsyncExitStack() as stack:
            subscribers = [
                await stack.enter_async_context(open_subscriber(url, ["news"], on_gap=gaps.append))
                for _ in range(12)
            ]
            with trio.fail_after(PROCESS_STARTS):
                await publish(port, 1)
                for one in subscribers:
                    assert await heard(one, 1) == [1]
                os.kill(min(before), signal.SIGKILL)
                for number in range(2, 8):
                    await publish(port, number)
                for one in subscribers:
                    assert await heard(one, 7) == [2, 3, 4, 5, 6, 7]
            assert "worker=" in await server.line("a worker has died")
            await eventually(lambda: len(workers_of(server)) == 2)
            assert len(workers_of(server) & before) == 1
        assert gaps == []
        assert await server.end() == 0
        assert b"Traceback" not in server.log


async def test_the_shutdown_of_all(tmp_path: Path) -> None:
    """TERM to the supervisor: clients of every worker hear 3001, and the status is 0.

    Before, SIGHUP has all of them read their settings, who is stopped by TERM is replaced, and
    `repeater workers restart` replaces all.
    """
    config = tmp_path / "repeater.toml"
    config.write_text("channel_limit = 7\n")
    data = {"REPEATER_DATA_DIR": str(tmp_path / "data")}
    async with serving(
        "--dev", "--workers", "2", "--config", str(config), variables=data
    ) as server:
        port = await server.port()
        before = workers_of(server)
        config.write_text("channel_limit = 8\n")
        server.process.send_signal(signal.SIGHUP)
        for _ in range(3):
            assert "applied=['channel_limit']" in await server.line("was read again")
        config.write_text("not TOML")  # a worker that starts now has the settings in force
        os.kill(min(before), signal.SIGTERM)
        await eventually(lambda: not before <= workers_of(server) and len(workers_of(server)) == 2)
        before = workers_of(server)
        command = [sys.executable, "-m", "repeater", "workers", "restart"]
        restart = await trio.run_process(command, capture_stdout=True, env={**os.environ, **data})
        told = [line.partition(" is a new")[0] for line in restart.stdout.decode().splitlines()]
        assert told == ["worker 1 of 2", "worker 2 of 2"]
        assert len(workers_of(server)) == 2
        assert not before & workers_of(server)
        for _ in range(8):
            assert b" 200 " in await answers(port)
        async with plain_subscribers(port, 8) as peers:
            await publish(port, 1)
            server.process.send_signal(signal.SIGTERM)
            for peer in peers:
                assert close_code(await peer.rest()) == 3001
                await peer.stream.aclose()
            with trio.fail_after(PROCESS_STARTS):
                assert await server.process.wait() == 0
        assert b"has died" not in server.log
        assert b"Traceback" not in server.log
        with pytest.raises(OSError, match=r".*"):
            await answers(port)


async def test_workers_that_hang_and_die() -> None:
    """One that hangs is killed after `worker_timeout` and replaced.

    The fifth death within a minute is the end: status 1, and one line for the user.
    """
    variables = {"REPEATER_WORKER_TIMEOUT": "2"}
    async with serving("--dev", "--workers", "2", variables=variables) as server:
        port = await server.port()
        before = workers_of(server)
        os.kill(min(before), signal.SIGSTOP)
        await server.line("a worker is killed")
        await eventually(lambda: not before <= workers_of(server) and len(workers_of(server)) == 2)
        for _ in range(8):
            assert b" 200 " in await answers(port)
        async with trio.open_nursery() as nursery:

            async def kill_all() -> None:
                while True:
                    for pid in workers_of(server):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    await trio.sleep(0.05)

            nursery.start_soon(kill_all)
            with trio.fail_after(PROCESS_STARTS):
                assert await server.process.wait() == 1
            nursery.cancel_scope.cancel()
        await server.line("Error: five workers have died within a minute")
        assert b"Traceback" not in server.log


async def test_a_supervisor_that_hangs_and_dies() -> None:
    """Meanwhile workers are not ready and publish nothing (error 100); then they go on.

    Without it they ask their clients to come back (3001), and end; the port is free then.
    """

    async def ready(port: int, status: bytes, times: int) -> bytes:
        """The last answer, once so many connections in a row are answered with this status."""
        found = 0
        while found < times:
            answer = await answers(port, "/health/ready")
            found = found + 1 if status in answer else 0
            await trio.sleep(0.02)
        return answer

    async with serving("--dev", "--workers", "2") as server:
        port = await server.port()
        workers = workers_of(server)
        with trio.fail_after(PROCESS_STARTS):
            server.process.send_signal(signal.SIGSTOP)
            assert b"the supervisor is silent" in await ready(port, b" 503 ", 12)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                body = b'{"channel":"news","data":1}'
                answer = await Peer(stream).call("POST", "/api/publish", body)
            assert b'"code":100' in answer
            server.process.send_signal(signal.SIGCONT)
            await ready(port, b" 200 ", 12)
            async with plain_subscribers(port, 4) as peers:
                await publish(port, 1)
                server.process.kill()
                for peer in peers:
                    assert close_code(await peer.rest()) == 3001
                    await peer.stream.aclose()
        await eventually(lambda: not any(map(psutil.pid_exists, workers)))
        socket.create_server(("127.0.0.1", port)).close()


async def test_a_place_that_is_taken_is_one_line(tmp_path: Path) -> None:
    """No worker is started, and the server that has the place serves on."""
    path = tmp_path / "a.sock"
    listen = ("--listen", f"unix:{path}", "--listen", "127.0.0.1:0")
    async with serving("--dev", "--workers", "2", *listen) as server:
        place = f"127.0.0.1:{await server.port()}"
        for taken in (f"unix:{path}", place):
            command = [*SERVE, "--dev", "--workers", "2", "--listen", taken]
            with trio.fail_after(PROCESS_STARTS):
                second = await trio.run_process(command, capture_stderr=True, check=False)
            assert second.returncode == 1
            assert second.stderr.decode().splitlines() == [
                f"Error: cannot listen on {taken}: Address already in use"
            ]
        async with await trio.open_unix_socket(path) as stream:
            assert b" 200 " in await Peer(stream).call("GET", "/health")
        assert b" 200 " in await answers(int(place.rpartition(":")[2]))
        assert await server.end() == 0
    assert not await trio.Path(path).exists()


UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture
def namespace() -> Sequence[str]:
    """A command before another one, which is the first process of a namespace then."""
    program = shutil.which(UNSHARE[0])
    if program is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("process namespaces are not permitted here")
    return UNSHARE


async def test_as_the_first_process_of_a_container(namespace: Sequence[str]) -> None:
    """It reaps the children of others, heeds TERM, and takes its workers with it."""
    orphan = "import os, time; os.fork() or (os.fork() or time.sleep(0.2)); os._exit(0)"
    script = (
        f"({sys.executable} -c '{orphan}' &) ; exec " + " ".join(SERVE) + " --port 0 "
        "--dev --workers 2"
    )
    command = [*namespace, "sh", "-c", script]
    async with serving(command=command) as server:
        await server.port()
        (first,) = psutil.Process(server.process.pid).children()
        await eventually(
            lambda: all(one.status() != psutil.STATUS_ZOMBIE for one in first.children())
        )
        assert len(first.children()) == 2
        os.kill(first.pid, signal.SIGTERM)
        with trio.fail_after(LOOP_ANSWERS):
            assert await server.process.wait() == 0
        await server.line("stopped")


async def test_the_first_process_of_a_container_is_killed(namespace: Sequence[str]) -> None:
    """Its workers end with it, and so do the connections: clients come back and recover."""
    command = [*namespace, *SERVE]
    async with serving("--dev", "--workers", "2", command=command) as server:
        port = await server.port()
        (first,) = psutil.Process(server.process.pid).children()
        workers = first.children()
        async with plain_subscribers(port, 4) as peers:
            first.kill()
            for peer in peers:
                with trio.fail_after(LOOP_ANSWERS):
                    await peer.rest()  # some workers may still say goodbye
                await peer.stream.aclose()
        await eventually(lambda: not any(one.is_running() for one in workers))
        with trio.fail_after(LOOP_ANSWERS):
            await server.process.wait()


ACTIVATED = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)  # it may have been 3 already
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What systemd does for a service with a socket."""


async def test_systemd_and_a_new_certificate(authority: Authority, tmp_path: Path) -> None:
    """All workers accept from systemd's socket, and show the new certificate after a SIGHUP.

    systemd is told when all listen, read their settings again, and stop; and that all answer.
    """

    async def shown(port: int) -> bytes:
        """The certificate that whichever worker accepts shows."""
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", port, ssl_context=authority.client(), https_compatible=True
        )
        async with stream:
            await stream.do_handshake()
            certificate = stream.getpeercert(binary_form=True)
            assert isinstance(certificate, bytes)
            return certificate

    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        manager = str(tmp_path / "notify.sock")
        await sock.bind(manager)

        messages: list[bytes] = []

        async def collect() -> None:
            """Take all that comes, as systemd does; its queue has room for ten."""
            while True:
                messages.append(await sock.recv(1024))

        async def told(message: bytes) -> None:
            """Wait for a message, and forget those before it."""
            await eventually(lambda: any(one.startswith(message) for one in messages))
            while not messages.pop(0).startswith(message):
                pass

        variables = {"NOTIFY_SOCKET": manager, "WATCHDOG_USEC": "100000"}
        command = [sys.executable, "-c", ACTIVATED, *SERVE]
        files = ["--tls-cert", str(authority.certificate), "--tls-key", str(authority.key)]
        options = ["--dev", "--workers", "2", *files]
        async with (
            trio.open_nursery() as nursery,
            serving(*options, command=command, variables=variables) as server,
        ):
            nursery.start_soon(collect)
            await told(b"READY=1")
            port = await server.port()
            await told(b"WATCHDOG=1")
            (old,) = {await shown(port) for _ in range(8)}
            authority.issue()
            server.process.send_signal(signal.SIGHUP)
            await told(b"RELOADING=1")
            await told(b"READY=1")
            (new,) = {await shown(port) for _ in range(8)}
            assert old != new
            server.process.send_signal(signal.SIGTERM)
            await told(b"STOPPING=1")
            with trio.fail_after(PROCESS_STARTS):
                assert await server.process.wait() == 0
            assert b"Traceback" not in server.log
            nursery.cancel_scope.cancel()
