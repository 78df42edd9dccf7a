"""The same stream as the response body of an ASGI server: HTTP/2, kept-alive connections, TLS.

Every chunk passes through the ASGI server, so each waits in the client's memory channel for the
drain task; it is correct, not fast.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from repeater.clients.client import Client
from repeater.errors import Disconnect
from repeater.protocol.centrifugo.codecs import Codec
from repeater.transports.asgi import ASGIConnection
from repeater.transports.http_stream import converse

if TYPE_CHECKING:
    from repeater.front.admit import Answer, Headers, Stream
    from repeater.node import Node

_NO_CONTENT = 204  # whose answer has no length (RFC 9110, section 8.6)

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class ASGIStreamTransport(ASGIConnection):
    """Writes the body of one response. Owned by the handler of its request."""

    def __init__(self, send: Send, codec: Codec, name: str, address: str = "") -> None:
        super().__init__(codec, address)
        self.name = name
        self._send = send

    async def hand_over(self, chunk: bytes) -> None:
        """Give a part of the body to the ASGI server."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def close(self, disconnect: Disconnect) -> None:
        """Say why as the body's last bytes, and end it."""
        last = self.codec.farewell(disconnect)
        await self._send({"type": "http.response.body", "body": last, "more_body": False})


async def serve(
    node: Node, receive: Receive, send: Send, stream: Stream, address: str = ""
) -> None:
    """Serve an admitted stream, of a peer at `address`, until its client leaves or is ended."""

    async def wait_hang_up(client: Client) -> None:
        while (await receive())["type"] != "http.disconnect":
            client.heard()

    with trio.CancelScope() as scope:
        transport = ASGIStreamTransport(send, stream.way.codec, stream.way.name, address)
        await send(_start(200, stream.headers))
        client = Client(node.registry, transport, scope, ready=stream.wanted is not None)
        node.admission.arrive(node.options.limits, client, address)
        try:
            client.outbox.send(stream.opening)
            await converse(node, client, stream, wait_hang_up)
        finally:
            await client.leave()


async def send_answer(send: Send, answer: Answer) -> None:
    """Send an ordinary answer."""
    length = [("Content-Length", str(len(answer.body)))] if answer.status != _NO_CONTENT else []
    await send(_start(answer.status, [*answer.headers, *length]))
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _start(status: int, headers: Headers) -> dict[str, Any]:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    return {"type": "http.response.start", "status": int(status), "headers": raw}
