"""Connections behind Hypercorn: deadlines, ends and half-closes, on socket pairs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import socket
import struct
import termios
import tracemalloc
import weakref
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.config import load_settings
from repeater.front.handed_connection import Link
from repeater.front.hypercorn import Handover, HandoverStatistics
from repeater.front.starts import Starts
from tests.deadlines import LOOP_ANSWERS, run_in_real_time
from tests.serving import running

HEAD = b"GET /%s HTTP/1.1\r\nHost: t\r\n\r\n"
NOTHING = b"(nothing)"
LARGE = 8 * 2**20
PAGE = bytes(32 * 2**10)
HUGE = bytes(LARGE)

Endpoint = Callable[[Any, Any, Any], Awaitable[None]]


async def answer(send: Any, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    if headers is None:
        headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def whole_body(receive: Any) -> bytes:
    body = b""
    while True:
        event: dict[str, Any] = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionResetError("gone")
        body += bytes(event["body"])
        if not event["more_body"]:
            return body


class Application:
    """Answers by path; notes what was under way, and how it ended."""

    def __init__(self) -> None:
        self.open = self.begun = 0
        self.go_on = trio.Event()
        self.gone = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.open += 1
        self.begun += 1
        try:
            await getattr(self, scope["path"].strip("/"))(receive, send)
        finally:
            self.open -= 1

    async def quick(self, _receive: Any, send: Any) -> None:
        await answer(send, b"quick")

    async def echo(self, receive: Any, send: Any) -> None:
        await answer(send, await whole_body(receive))

    async def slow(self, _receive: Any, send: Any) -> None:
        await self.go_on.wait()
        await answer(send, b"slow")

    async def large(self, _receive: Any, send: Any) -> None:
        await answer(send, bytes(LARGE))

    async def page(self, _receive: Any, send: Any) -> None:
        await answer(send, PAGE)

    async def huge(self, _receive: Any, send: Any) -> None:
        await answer(send, HUGE)

    async def endless(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone += 1

    async def deaf(self, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await trio.sleep_forever()


class Line:
    """The other end of a connection that is served."""

    def __init__(self, sock: socket.socket, application: Application, handover: Handover) -> None:
        self.socket = sock
        self.application = application
        self.handover = handover
        self.served: socket.socket
        self.over = trio.Event()

    @property
    def ended(self) -> bool:
        """Whether the connection is served no more."""
        return self.over.is_set()

    def send(self, data: bytes) -> None:
        assert self.socket.send(data) == len(data)

    async def received(self) -> bytes:
        """Everything that is to be read now."""
        await wait_all_tasks_blocked()
        try:
            return self.socket.recv(1 << 20)
        except BlockingIOError:
            return NOTHING
        except ConnectionResetError:
            return b""

    @property
    def statistics(self) -> HandoverStatistics:
        return self.handover.statistics()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    """A connection whose client's window is small."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.socket()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        theirs.connect(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs


@asynccontextmanager
async def line(
    received: bytes = b"", *, tcp: bool = False, **settings: object
) -> AsyncIterator[Line]:
    """One connection, served until the block ends; these bytes were read already."""
    application = Application()
    handover = Handover(application, load_settings(dev=True, **settings))  # type: ignore[arg-type]
    ours, theirs = _tcp_pair() if tcp else socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)

    class Named(socket.socket):
        def getpeername(self) -> Any:
            return "127.0.0.1", 1

        def getsockname(self) -> Any:
            return "127.0.0.1", 2

    named = Named(ours.family, ours.type, ours.proto, ours.detach())
    named.setblocking(False)
    with theirs, named:
        async with trio.open_nursery() as nursery:
            end = Line(theirs, application, handover)
            end.served = named

            async def serve() -> None:
                await handover.serve(named, received)
                end.over.set()

            nursery.start_soon(serve)
            yield end
            nursery.cancel_scope.cancel()
    assert application.open == 0


async def test_an_idle_connection_is_closed(autojump_clock: MockClock) -> None:
    """After 75 seconds without a request."""
    async with line(HEAD % b"quick") as end:
        assert b"quick" in await end.received()
        await trio.sleep(74)
        assert not end.ended
        end.send(HEAD % b"quick")
        assert b"quick" in await end.received()
        await trio.sleep(74)
        assert not end.ended
        await trio.sleep(2)
        assert end.ended


