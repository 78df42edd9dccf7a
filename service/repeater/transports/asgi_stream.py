"""The HTTP stream behind an ASGI server, as the body of its response."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    async def hand_over(self, chunk: bytes) -> None:
        """Give a part of the body to the ASGI server."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def say_goodbye(self, disconnect: Disconnect) -> None:
        """Send the reason as the body's last bytes, and end the body."""
        last = self.codec.farewell(disconnect)
        await self._send({"type": "http.response.body", "body": last, "more_body": False})


async def serve(
    node: Node,
    receive: Receive,
    transport: ASGIStreamTransport,
    opening: Opening,
    headers: Headers,
    greeting: bytes,
) -> None:
    """Serve an admitted stream until its client leaves or is ended.

    `headers` are the response's; `greeting` is sent before all other bytes. The transport's
    `refuse` is set: a plain subscriber may be ended before its channels are held.
    """

    async def wait_hang_up(client: Client) -> None:
        while (await receive())["type"] != "http.disconnect":
            client.heard()

    with trio.CancelScope() as scope:
        head = start(200, headers)
        if opening.wanted is None:
            await transport.begin(head)
        client = Client(node.registry, transport, scope, ready=False)

        async def greet() -> None:
            await transport.begin(head)
            client.outbox.push(greeting)

        try:
            if opening.wanted is None:
                client.outbox.send(greeting)
            await converse(node, client, opening, wait_hang_up, greet)
        except Exception:
            client.cut(SERVER_ERROR)  # an error of ours, which costs this client
            raise
        finally:
            await client.leave()
