"""A real server process in bad luck: no descriptors left, a signal in the middle of everything."""

from __future__ import annotations

import re

import pytest
import trio
from trio.testing import MockClock

from repeater.protocol.http.head import begins_request
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS, run_in_real_time
from tests.processes import serving, starts_processes
from tests.serving import UPGRADE, Peer, close_code, running

pytestmark = starts_processes


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


async def metric(back_end: Peer, name: str) -> float:
    """The value of a metric without labels."""
    answer = await back_end.call("GET", "/metrics")
    found = re.search(rb"^%s ([0-9.]+)$" % name.encode(), answer, re.MULTILINE)
    assert found is not None, answer
    return float(found[1])


async def test_out_of_descriptors() -> None:
    """Accepting pauses, those inside are served on; with room again others are let in."""
    # More connections than descriptors, so that the descriptors run out first.
    crowded = {"REPEATER_LIMITS__OPEN_CONNECTIONS": "1000"}
    async with serving("--dev", variables=crowded, descriptors=64) as server:
        port = await server.port()
        back_end = Peer(await trio.open_tcp_stream("127.0.0.1", port))
        assert await publish(back_end, 0)
        inside = await subscribed(port)
        crowd = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(100)]
        await server.line("not accepting")
        await trio.sleep(0.3)
        pauses = await metric(back_end, "repeater_acceptor_pauses_total")
        assert 1 <= pauses <= 20  # a pause each 0.1 s, not a loop that spins
        assert await publish(back_end, 1)
        await inside.until(b"<000001>")
        for stream in crowd:
            await stream.aclose()
        with trio.fail_after(LOOP_ANSWERS):
            late = await subscribed(port)
        assert await publish(back_end, 2)
        await late.until(b"<000002>")
        assert server.process.returncode is None
        assert b"Traceback" not in server.log
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

    # A client that the shutdown's deadline cuts off does not hear 3001. So the deadline is longer
    # here than the default of ten seconds: a busy machine may need more.
    patient = {"REPEATER_SHUTDOWN_TIMEOUT": str(PROCESS_STARTS)}
    async with (
        serving("--dev", variables=patient, descriptors=4_096) as server,
        trio.open_nursery() as nursery,
    ):
        port = await server.port()
        for _ in range(1_000):
            nursery.start_soon(listen, await subscribed(port))
        back_end = Peer(await trio.open_tcp_stream("127.0.0.1", port))
        async with back_end.stream:
            nursery.start_soon(publish_on, back_end)
            await under_way.wait()
            assert await server.end() == 0
    assert b"Traceback" not in server.log
    assert len(received) == 1_000
    for one in received:
        numbers = [int(number) for number in re.findall(rb"<(\d{6})>", one)]
        assert numbers == list(range(len(numbers)))
        assert close_code(one) == 3001
        assert len(numbers) >= accepted


async def test_a_head_that_trickles_costs_few_reads(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte it is read ever more rarely, within its deadline, and answered when it ends."""
    reads = 0

    def count(received: bytes) -> bool:
        nonlocal reads
        reads += 1
        return begins_request(received)

    monkeypatch.setattr("repeater.front.accept.begins_request", count)
    head = b"GET /health/live HTTP/1.1\r\nHost: t\r\nX: " + b"x" * 400 + b"\r\n\r\n"
    async with running() as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            for place in range(len(head)):
                await stream.send_all(head[place : place + 1])
                await trio.sleep(0.01)
            run_in_real_time(autojump_clock)
            assert b" 200 " in await stream.receive_some()
        assert reads < 30


class EmptyLines:
    """A socket whose peer sends empty lines, faster than they are read."""

    def __init__(self, first: bytes, size: int) -> None:
        """Give `first` to the first read, and `size` bytes to each other; 0 for all it asks."""
        self.reads = 0
        self._first = first
        self._size = size

    def recv(self, size: int) -> bytes:
        self.reads += 1
        assert self.reads < 1_000, "read without giving way"
        if self._first and self.reads == 1:
            return self._first
        rest = b"\n\r" if self._first == b"\r" else b"\r\n"
        return (rest * size)[: self._size or size]


@pytest.mark.parametrize("size", [2_000, 0])
@pytest.mark.parametrize("first", [b"", b"\r"])
async def test_endless_empty_lines_hold_nobody_up(
    autojump_clock: MockClock, first: bytes, size: int
) -> None:
    """They are read ever more rarely, like any head that does not end, and have its deadline.

    However many come at once, and wherever in a line's end a read ends.
    """
    sock = EmptyLines(first, size)
    async with running() as server:
        with trio.CancelScope() as scope:
            await server.acceptor._read_head(sock, scope)  # type: ignore[arg-type]
        assert scope.cancelled_caught
        assert sock.reads < 30
