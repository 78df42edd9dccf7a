"""Peers that leave while something is written to them, on real sockets: 3000, not 3009."""

from __future__ import annotations

import socket
import struct
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.clients.client import Client
from repeater.errors import CONNECTION_CLOSED
from repeater.serving.server import Server
from tests.certificates import Authority
from tests.serving import Peer, peer, running

_RESET = struct.pack("ii", 1, 0)
_CHUNK = b"x" * 200_000
PEERS = 8
"""Reader and writer of a client hear of its peer's end in one pass of the loop, in any order."""

every_wire = pytest.mark.parametrize("wire", ["plain", "tls"])
every_path = pytest.mark.parametrize("path", ["/ws", "/events"])


@pytest.fixture
def wiring(wire: str, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    if wire == "tls":
        monkeypatch.setattr("tests.serving.authority", authority)


async def _subscribe(
    server: Server, stack: AsyncExitStack, path: str
) -> list[trio.socket.SocketType]:
    """Subscribe some peers natively; their sockets."""
    sockets = []
    for _ in range(PEERS):
        target = f"{path}?channel=news"
        if path == "/ws":
            subscriber = await stack.enter_async_context(peer(server, target))
        else:
            subscriber = await stack.enter_async_context(peer(server))
            head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await subscriber.stream.send_all(head.encode())
            await subscriber.until(b"\r\n\r\n")
        sockets.append(_socket_of(subscriber))
    assert len(server.node.registry.clients) == PEERS
    return sockets


def _socket_of(subscriber: Peer) -> trio.socket.SocketType:
    stream: trio.abc.Stream = subscriber.stream
    below = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(below, trio.SocketStream)
    return below.socket


def _reset(sockets: list[trio.socket.SocketType]) -> None:
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()


async def _all_gone(server: Server) -> None:
    while server.node.registry.clients:
        await trio.lowlevel.checkpoint()
    assert server.node.statistics().ended == {3000: PEERS}


def _fall_behind(client: Client) -> None:
    while not client.outbox.backlog_bytes:
        client.outbox.send(_CHUNK)


@every_wire
@every_path
@pytest.mark.usefixtures("wiring")
async def test_a_reset_before_the_next_event(path: str) -> None:
    """The event's own write finds the peer gone, before its reader hears of it."""
    async with running() as server, AsyncExitStack() as stack:
        sockets = await _subscribe(server, stack, path)
        clients = list(server.node.registry.clients)
        _reset(sockets)
        for client in clients:
            client.outbox.send(b"event")
            client.outbox.send(b"event")  # TLS may hear of it at its second write
        assert {client.end for client in clients} <= {CONNECTION_CLOSED, None}
        await _all_gone(server)


@every_wire
@every_path
@pytest.mark.usefixtures("wiring")
async def test_a_reset_in_the_middle_of_a_backlog(path: str) -> None:
    """Whoever has not read what waits has left all the same."""
    async with running() as server, AsyncExitStack() as stack:
        sockets = await _subscribe(server, stack, path)
        for client in server.node.registry.clients:
            _fall_behind(client)
        await wait_all_tasks_blocked()
        _reset(sockets)
        await _all_gone(server)


@every_path
@pytest.mark.usefixtures("wiring")
@every_wire
async def test_a_page_that_is_left_while_a_batch_is_sent(path: str) -> None:
    """A close of a socket with unread bytes, in the middle of what fan-out writes."""
    async with running() as server, AsyncExitStack() as stack:
        sockets = await _subscribe(server, stack, path)
        for client in server.node.registry.clients:
            client.outbox.send(b"unread")
        for sock in sockets:
            sock.close()
        for _ in range(3):
            for client in list(server.node.registry.clients):
                client.outbox.send(b"event")
        await _all_gone(server)
