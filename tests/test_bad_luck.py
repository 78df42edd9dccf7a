"""A real server process in bad luck: no descriptors left, a signal in the middle of everything."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.serving import UPGRADE, Peer, close_code

pytestmark = pytest.mark.timeout(60)  # a process that starts, and a thousand connections

SERVE = [sys.executable, "-m", "repeater", "serve", "--dev", "--no-comments", "--port", "0"]


class Running:
    """A server's process, and what it says."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.log = b""
        self._more = trio.Event()

    async def collect(self) -> None:
        """Read what it says until it has ended."""
        assert self.process.stderr is not None
        async for text in self.process.stderr:
            self.log += text
            self._more.set()
            self._more = trio.Event()

    async def said(self, pattern: bytes) -> re.Match[bytes]:
        """The first text like this, once it has come."""
        with trio.fail_after(15):
            while (found := re.search(pattern, self.log)) is None:
                await self._more.wait()
        return found

    async def port(self) -> int:
        return int((await self.said(rb"127\.0\.0\.1:(\d+)"))[1])


@asynccontextmanager
async def serving(descriptors: int = 4_096) -> AsyncIterator[Running]:
    """A server with so many descriptors; ended if the test has not ended it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    process = await trio.lowlevel.open_process(SERVE, stderr=subprocess.PIPE, preexec_fn=limit)
    running = Running(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.collect)
        try:
            yield running
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    assert process.stderr is not None
    await process.stderr.aclose()


async def subscribed(port: int) -> Peer:
    """A subscriber of `news`, that the server has let in."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    peer = Peer(stream)
    await stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
    assert b" 101 " in await peer.until(b"\r\n\r\n")
    return peer


async def publish(back_end: Peer, number: int) -> bool:
    """One event; whether the server took it."""
    body = b'{"channel":"news","data":"<%06d>"}' % number
    return b'"offset"' in await back_end.call("POST", "/api/publish", body)


async def test_out_of_descriptors() -> None:
    """Accepting pauses, those inside are served on; with room again others are let in."""
    async with serving(descriptors=64) as running:
        port = await running.port()
        back_end = Peer(await trio.open_tcp_stream("127.0.0.1", port))
        assert await publish(back_end, 0)
        inside = await subscribed(port)
        crowd = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(100)]
        await running.said(rb"not accepting")
        assert await publish(back_end, 1)
        await inside.until(b"<000001>")
        for stream in crowd:
            await stream.aclose()
        with trio.fail_after(10):
            late = await subscribed(port)
        assert await publish(back_end, 2)
        await late.until(b"<000002>")
        assert running.process.returncode is None
        assert b"Traceback" not in running.log
        for peer in (back_end, inside, late):
            await peer.stream.aclose()


async def test_a_signal_with_a_thousand_connected_and_publishing_under_way() -> None:
    """What was accepted reaches everybody in order, all hear 3001, and the exit is 0 and timely."""
    received: list[bytes] = []
    accepted = 0
    under_way = trio.Event()

    async def listen(peer: Peer) -> None:
        received.append(await peer.rest())
        await peer.stream.aclose()

    async def publish_on(back_end: Peer) -> None:
        nonlocal accepted
        try:
            while await publish(back_end, accepted):
                accepted += 1
                if accepted == 20:
                    under_way.set()
        except (AssertionError, trio.BrokenResourceError):
            return  # The server hung up; that call was not answered.

    async with serving() as running, trio.open_nursery() as nursery:
        port = await running.port()
        for _ in range(1_000):
            nursery.start_soon(listen, await subscribed(port))
        back_end = Peer(await trio.open_tcp_stream("127.0.0.1", port))
        async with back_end.stream:
            nursery.start_soon(publish_on, back_end)
            await under_way.wait()
            running.process.send_signal(signal.SIGTERM)
            with trio.fail_after(10):
                assert await running.process.wait() == 0
    assert b"Traceback" not in running.log
    assert len(received) == 1_000
    for one in received:
        numbers = [int(number) for number in re.findall(rb"<(\d{6})>", one)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= accepted
        assert close_code(one) == 3001
