"""The same client behind an ASGI server: for what the door cannot see.

WebSockets inside HTTP/2, an upgrade on a reused keep-alive connection, and the application under a
stock `hypercorn -k trio`. Here every message passes through the ASGI server, so each waits in the
client's memory channel for the drain task; it is correct, not fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from repeater.access.grants import ConnectionGrant
from repeater.backend.headers import forwarded
from repeater.clients.client import Client
from repeater.clients.session import Session
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import INAPPROPRIATE_PROTOCOL, Disconnect
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_JSON_ASGI,
    CENTRIFUGE_UNI_ASGI,
    PLAIN_ASGI,
    Codec,
)

if TYPE_CHECKING:
    from quart import Websocket

    from repeater.node import Node

abort_connection: Final[ContextVar[Callable[[], None] | None]] = ContextVar(
    "abort_connection", default=None
)
"""Resets the TCP connection that the running request came by; set by the door's hand-over.

Hypercorn writes under a shielded scope: with a peer that never reads, a cancel does nothing, and
only closing the socket ends the write. Under a stock Hypercorn nobody sets it.
"""


class ASGIConnection(ABC):
    """What an ASGI server writes for one client. Owned by the handler of its request."""

    name: str

    def __init__(self, codec: Codec, address: str) -> None:
        self.codec = codec
        self._address = address
        self._abort = abort_connection.get()
        self._aborted = False

    @abstractmethod
    async def hand_over(self, chunk: bytes) -> None:
        """Give one whole chunk to the ASGI server."""

    def write(self, _chunk: bytes) -> int:
        """ASGI has no way to write without waiting."""
        raise BlockingIOError

    def address(self) -> str:
        """What the ASGI server says, where it knows."""
        return self._address

    async def send_some(self, chunk: bytes) -> int:
        """Hand the whole chunk to the ASGI server."""
        if self._aborted:
            raise trio.ClosedResourceError
        await self.hand_over(chunk)
        return len(chunk)

    def abort(self) -> None:
        """Reset the connection, where the door handed it over. Idempotent."""
        if not self._aborted and self._abort is not None:
            self._abort()
        self._aborted = True

    def release(self) -> None:  # noqa: B027  # every transport's, and nothing for all of these
        """Nothing to give back: the connection is the ASGI server's."""


class ASGITransport(ASGIConnection):
    """Speaks to one client through Quart. Owned by the route's handler."""

    name = "websocket"

    def __init__(self, websocket: Websocket, codec: Codec) -> None:
        super().__init__(codec, websocket.remote_addr or "")
        self._websocket = websocket

    async def hand_over(self, chunk: bytes) -> None:
        """Give one whole message to the ASGI server."""
        await self._websocket.send(chunk.decode())

    async def close(self, disconnect: Disconnect) -> None:
        """Close with the code and reason; the ASGI server finishes the closing handshake."""
        await self._websocket.close(disconnect.code, disconnect.reason)


class UnidirectionalASGITransport(ASGITransport):
    """The same for a client that only listens."""

    name = "uni_websocket"


def _arrive(node: Node, client: Client, websocket: Websocket) -> None:
    node.admission.arrive(node.options.limits, client, websocket.remote_addr or "")


async def serve_plain(
    node: Node, websocket: Websocket, grant: ConnectionGrant, channels: Iterable[str]
) -> None:
    """A plain subscriber; like the native one, but without a heartbeat (ASGI has no ping)."""
    with trio.CancelScope() as scope:
        client = Client(node.registry, ASGITransport(websocket, PLAIN_ASGI), scope, ready=True)
        _arrive(node, client, websocket)
        client.identify(grant)
        if grant.expire_at:
            client.expiry_changed()
        try:
            for channel in channels:
                client.subscribe(channel)
            node.connection_log.connected(client)
            while True:
                await websocket.receive()
                client.heard()
        finally:
            await client.leave()


async def _read(
    client: Client, websocket: Websocket, receive: Callable[[str | bytes], Awaitable[None]]
) -> NoReturn:
    """Give each message to the conversation until cancelled. quart-trio counts on being read."""
    while True:
        message = await websocket.receive()
        client.heard()
        await receive(message)


async def serve_centrifuge(node: Node, websocket: Websocket, *, protobuf: bool) -> None:
    """A Centrifugo client, until it leaves."""
    with trio.CancelScope() as scope:
        transport = ASGITransport(websocket, CENTRIFUGE_JSON_ASGI)
        client = Client(node.registry, transport, scope, ready=False)
        _arrive(node, client, websocket)
        client.headers = forwarded(websocket.headers.items(), node.forward_headers)
        session = Session(node, client)
        try:
            if protobuf:
                client.disconnect(INAPPROPRIATE_PROTOCOL)
            await _read(client, websocket, session.receive)
        finally:
            await client.leave()


async def serve_unidirectional(node: Node, websocket: Websocket, first: str) -> None:
    """A unidirectional client, until it leaves; `first` is a connect request in the address."""
    with trio.CancelScope() as scope:
        transport = UnidirectionalASGITransport(websocket, CENTRIFUGE_UNI_ASGI)
        client = Client(node.registry, transport, scope, ready=False)
        _arrive(node, client, websocket)
        client.headers = forwarded(websocket.headers.items(), node.forward_headers)
        session = UnidirectionalSession(node, client)
        try:
            if first:
                await session.receive(first)
            await _read(client, websocket, session.receive)
        finally:
            await client.leave()
