"""The native HTTP stream: an endless response, written like a WebSocket's frames.

The response has no length and no chunks: it ends with its connection (RFC 9112, section 6.3). So
only the event itself is written, the same bytes for every subscriber. Each client has one task,
which only waits for the hang-up. A client that sends commands by other requests has a second task
while commands wait.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from repeater.clients.client import Client
from repeater.clients.opening import Opening, converse
from repeater.clients.plain import holds_at_once
from repeater.errors import SERVER_ERROR, Disconnect
from repeater.protocol.centrifugo.codecs import Codec
from repeater.transports.sockets import SocketTransport, discard, greet, notice_silence

if TYPE_CHECKING:
    from repeater.node import Node


class HTTPStreamTransport(SocketTransport):
    """Writes one endless response. Owned by the connection's handler."""

    __slots__ = ("name",)

    def __init__(self, sock: socket.socket, codec: Codec, name: str = "http_stream") -> None:
        super().__init__(sock, codec)
        self.name = name

    def goodbye(self, disconnect: Disconnect) -> bytes:
        """The reason as the last message of the stream (protocol, section 8.2)."""
        return self.codec.farewell(disconnect)


async def serve(
    node: Node,
    sock: socket.socket,
    scope: trio.CancelScope,
    opening: Opening,
    codec: Codec,
    answer: bytes,
    refuse: Callable[[Disconnect], bytes],
) -> None:
    """Serve an admitted stream until its client leaves or is ended.

    Args:
        node: The client's node.
        sock: The client's socket, which the caller closes.
        scope: Surrounds the call; cancelled to end the client.
        opening: The admitted request.
        codec: Encodes for this client.
        answer: The head of the response, and the stream's first bytes. A plain subscriber gets it
            when its channels are held.
        refuse: Makes the answer for a plain subscriber that is ended before.
    """
    transport = HTTPStreamTransport(sock, codec, opening.name)
    wanted = opening.wanted
    ready = wanted is not None and holds_at_once(node, wanted.channels)
    client = Client(node.registry, transport, scope, ready=ready)
    del wanted
    if not codec.answered:
        notice_silence(sock, node.options.pong_timeout)
    if opening.wanted is None:
        client.outbox.send(answer)
    else:
        transport.refuse = refuse

    async def wait_hang_up(_client: Client) -> None:
        # No deadline: the heartbeat finds a dead peer.
        with contextlib.suppress(OSError, trio.ClosedResourceError):
            await discard(sock, node.turns.give_way)

    try:
        conversation = converse(node, client, opening, wait_hang_up, partial(greet, client, answer))
        del answer, refuse  # this frame lives as long as its client
        await conversation
    except Exception:
        client.cut(SERVER_ERROR)  # an error of ours, which costs this client; `front` logs it
        raise
    finally:
        await client.leave()
