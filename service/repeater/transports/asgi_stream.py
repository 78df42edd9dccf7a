"""The HTTP stream behind an ASGI server, as the body of its response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from repeater.clients.client import Client
from repeater.clients.opening import Opening, converse
from repeater.errors import SERVER_ERROR, Disconnect
from repeater.transports.asgi import ASGITransport, Receive, start

if TYPE_CHECKING:
    from repeater.node import Node
    from repeater.protocol.http.answer import Headers


class ASGIStreamTransport(ASGITransport):
    """Writes the body of one response. Owned by the handler of its request."""

    _head: Any = None

    def keep(self, head: Any) -> None:
        """Keep the answer's head until there is a first part of the body."""
        self._head = head

    async def hand_over(self, chunk: bytes) -> None:
        """Give a part of the body to the ASGI server, the first one behind the head."""
        await self._send_head()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def close(self, disconnect: Disconnect) -> None:
        """Send the reason as the body's last bytes, and end the body."""
        last = self.codec.farewell(disconnect)
        await self._send_head()
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_head(self) -> None:
        head, self._head = self._head, None
        if head is not None:
            await self._send(head)


async def serve(
    node: Node,
    receive: Receive,
    transport: ASGIStreamTransport,
    opening: Opening,
    headers: Headers,
    greeting: bytes,
) -> None:
    """Serve an admitted stream until its client leaves or is ended.

    `headers` are the response's; `greeting` is sent before all other bytes.
    """

    async def wait_hang_up(client: Client) -> None:
        while (await receive())["type"] != "http.disconnect":
            client.heard()

    with trio.CancelScope() as scope:
        head = start(200, headers)
        if opening.wanted is None:
            await transport.begin(head)
        else:
            transport.keep(head)
        client = Client(node.registry, transport, scope, ready=opening.wanted is not None)
        try:
            if opening.wanted is None:
                client.outbox.send(greeting)
            else:  # who sees the stream open hears the channels: it leaves when they are live
                client.outbox.push(greeting)
            await converse(node, client, opening, wait_hang_up)
        except Exception:
            client.cut(SERVER_ERROR)  # an error of ours, which costs this client
            raise
        finally:
            await client.leave()
