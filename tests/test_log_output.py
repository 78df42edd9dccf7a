"""The log never stops the server: unread, on a full disk, or without a standard error."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event

import pytest
import trio

from repeater.log_output import LogOutput
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.processes import SERVE, starts_processes
from tests.serving import Peer

CLIENTS = 400


@asynccontextmanager
async def serving_into(
    redirection: str, folder: Path, stderr: int | None = None, form: str = "console"
) -> AsyncIterator[tuple[trio.Process, Path]]:
    """A server whose standard error the shell redirects so; and the socket that it listens on."""
    path = folder / "server.sock"
    command = f'exec "$@" {redirection}'
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REPEATER_")}
    process = await trio.lowlevel.open_process(
        ["/bin/sh", "-c", command, "sh", *SERVE, "--dev", "--unix", str(path)],
        stderr=stderr,
        env={
            **environment,
            "REPEATER_COMMENTS": "false",
            "REPEATER_LOG_LEVEL": "debug",
            "REPEATER_CONNECTION_LOG_LIMIT": "100000",
            "REPEATER_LOG_FORMAT": form,
        },
    )
    try:
        yield process, path
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def reached(path: Path) -> Peer:
    """A connection to the server, once it listens."""
    with trio.fail_after(PROCESS_STARTS):
        while True:
            with contextlib.suppress(OSError):
                return Peer(await trio.open_unix_socket(path))
            await trio.sleep(0.05)


async def serves(path: Path, clients: int = CLIENTS) -> None:
    """Clients come and go, each with two lines of log, and each is served."""
    ends = b"GET /events?channel=a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(clients):
        peer = await reached(path)
        await peer.stream.send_all(ends)
        with trio.fail_after(LOOP_ANSWERS):
            assert b" 200 " in await peer.until(b"\r\n\r\n")
        await peer.stream.aclose()
    peer = await reached(path)
    with trio.fail_after(LOOP_ANSWERS):
        assert b'"ok"' in await peer.call("GET", "/health/live")
    await peer.stream.aclose()


async def ended(process: trio.Process) -> int:
    """The status after SIGTERM."""
    process.terminate()
    with trio.fail_after(PROCESS_STARTS):
        return await process.wait()


@starts_processes
@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "0<&- 1>&- 2>&-", "2</dev/null"])
async def test_a_log_that_cannot_be_written(redirection: str, form: str, tmp_path: Path) -> None:
    """The server starts, serves, and ends with status 0 at a signal."""
    async with serving_into(redirection, tmp_path, form=form) as (process, path):
        await serves(path, 20)
        assert await ended(process) == 0


@starts_processes
async def test_lines_that_were_not_written_are_counted(tmp_path: Path) -> None:
    """`/metrics` tells of a full disk what the log cannot."""
    async with serving_into("2>/dev/full", tmp_path) as (process, path):
        await serves(path, 20)
        peer = await reached(path)
        answer = await peer.call("GET", "/metrics")
        count = answer.partition(b"\nrepeater_log_lines_lost_total ")[2].split()[0]
        assert float(count) >= 40
        await peer.stream.aclose()
        assert await ended(process) == 0


@pytest.fixture
def small_pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe of 4 KiB."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4_096)
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


@starts_processes
async def test_a_pipe_that_nobody_reads(small_pipe: tuple[int, int], tmp_path: Path) -> None:
    """Everybody is served on, and the end takes no longer than the bounded wait for the log."""
    async with serving_into("", tmp_path, small_pipe[1]) as (process, path):
        await serves(path)
        assert await ended(process) == 0


@starts_processes
async def test_a_pipe_that_is_read_later(small_pipe: tuple[int, int], tmp_path: Path) -> None:
    """Once somebody reads, everything comes that waited, in order, and then the last line."""
    reader, writer = small_pipe
    async with serving_into("", tmp_path, writer, "json") as (process, path):
        os.close(writer)
        await serves(path)
        text = b""

        async def read() -> None:
            nonlocal text
            async with trio.lowlevel.FdStream(os.dup(reader)) as stream:
                async for chunk in stream:
                    text += chunk

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            assert await ended(process) == 0
    first, *lines = text.splitlines()
    assert b"is up on" in first
    events = [json.loads(line)["event"] for line in lines]
    assert events.count("connected") == events.count("disconnected") == CLIENTS
    assert events[-1] == "stopped"


@starts_processes
async def test_a_reader_that_has_gone(small_pipe: tuple[int, int], tmp_path: Path) -> None:
    """A pipe without a reader ends nothing either."""
    os.close(small_pipe[0])
    async with serving_into("", tmp_path, small_pipe[1]) as (process, path):
        await serves(path, 20)
        assert await ended(process) == 0


@starts_processes
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_mistake_without_a_log(redirection: str) -> None:
    """A start that is refused ends with status 1 all the same."""
    command = f'exec "$@" {redirection}'
    arguments = [*SERVE, "--dev", "--port", "0", "--tls-cert", "/nowhere"]
    result = subprocess.run(
        ["/bin/sh", "-c", command, "sh", *arguments], timeout=PROCESS_STARTS, check=False
    )
    assert result.returncode == 1


@starts_processes
def test_what_python_itself_writes() -> None:
    """Warnings and the traceback of a crash are written too, before the process ends."""
    code = (
        "import sys, warnings\n"
        "from repeater.log import configure_log, get_logger, open_log_output\n"
        "open_log_output(); configure_log('info')\n"
        "get_logger('test').info('first')\n"
        "warnings.warn('second')\n"
        "raise RuntimeError('third')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=PROCESS_STARTS, check=False
    )
    places = [result.stderr.index(word) for word in (b"first", b"second", b"RuntimeError: third")]
    assert places == sorted(places)
    assert result.returncode == 1


@pytest.fixture
def told() -> list[int]:
    return []


def test_the_queue_has_a_bound(small_pipe: tuple[int, int], told: list[int]) -> None:
    """Lines above it are lost and counted, and told in one call when all goes again."""
    reader, writer = small_pipe
    os.set_blocking(reader, False)
    came = Event()

    def tell(lines: int) -> None:
        told.append(lines)
        output.write(b"lost\n")
        came.set()

    output = LogOutput(writer, tell, limit=20_000)
    for number in range(1_000):
        output.write(b"%099d\n" % number)
    assert output._waiting <= 20_000
    assert 800 <= output.lost < 1_000
    assert not output.drain(0.01)  # it waits no longer than it is told to
    text = b""
    while not text.endswith(b"lost\n"):
        with contextlib.suppress(BlockingIOError):
            text += os.read(reader, 65_536)
    assert came.wait(LOOP_ANSWERS)
    assert told == [output.lost]
    kept = text.splitlines()[:-1]
    assert [int(line) for line in kept] == list(range(1_000 - output.lost))
    assert output.drain(LOOP_ANSWERS)
    assert output._waiting == 0


def test_a_descriptor_that_does_not_block(small_pipe: tuple[int, int], told: list[int]) -> None:
    """A descriptor that somebody made non-blocking loses nothing and is not written half."""
    reader, writer = small_pipe
    os.set_blocking(writer, False)
    output = LogOutput(writer, told.append)
    output.write(b"x" * 50_000 + b"\n")
    text = b""
    while not text.endswith(b"\n"):
        text += os.read(reader, 1_000)
    assert len(text) == 50_001
    assert output.drain(LOOP_ANSWERS)
    assert (output.lost, told) == (0, [])


def test_a_disk_with_room_again(tmp_path: Path, told: list[int]) -> None:
    """What a full disk cost is told with the first line that is written again."""
    full = os.open("/dev/full", os.O_WRONLY)
    output = LogOutput(full, told.append)
    for _ in range(3):
        output.write(b"one\ntwo\n")
    assert output.drain(LOOP_ANSWERS)
    assert output.lost == 6
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(file, full)
    output.write(b"three\n")
    assert output.drain(LOOP_ANSWERS)
    assert told == [6]
    assert (tmp_path / "log").read_text() == "three\n"
    os.close(full)
    os.close(file)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_who_reads_the_log_costs_no_thread(kind: str, told: list[int]) -> None:
    """Lines go out at once while they are read; the thread comes with the first that is not."""
    if kind == "pipe":
        reads, writes = os.pipe()
    else:
        one, other = socket.socketpair()
        reads, writes = one.detach(), other.detach()
    output = LogOutput(writes, told.append)
    for number in range(100):
        output.write(b"line %d\n" % number)
        assert os.read(reads, 100) == b"line %d\n" % number
    threads = [output._thread]
    for _ in range(1_000):
        output.write(b"x" * 999 + b"\n")
    threads.append(output._thread)
    assert [thread is None for thread in threads] == [True, False]
    read = 0
    while read < 1_000_000 - 1_000 * output.lost:
        read += len(os.read(reads, 65_536))
    assert output.drain(LOOP_ANSWERS)
    os.close(reads)
    os.close(writes)
    output.close()
