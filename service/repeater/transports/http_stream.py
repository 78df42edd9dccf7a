"""The native HTTP stream: a response without end, written like a WebSocket's frames.

The response has no length and no chunks: it ends with its connection (RFC 9112, section 6.3). So
what is written is the event and nothing else, the same bytes for every subscriber. One task a
client, which only waits for the hang-up; for a client that sends commands by other requests, one
more while it has some.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import trio

from repeater.clients.client import Client
from repeater.clients.opening import Opening, converse
from repeater.errors import Disconnect
from repeater.protocol.centrifugo.codecs import Codec
from repeater.transports.sockets import RECEIVE, SocketTransport

if TYPE_CHECKING:
    from repeater.node import Node


class HTTPStreamTransport(SocketTransport):
    """Writes one endless response. Owned by the connection's handler."""

    __slots__ = ("name",)

    def __init__(self, sock: socket.socket, codec: Codec, name: str = "http_stream") -> None:
        super().__init__(sock, codec)
        self.name = name

    async def close(self, disconnect: Disconnect) -> None:
        """Say why as the stream's last message, and end it (protocol, section 8.2)."""
        await self.part(self.codec.farewell(disconnect))


async def serve(
    node: Node,
    sock: socket.socket,
    scope: trio.CancelScope,
    opening: Opening,
    codec: Codec,
    answer: bytes,
) -> None:
    """Serve an admitted stream until its client leaves or is ended.

    Args:
        node: Where the client belongs.
        sock: Its socket, which the caller closes.
        scope: Surrounds the call; cancelled to end the client.
        opening: What was admitted.
        codec: How it is written to.
        answer: The head of the response, and what is said before all else.
    """
    transport = HTTPStreamTransport(sock, codec, opening.name)
    client = Client(node.registry, transport, scope, ready=opening.wanted is not None)
    if not codec.answered:
        _notice_silence(sock, node.options.pong_timeout)
    client.outbox.send(answer)
    del answer

    async def wait_hang_up(client: Client) -> None:
        await _read_into_nothing(client, sock)

    try:
        await converse(node, client, opening, wait_hang_up)
    finally:
        await client.leave()


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