@pytest.mark.parametrize("first", [b"", HEAD % b"quick", 2 * (HEAD % b"quick") + b"GET /"])
async def test_a_head_that_trickles(autojump_clock: MockClock, first: bytes) -> None:
    """Each head has ten seconds from its first byte on; later bytes do not move the deadline."""
    async with line(first) as end:
        await end.received()
        for byte in b"GET /quick HTTP/1.1":
            if trio.current_time() < 9:
                end.send(bytes([byte]))
                await trio.sleep(1)
        assert not end.ended
        await trio.sleep(2)
        assert end.ended


async def test_each_head_has_its_own_time(autojump_clock: MockClock) -> None:
    """A connection whose heads take eight seconds each is served on and on."""
    head = HEAD % b"quick"
    async with line() as end:
        for _ in range(5):
            end.send(head[:9])
            await trio.sleep(8)
            assert not end.ended
            end.send(head[9:])
            assert b"quick" in await end.received()


async def test_answers_that_nobody_reads(autojump_clock: MockClock) -> None:
    """Two hundred requests without reading: reset after the write timeout, and counted."""
    async with line(200 * (HEAD % b"large"), write_timeout=5.0) as end:
        await trio.sleep(4)
        assert end.statistics.open == 1
        await trio.sleep(2)
        assert end.ended
        assert end.statistics.stalled == 1


async def test_the_kernel_takes_few_answers_that_nobody_reads(autojump_clock: MockClock) -> None:
    """A peer that pipelines without reading is answered a few times, not until megabytes are full.

    Without a limit the kernel takes 80 answers of 32 KiB and more.
    """
    pages = 200
    async with line(pages * (HEAD % b"page"), tcp=True) as end:
        await wait_all_tasks_blocked()
        run_in_real_time(autojump_clock)
        assert 0 < end.application.begun < 10
        got = 0
        with trio.fail_after(60):
            while got < pages * len(PAGE):  # who reads gets them all
                await trio.lowlevel.wait_readable(end.socket)
                got += len(end.socket.recv(1 << 20))


async def test_an_answer_that_waits_is_not_copied(autojump_clock: MockClock) -> None:
    """Where many peers do not read one page, its bytes are in memory once."""
    tracemalloc.start()
    try:
        async with line(HEAD % b"huge") as end:
            await wait_all_tasks_blocked()
            assert end.application.begun == 1
            assert tracemalloc.get_traced_memory()[1] < len(HUGE) / 2
    finally:
        tracemalloc.stop()


async def test_few_bytes_are_read_behind_a_request(autojump_clock: MockClock) -> None:
    """What is pipelined behind a request under way stays with the kernel, but for 8 KiB."""
    behind = 1_000 * (HEAD % b"quick")
    async with line(HEAD % b"slow") as end:
        end.send(behind)
        await wait_all_tasks_blocked()
        left = array("i", [0])
        fcntl.ioctl(end.served, termios.FIONREAD, left)
        assert left[0] >= len(behind) - 8_192
        end.application.go_on.set()
        await wait_all_tasks_blocked()
        assert end.application.begun > 1


async def test_nothing_is_begun_for_a_peer_that_has_gone(autojump_clock: MockClock) -> None:
    """Of its pipelined requests the one under way ends, and the others are forgotten."""
    async with line(400 * (HEAD % b"page"), tcp=True) as end:
        await wait_all_tasks_blocked()
        begun = end.application.begun
        end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        run_in_real_time(autojump_clock)
        end.socket.close()  # a reset
        with trio.fail_after(LOOP_ANSWERS):
            await end.over.wait()
        assert end.application.begun == begun
        assert end.statistics.lost == 1


