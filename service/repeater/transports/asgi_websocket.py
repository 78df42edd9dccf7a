"""The WebSocket behind an ASGI server, which makes the frames.

Messages are taken from the server's own bounded queue one at a time, and the next one only after
the last was carried out. So while a command waits, TCP holds its sender back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from repeater.clients.client import Client
from repeater.clients.opening import Opening, begin
from repeater.clients.plain import hear, listening
from repeater.clients.traffic import count_frames
from repeater.errors import NO_PONG, SERVER_ERROR, Disconnect
from repeater.protocol.centrifugo.json_format import BINARY_MARK
from repeater.transports.asgi import ASGITransport, Receive

if TYPE_CHECKING:
    from repeater.clients.conversation import Conversation
    from repeater.node import Node


class ASGIWebSocketTransport(ASGITransport):
    """Writes the messages of one WebSocket. Owned by the handler of its request."""

    async def hand_over(self, chunk: bytes) -> None:
        """Give one whole message to the ASGI server."""
        if self.codec.format.binary:
            await self._send({"type": "websocket.send", "bytes": chunk, "text": None})
        elif chunk.startswith(BINARY_MARK):
            await self._send({"type": "websocket.send", "bytes": chunk[1:], "text": None})
        else:
            await self._send({"type": "websocket.send", "bytes": None, "text": chunk.decode()})

    async def say_goodbye(self, disconnect: Disconnect) -> None:
        """Close with the code and reason; the ASGI server finishes the closing handshake."""
        event = {"type": "websocket.close", "code": disconnect.code, "reason": disconnect.reason}
        await self._send(event)


class ASGIUnidirectionalTransport(ASGIWebSocketTransport):
    """The transport of a client that only listens, or that gets envelopes."""

    async def say_goodbye(self, disconnect: Disconnect) -> None:
        """Send a `disconnect` message, for clients that look at messages only; then close."""
        await self.hand_over(self.codec.farewell(disconnect))
        await super().say_goodbye(disconnect)


async def serve(
    node: Node,
    receive: Receive,
    transport: ASGIWebSocketTransport,
    opening: Opening,
    subprotocol: str | None,
) -> None:
    """Serve an admitted WebSocket until its client leaves or is ended.

    The transport's `refuse` is set: a plain subscriber may be ended before its channels are held.
    ASGI has no ping. The server's own hand-over to Hypercorn pings instead, and says by the code
    3012 that the peer did not answer.
    """
    with trio.CancelScope() as scope:
        accept: dict[str, Any] = {
            "type": "websocket.accept",
            "subprotocol": subprotocol,
            "headers": [],
        }
        wanted = opening.wanted
        if wanted is None:
            await transport.begin(accept)
        client = Client(node.registry, transport, scope, ready=False)
        try:
            session = begin(node, client, opening)
            greet = partial(transport.begin, accept)
            if wanted is not None and wanted.envelope:
                if client.end is None:
                    async with listening(node, client, wanted, greet):
                        await _read(node, client, receive, None)
                return
            if wanted is not None:
                await hear(node, client, wanted.channels, greet)
            elif session is not None and opening.first:
                await session.receive(opening.first)
            await _read(node, client, receive, session)
        except Exception:
            client.cut(SERVER_ERROR)  # an error of ours, which costs this client
            raise
        finally:
            await client.leave()


async def _read(node: Node, client: Client, receive: Receive, session: Conversation | None) -> None:
    """Give each message to the session until the peer leaves. No deadline: see `serve`."""
    while (event := await receive())["type"] == "websocket.receive":
        client.heard()
        await node.turns.give_way()
        if client.end is not None:
            continue
        if session is None:
            count_frames(node, client, 1)  # a plain subscriber has nothing to say
        else:
            await session.receive(_message_of(event))
    if event.get("code") == NO_PONG.code:
        client.cut(NO_PONG)


def _message_of(event: Any) -> str | bytes:
    """Return the text or bytes: an ASGI server may leave the other key out, or set it to None."""
    text: str | None = event.get("text")
    return text if text is not None else bytes(event.get("bytes") or b"")
