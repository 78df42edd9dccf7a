"""The native WebSocket: one task and one non-blocking socket a client, nothing in between.

Bytes never pass through ASGI here: that is what makes a delivery cost little more than its system
call. The read loop is the client's only task; writing happens wherever an event comes about.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from repeater.clients.client import Client
from repeater.errors import Disconnect
from repeater.protocol.websocket.frames import FrameReader, close_frame
from repeater.transports.sockets import RECEIVE, SocketTransport

if TYPE_CHECKING:
    from repeater.clients.conversation import Conversation
    from repeater.node import Node


class WebSocketTransport(SocketTransport):
    """Speaks WebSocket frames. Owned by the connection's handler, which made the handshake."""

    __slots__ = ()

    name = "websocket"

    async def close(self, disconnect: Disconnect) -> None:
        """Send the close frame, then wait until the peer hung up (the caller's deadline)."""
        await self.part(close_frame(disconnect.code, disconnect.reason))


class UnidirectionalTransport(WebSocketTransport):
    """The same for a client that only listens."""

    __slots__ = ()

    name = "uni_websocket"


async def serve(
    node: Node,
    client: Client,
    sock: socket.socket,
    session: Conversation | None,
    received: bytes,
    first: str | bytes = "",
) -> None:
    """Read until the client leaves or is ended; the socket is gone afterwards.

    Args:
        node: Where the client belongs.
        client: Made of an accepted handshake, which is answered.
        sock: The client's socket.
        session: What its messages are for; None to ignore them.
        received: What arrived behind the request head.
        first: A message that came with the request itself, before all others.
    """
    try:
        if session is not None and first:
            await session.receive(first)
        await _read(node, client, sock, session, received)
    finally:
        await client.leave()


async def _read(
    node: Node,
    client: Client,
    sock: socket.socket,
    session: Conversation | None,
    received: bytes,
) -> None:
    """Read until the peer leaves. No deadline: an idle peer is the heartbeat's to find."""
    reader: FrameReader | None = None
    limit = node.options.message_limit
    while True:
        if received:
            client.heard()
            reader = reader or FrameReader(limit)
            await _take(client, session, reader, received)
            if reader.closed:
                await _answer_close(client, node.options.close_timeout)
                return
            if reader.idle:
                reader = None
        if client.outbox.closed:
            return  # Cut while it was served; the socket is closed.
        try:
            await trio.lowlevel.wait_readable(sock)
            received = sock.recv(RECEIVE)
        except BlockingIOError:
            received = b""
        except (OSError, trio.ClosedResourceError):
            return
        else:
            if not received:
                return


async def _take(
    client: Client, session: Conversation | None, reader: FrameReader, received: bytes
) -> None:
    """Pongs at once, then the messages, and the close frame behind their replies."""
    messages = reader.feed(received)
    if reader.pongs:
        client.outbox.send(reader.pongs)
    if session is not None:
        for message in messages:
            if client.end is None:
                await session.receive(message)
    if reader.closing:
        client.outbox.send(reader.closing)


async def _answer_close(client: Client, seconds: float) -> None:
    """The closing handshake is under way: let our half of it reach the peer."""
    client.depart()  # before the socket is half closed: an event written then were an error
    transport = client.transport
    assert isinstance(transport, WebSocketTransport)
    with trio.move_on_after(seconds):
        try:
            await client.outbox.wait_empty()
            if not client.outbox.closed:
                await transport.linger()
        except (OSError, trio.ClosedResourceError):
            return