async def test_stalled_peers_are_reset_one_in_each_pass(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a turn, as requests do: what waited for all of them would be one long pass."""
    turns = 0

    async def count(_starts: Starts, _address: str, *, first: bool) -> None:
        nonlocal turns
        turns += 1
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Starts, "next", count)
    async with line(HEAD % b"large", write_timeout=5.0) as end:
        await trio.sleep(4)
        before = turns
        await trio.sleep(2)
        assert end.ended
        assert turns == before + 1


async def test_an_answer_that_is_read_in_a_trickle(autojump_clock: MockClock) -> None:
    """Reading a little now and then does not move the deadline of an answer."""
    async with line(HEAD % b"large", write_timeout=5.0) as end:
        for _ in range(LARGE // 16_384 + 10):
            await wait_all_tasks_blocked()
            if not end.ended:
                end.socket.recv(1_024)
            await trio.sleep(1)
        assert end.ended
        assert end.statistics.stalled == 1


REQUESTS = {
    "http/1.1": HEAD % b"slow",
    "http/1.0": b"GET /slow HTTP/1.0\r\n\r\n",
    "close": b"GET /slow HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
    "length": b"POST /slow HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nslow",
    "chunked": b"POST /slow HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\nslow\r\n0\r\n\r\n",
    "expect": b"POST /slow HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n"
    b"Content-Length: 4\r\n\r\nslow",
}


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_half_close_behind_a_request(autojump_clock: MockClock, kind: str) -> None:
    """A whole request gets its whole answer, whenever it comes; then the connection ends."""
    async with line() as end:
        end.send(REQUESTS[kind])
        end.socket.shutdown(socket.SHUT_WR)
        await trio.sleep(20)
        assert not end.ended
        end.application.go_on.set()
        assert (await end.received()).endswith(b"\r\n\r\nslow")
        assert await end.received() == b""
        assert end.ended


async def test_a_half_close_behind_several_requests(autojump_clock: MockClock) -> None:
    """Each of them is answered, and what is not a request any more is answered with 400."""
    async with line() as end:
        end.send(HEAD % b"quick" + HEAD % b"slow" + HEAD % b"quick" + b"GET /qu")
        end.socket.shutdown(socket.SHUT_WR)
        assert (await end.received()).count(b"quick") == 1
        end.application.go_on.set()
        got = await end.received()
        assert got.count(b"slow") == got.count(b"quick") == 1
        assert got.count(b" 400 ") == 1
        assert await end.received() == b""
        assert end.ended


async def test_the_refusal_of_an_invalid_body_is_the_only_answer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the application has answered before the reader comes to the fault."""

    async def give_way(_link: Link) -> None:
        await trio.sleep(1)

    monkeypatch.setattr(Link, "give_way", give_way)
    head = HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") % b"quick"
    async with line() as end:
        end.send(head + b"5\r\nhello\r\nZ")
        await trio.sleep(10)
        got = await end.received()
        assert got.startswith(b"HTTP/1.1 400 ")
        assert b"quick" not in got


@pytest.mark.parametrize("behind", [b"", HEAD % b"quick", b"GET /qu", 30 * (HEAD % b"quick")])
async def test_a_half_close_ends_an_endless_answer(
    autojump_clock: MockClock, behind: bytes
) -> None:
    """Its application hears of it at once, whatever stands behind the request."""
    async with line() as end:
        end.send(HEAD % b"endless" + behind)
        assert b"first" in await end.received()
        end.socket.shutdown(socket.SHUT_WR)
        assert await end.received() == b""
        assert end.application.gone == 1
        assert end.ended


async def test_an_application_that_does_not_hear_of_the_end(autojump_clock: MockClock) -> None:
    """It is cancelled, half a second after its peer has gone."""
    async with line(HEAD % b"deaf") as end:
        assert b"first" in await end.received()
        end.socket.close()
        await trio.sleep(0.6)
        assert end.ended


@pytest.mark.parametrize("first", [b"", HEAD % b"quick"])
async def test_the_preface_of_http2(autojump_clock: MockClock, first: bytes) -> None:
    """Without TLS that negotiated it nobody speaks HTTP/2: 400, and the end."""
    async with line(first + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0") as end:
        got = await end.received()
        assert b" 400 " in got
        assert got.count(b"HTTP/1.1 ") == (2 if first else 1)
        await trio.sleep(3)
        assert end.ended


@pytest.mark.parametrize("first", [b"", HEAD % b"quick"])
async def test_an_upgrade_to_http2(autojump_clock: MockClock, first: bytes) -> None:
    """It is not answered: the request is served as it is, by HTTP/1.1."""
    more = (
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    )
    async with line(first + HEAD[:-2] % b"quick" + more) as end:
        got = await end.received()
        assert b" 101 " not in got
        assert got.count(b" 200 ") == (2 if first else 1)
        assert not end.ended


@pytest.mark.parametrize("wish", [b"Connection: close\r\n", b""])
async def test_bytes_behind_the_last_request(autojump_clock: MockClock, wish: bytes) -> None:
    """They do not spoil the answer of a request that is carried out, nor are they served."""
    version = b"1" if wish else b"0"
    request = b"GET /quick HTTP/1.%s\r\nHost: t\r\n%s\r\n" % (version, wish)
    for behind in (b"\r\n", HEAD % b"quick", b"\x16\x03"):
        async with line(request + behind) as end:
            got = await end.received()
            assert got.count(b"HTTP/1.1 ") == 1
            assert b" 200 " in got
            await trio.sleep(3)
            assert end.ended


async def test_a_failure_of_the_application(autojump_clock: MockClock) -> None:
    """500 for this request; the connection goes on, and the failure is noted."""
    async with line(HEAD % b"nothing") as end:
        assert b" 500 " in await end.received()


LATE = b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nec"


@pytest.mark.parametrize(
    ("sent", "within"),
    [(b"", 0.0), (HEAD % b"quick", 0.0), (b"GET /qu", 0.0), (LATE, 0.6), (HEAD % b"endless", None)],
)
async def test_a_shutdown_waits_for_answers_only(
    autojump_clock: MockClock, sent: bytes, within: float | None
) -> None:
    """Idle, in half a head: ended at once; a body that is late has half a second."""
    async with line(sent) as end:
        await end.received()
        await end.handover.drain()
        if within is not None:
            await trio.sleep(within)
            await wait_all_tasks_blocked()
        else:
            await trio.sleep(60)
        assert end.ended is (within is not None)


async def test_a_shutdown_finishes_what_is_under_way(autojump_clock: MockClock) -> None:
    """A body that comes in time is answered; so is a request that takes its time."""
    async with line(LATE) as body, line(HEAD % b"slow") as slow:
        await wait_all_tasks_blocked()
        for end in (body, slow):
            await end.handover.drain()
        body.send(b"ho")
        assert (await body.received()).endswith(b"echo")
        await trio.sleep(5)
        slow.application.go_on.set()
        assert (await slow.received()).endswith(b"slow")
        await trio.sleep(3)
        assert body.ended
        assert slow.ended


async def test_a_closed_connection_leaves_no_cycle(autojump_clock: MockClock) -> None:
    """It is freed without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        async with line(HEAD % b"quick" + HEAD % b"endless") as end:
            assert b"first" in await end.received()
            (link,) = end.handover._links
            reference = weakref.ref(link)
            del link
            end.socket.close()
            await trio.sleep(1)
            assert end.ended
        assert reference() is None
    finally:
        gc.enable()


EXCHANGE = (
    HEAD % b"quick"
    + b"POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    + LATE
    + b"ho"
    + HEAD % b"endless"
    + b"GET /qu"
)


@pytest.mark.parametrize("how", ["hang up", "half-close"])
async def test_a_peer_that_leaves_after_each_byte(autojump_clock: MockClock, how: str) -> None:
    """Wherever an exchange is cut, the connection ends, and so do its requests."""
    for size in range(len(EXCHANGE)):
        async with line() as end:
            end.send(EXCHANGE[:size])
            if size % 2:
                await wait_all_tasks_blocked()
            if how == "hang up":
                end.socket.close()
            else:
                end.socket.shutdown(socket.SHUT_WR)
            await trio.sleep(1)
            assert end.ended, EXCHANGE[:size]
            assert end.application.open == 0


async def test_a_reset_before_the_first_answer_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel does not know the peer's name any more: one line at debug level, counted."""
    async with running() as server:

        def reset(_socket: socket.socket, _seconds: float) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        monkeypatch.setattr("repeater.front.handed_connection.notice_silence", reset)
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
        assert server.node.statistics().failures == {}
