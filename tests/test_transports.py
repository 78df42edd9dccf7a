"""What every transport does, the fakes included."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.protocol import CLIENT, Protocol

from repeater.errors import SHUTDOWN
from repeater.fanout.transport import Transport
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_STREAM, PLAIN
from repeater.protocol.sse.event_stream import EVENT_STREAM
from repeater.testing import MemoryTransport, StallingTransport
from repeater.transports.asgi_stream import ASGIStreamTransport
from repeater.transports.http_stream import HTTPStreamTransport
from repeater.transports.websocket import WebSocketTransport

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def open_memory(_pair: Pair) -> Transport:
    return MemoryTransport()


def open_stalling(_pair: Pair) -> Transport:
    transport = StallingTransport()
    transport.allow(100)
    return transport


def open_websocket(pair: Pair) -> Transport:
    return WebSocketTransport(pair[0], PLAIN)


def open_http_stream(pair: Pair) -> Transport:
    return HTTPStreamTransport(pair[0], EVENT_STREAM)


OPEN = {
    "memory": open_memory,
    "stalling": open_stalling,
    "websocket": open_websocket,
    "http_stream": open_http_stream,
}


@pytest.fixture(params=OPEN)
def transport(request: pytest.FixtureRequest, pair: Pair) -> Transport:
    make: Callable[[Pair], Transport] = OPEN[request.param]
    return make(pair)


def fill(transport: Transport) -> None:
    """Write until it takes nothing more."""
    with pytest.raises(BlockingIOError):  # noqa: PT012
        while True:
            assert transport.write(b"x" * 65_536) > 0


async def test_write_takes_what_it_says(transport: Transport) -> None:
    """`write` and `send_some` return how many bytes they took, at least one."""
    assert transport.write(b"abc") == 3
    assert await transport.send_some(b"de") == 2


async def test_abort_ends_writing(transport: Transport) -> None:
    """After `abort`, which may come twice, both ways of writing raise."""
    transport.abort()
    transport.abort()
    with pytest.raises(OSError):  # noqa: PT011  # any errno is right
        transport.write(b"x")
    with pytest.raises((OSError, trio.ClosedResourceError)):
        await transport.send_some(b"x")


async def test_release_is_idempotent(transport: Transport) -> None:
    """`release` may come twice, and before or after `abort`."""
    transport.release()
    transport.release()
    transport.abort()
    transport.release()


@pytest.mark.parametrize("kind", ["stalling", "websocket", "http_stream"])
async def test_abort_wakes_who_waits(kind: str, pair: Pair) -> None:
    """A `send_some` that waits for a full socket ends when the transport is aborted."""
    transport = OPEN[kind](pair)
    fill(transport)

    async def send() -> None:
        with pytest.raises((OSError, trio.ClosedResourceError)):
            await transport.send_some(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        transport.abort()


async def test_stalled_send_goes_on_when_the_peer_reads() -> None:
    """The fake's `send_some` waits for `allow`."""
    transport = StallingTransport()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_some, b"abc")
        await wait_all_tasks_blocked()
        assert not transport.sent
        transport.allow(2)
    assert transport.sent == [b"ab"]


@pytest.mark.parametrize("kind", ["websocket", "http_stream"])
async def test_full_socket_goes_on_when_the_peer_reads(kind: str, pair: Pair) -> None:
    """The native `send_some` waits until the peer has read."""
    transport = OPEN[kind](pair)
    fill(transport)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_some, b"x")
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                pair[1].recv(1 << 20)


async def test_native_goodbye_is_read_before_the_end(pair: Pair) -> None:
    """`close` sends the close frame and the end of stream, then waits until the peer hung up."""
    transport = WebSocketTransport(pair[0], PLAIN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.close, SHUTDOWN)
        await wait_all_tasks_blocked()
        client = Protocol(CLIENT)
        client.receive_data(pair[1].recv(1_000))
        assert client.close_rcvd is not None
        assert (client.close_rcvd.code, client.close_rcvd.reason) == (3001, "shutdown")
        assert pair[1].recv(1_000) == b""
        assert nursery.child_tasks
        pair[1].close()
    transport.release()


async def test_a_stream_says_why_it_ends(pair: Pair) -> None:
    """Without a close frame the reason is the last message, then the end, then the hang-up."""
    transport = HTTPStreamTransport(pair[0], CENTRIFUGE_STREAM)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.close, SHUTDOWN)
        await wait_all_tasks_blocked()
        last = b'{"push":{"disconnect":{"code":3001,"reason":"shutdown"}}}\n'
        assert pair[1].recv(1_000) == last
        assert pair[1].recv(1_000) == b""
        assert nursery.child_tasks
        pair[1].close()
    transport.release()


async def test_a_body_behind_asgi() -> None:
    """Each chunk is a part of the body, the reason its last; after `abort` nothing is sent."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    transport = ASGIStreamTransport(send, CENTRIFUGE_STREAM, "http_stream")
    with pytest.raises(BlockingIOError):
        transport.write(b"x")
    assert await transport.send_some(b"abc") == 3
    await transport.close(SHUTDOWN)
    assert [(one["body"][:3], one["more_body"]) for one in sent] == [
        (b"abc", True),
        (b'{"p', False),
    ]
    transport.abort()
    transport.release()
    with pytest.raises(trio.ClosedResourceError):
        await transport.send_some(b"x")


async def test_fake_goodbye_is_noted() -> None:
    """The fakes remember what was said at the end."""
    transport = MemoryTransport()
    await transport.close(SHUTDOWN)
    assert transport.closed_with == SHUTDOWN
