"""The native WebSocket: one task and one non-blocking socket per client, nothing in between.

Bytes never pass through ASGI here, so a delivery costs little more than its system call. The read
loop is the client's only task; the task that has an event for the client writes it.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from repeater.clients.client import Client
from repeater.clients.plain import Wanted, hear, listening
from repeater.clients.traffic import count_frames
from repeater.deadlines import within
from repeater.errors import SERVER_ERROR, Disconnect
from repeater.protocol.websocket.frames import (
    FrameReader,
    close_frame,
    give_back,
    take_reader,
)
from repeater.transports.sockets import SocketTransport, greet

if TYPE_CHECKING:
    from repeater.clients.conversation import Conversation
    from repeater.node import Node

_RECEIVE: Final = 16_384  # bytes of one read of a client that sends commands
_RECEIVE_LITTLE: Final = 4_096  # of one that only listens, or is not connected yet
# Bytes that are parsed in one step: at most some 170 frames, about a millisecond. While a step has
# only a few frames, so that they are large ones, the next step is four times as large.
_STEP: Final = 1_024
_FEW_FRAMES: Final = 4


class LateAnswer(NamedTuple):
    """The answer to a plain subscriber's handshake that is given when the channels are held."""

    answer: bytes
    wanted: Wanted


class WebSocketTransport(SocketTransport):
    """Speaks WebSocket frames. Owned by the connection's handler, which made the handshake."""

    __slots__ = ()

    name = "websocket"

    def goodbye(self, disconnect: Disconnect) -> bytes:
        """The close frame."""
        return close_frame(disconnect.code, disconnect.reason)


class UnidirectionalTransport(WebSocketTransport):
    """The transport of a client that only listens."""

    __slots__ = ()

    name = "uni_websocket"

    def goodbye(self, disconnect: Disconnect) -> bytes:
        """A `disconnect` push, and the close frame."""
        return self.codec.farewell(disconnect) + super().goodbye(disconnect)


class EnvelopeTransport(UnidirectionalTransport):
    """The transport of a plain subscriber that gets envelopes."""

    __slots__ = ()

    name = "websocket"


async def serve(
    node: Node,
    client: Client,
    sock: socket.socket,
    session: Conversation | None,
    received: bytes,
    first: str | bytes = "",
    late: LateAnswer | None = None,
) -> None:
    """Read until the client leaves or is ended; the socket is gone afterwards.

    Args:
        node: The client's node.
        client: Made after an accepted handshake.
        sock: The client's socket.
        session: Receives the client's messages, and the handshake is answered; None for a plain
            subscriber, whose messages are ignored.
        received: The bytes that arrived after the request head.
        first: A message that came with the request itself, before all others.
        late: The answer to the handshake, if that waits for the channels of a plain subscriber.
    """
    try:
        if late is not None and late.wanted.envelope:
            listened = _listen(node, client, sock, late, received)
            del late, received  # this frame lives as long as its client
            await listened
        else:
            if late is not None:
                await hear(node, client, late.wanted.channels, partial(greet, client, late.answer))
                late = None
            elif session is not None and first:
                await session.receive(first)
            await _read(node, client, sock, session, received)
    except Exception:
        client.cut(SERVER_ERROR)  # an error of ours, which costs this client; `front` logs it
        raise
    finally:
        await client.leave()


async def _listen(
    node: Node, client: Client, sock: socket.socket, late: LateAnswer, received: bytes
) -> None:
    """Have a plain subscriber with positions hear its channels, and read until it leaves."""
    if client.end is not None:
        return
    async with listening(node, client, late.wanted, partial(greet, client, late.answer)):
        del late  # this frame lives as long as its client
        if client.end is None:  # else nothing may be answered before the refusal
            await _read(node, client, sock, None, received)


async def _read(
    node: Node,
    client: Client,
    sock: socket.socket,
    session: Conversation | None,
    received: bytes,
) -> None:
    """Read until the peer leaves. No deadline: the heartbeat finds a dead peer."""
    reader: FrameReader | None = None
    limit = node.options.message_limit
    while True:
        if received:
            client.heard()
            reader = reader or take_reader(limit, inflates=client.codec.compresses)
            await _take(node, client, session, reader, received)
            if reader.closed:
                await _answer_close(client, node.options.close_timeout)
                return
            if reader.idle:
                give_back(reader)
                reader = None
        if client.outbox.closed:
            return  # The client was cut while it was served; the socket is closed.
        try:
            await trio.lowlevel.wait_readable(sock)
            await node.turns.give_way()
            known = session is not None and client.ready
            received = sock.recv(_RECEIVE if known else _RECEIVE_LITTLE)
        except BlockingIOError:
            received = b""
        except (OSError, trio.ClosedResourceError):
            return
        else:
            if not received:
                return


async def _take(
    node: Node,
    client: Client,
    session: Conversation | None,
    reader: FrameReader,
    received: bytes,
) -> None:
    """Carry out what arrived, step by step; a client that ends meanwhile loses the rest."""
    start, step = 0, _STEP
    while True:
        await _take_step(node, client, session, reader, received[start : start + step])
        start += step
        if start >= len(received) or reader.closed or client.end is not None:
            break
        # A few compressed frames may be long all the same: the smallest step has room for 11 of
        # 64 KiB, which takes 0.3 ms.
        step = step * 4 if reader.frames <= _FEW_FRAMES and not reader.inflates else _STEP
        await node.turns.give_way()
    if reader.closing:
        client.outbox.send(reader.closing)


async def _take_step(
    node: Node,
    client: Client,
    session: Conversation | None,
    reader: FrameReader,
    received: bytes,
) -> None:
    """Send pongs at once, count the frames that bring nothing, and carry out the messages."""
    messages = reader.feed(received)
    if reader.pongs:
        client.outbox.send(reader.pongs)
    idle = reader.idle_frames
    if reader.heard_pongs:
        idle += reader.heard_pongs - client.answered_ping()
    if session is None:
        idle += len(messages)  # a plain subscriber has nothing to say
    if idle:
        count_frames(node, client, idle)
    if session is not None:
        for message in messages:
            if client.end is None:
                await session.receive(message)


async def _answer_close(client: Client, seconds: float) -> None:
    """Let our half of the closing handshake, already begun, reach the peer."""
    client.depart()  # before the half-close, after which writing an event would fail
    transport = client.transport
    assert isinstance(transport, WebSocketTransport)
    with trio.move_on_at(within(seconds)):
        try:
            await client.outbox.wait_empty()
            if not client.outbox.closed:
                await transport.linger()
        except (OSError, trio.ClosedResourceError):
            return
