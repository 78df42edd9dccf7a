"""The native HTTP stream: a response without end, written like a WebSocket's frames.

The response has no length and no chunks: it ends with its connection (RFC 9112, section 6.3). So
what is written is the event and nothing else, the same bytes for every subscriber. One task a
client, which only waits for the hang-up; for a client that sends commands by other requests, one
more while it has some.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import trio

from repeater.clients.addresses import client_address
from repeater.clients.client import Client
from repeater.clients.plain import listening
from repeater.clients.session import Session
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import Disconnect
from repeater.front.admit import Answer, Headers, Stream, admit, let_in
from repeater.protocol.centrifugo.codecs import Codec
from repeater.protocol.http.head import HEAD_END
from repeater.protocol.http.request import parse_request
from repeater.transports.sockets import RECEIVE, SocketTransport

if TYPE_CHECKING:
    from repeater.node import Node


_BODILESS: Final = ("GET", "OPTIONS")


class HTTPStreamTransport(SocketTransport):
    """Writes one endless response. Owned by the connection's handler."""

    __slots__ = ("name",)

    def __init__(self, sock: socket.socket, codec: Codec, name: str = "http_stream") -> None:
        super().__init__(sock, codec)
        self.name = name

    async def close(self, disconnect: Disconnect) -> None:
        """Say why as the stream's last message, and end it (protocol, section 8.2)."""
        await self.part(self.codec.farewell(disconnect))


WaitHangUp = Callable[[Client], Awaitable[None]]
"""Waits until the peer is gone, or the client was cut."""


async def open_stream(
    node: Node, origins: Sequence[str], sock: socket.socket, received: bytes
) -> Stream | bytes:
    """Take in a request whose head has arrived; the caller sets the deadline.

    Returns:
        The stream to serve; else the bytes for the server that knows all of HTTP; no bytes
        where the request was refused, or the peer is gone.
    """
    end = received.index(HEAD_END) + len(HEAD_END)
    request = parse_request(received[:end])
    if request is None:
        return received
    admitted = await admit(node, origins, request)
    if isinstance(admitted, Answer):
        if request.method not in _BODILESS or request.length or len(received) > end:
            return received
        # After a preflight the browser would send what it asked for on the same connection,
        # which is no longer the door's when the ASGI server has answered on it.
        _send_last(sock, admitted)
        return b""
    stream = admitted
    if stream.first is None:
        while len(received) < end + request.length:
            try:
                chunk = sock.recv(RECEIVE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
                continue
            if not chunk:
                return b""
            received += chunk
        whole = stream.with_body(received[end : end + request.length])
        if isinstance(whole, Answer):
            return received
        stream = whole
    no_room = let_in(node, stream, client_address(sock))
    if no_room is not None:
        _send_last(sock, no_room)
        return b""
    return stream


async def serve(node: Node, sock: socket.socket, scope: trio.CancelScope, stream: Stream) -> None:
    """Serve an admitted stream until its client leaves or is ended; `scope` surrounds the call."""
    client = Client(
        node.registry,
        HTTPStreamTransport(sock, stream.way.codec, stream.way.name),
        scope,
        ready=stream.wanted is not None,
    )
    node.admission.arrive(node.options.limits, client, client_address(sock))
    if not client.codec.answered:
        _notice_silence(sock, node.options.pong_timeout)
    client.outbox.send(_head("200 OK", stream.headers) + stream.opening)

    async def wait_hang_up(client: Client) -> None:
        await _read_into_nothing(client, sock)

    try:
        await converse(node, client, stream, wait_hang_up)
    finally:
        await client.leave()


async def converse(node: Node, client: Client, stream: Stream, wait_hang_up: WaitHangUp) -> None:
    """Carry on the conversation of the stream's way in, until the peer hangs up."""
    first = stream.first or ""
    client.headers = stream.forwarded
    if stream.wanted is not None:
        async with listening(node, client, stream.wanted):
            await wait_hang_up(client)
    elif stream.way.conversation == "unidirectional":
        client.session = str(uuid4())
        await UnidirectionalSession(node, client).receive(first)
        await wait_hang_up(client)
    else:
        session = Session(node, client)
        async with trio.open_nursery() as nursery:
            with node.emulation.open(client, session, nursery, stream.credentials):
                await session.receive(first)
                await wait_hang_up(client)
            nursery.cancel_scope.cancel()  # whoever hung up waits for no answer


async def _read_into_nothing(client: Client, sock: socket.socket) -> None:
    """Read until the peer leaves. No deadline: an idle peer is the heartbeat's to find."""
    while not client.outbox.closed:
        try:
            await trio.lowlevel.wait_readable(sock)
            if not sock.recv(RECEIVE):
                return
        except BlockingIOError:
            continue
        except (OSError, trio.ClosedResourceError):
            return


def _notice_silence(sock: socket.socket, seconds: float) -> None:
    """Have TCP give up a peer that has not acknowledged what was sent for so long.

    It stands for the pong that a stream can't have: heartbeats are what is sent.
    """
    option: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it, and Darwin not
    if option is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, option, round(seconds * 1_000))


def _send_last(sock: socket.socket, answer: Answer) -> None:
    """A short answer into an empty socket buffer, then the end of our side."""
    status = f"{answer.status:d} {HTTPStatus(answer.status).phrase}"
    sock.send(_head(status, answer.headers) + answer.body)
    sock.shutdown(socket.SHUT_WR)


def _head(status: str, headers: Headers) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    return f"HTTP/1.1 {status}\r\n{''.join(lines)}Connection: close\r\n\r\n".encode()
