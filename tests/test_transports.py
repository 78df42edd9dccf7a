"""What only one kind of transport does; what all do is in test_conformance.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.protocol import CLIENT, Protocol

from repeater.errors import SHUTDOWN
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_STREAM, PLAIN
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


async def test_stalled_send_goes_on_when_the_peer_reads() -> None:
    """The fake's `send_some` waits for `allow`."""
    transport = StallingTransport()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_some, b"abc")
        await wait_all_tasks_blocked()
        assert not transport.sent
        transport.allow(2)
    assert transport.sent == [b"ab"]


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
