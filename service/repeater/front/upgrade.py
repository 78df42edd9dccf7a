"""Who asks for a WebSocket, whether they may have one, and the client that they become.

The handshake is answered here and nowhere else on the native path; the door has read its head.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import attrs
import trio

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.backend.headers import forwarded, headers_of
from repeater.clients.addresses import client_address
from repeater.clients.client import ANONYMOUS
from repeater.errors import INAPPROPRIATE_PROTOCOL
from repeater.front.auth import (
    RefusedError,
    first_of,
    header_token,
    identify,
    origin_allowed,
    plain_channels,
    refuse_while_draining,
    wants_protobuf,
)
from repeater.protocol.http.head import RawHead, read_head
from repeater.protocol.websocket.handshake import PROTOBUF_SUBPROTOCOL, Handshake, answer_handshake
from repeater.transports import websocket
from repeater.transports.sockets import send_last

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.config import CurrentSettings
    from repeater.front.auth import Query
    from repeater.node import Node

PLAIN_PATH: Final = b"/ws"
CENTRIFUGE_PATH: Final = b"/connection/websocket"
UNIDIRECTIONAL_PATH: Final = b"/connection/uni_websocket"
WEBSOCKET_PATHS: Final = (PLAIN_PATH, CENTRIFUGE_PATH, UNIDIRECTIONAL_PATH)


@attrs.define
class Visitor:
    """Who asks for a WebSocket, as far as it is known."""

    path: bytes
    query: Query
    grant: ConnectionGrant = ANONYMOUS
    address: str = ""
    """Where it comes from, if addresses count."""
    refused: HTTPStatus | None = None
    """Why its token does not let it in."""
    channels: Mapping[str, SubscriptionGrant] = attrs.field(factory=dict)
    """Those of a plain subscriber."""


class Reception:
    """Lives inside the door, and keeps nothing of anybody."""

    def __init__(self, node: Node, settings: CurrentSettings) -> None:
        """Take `settings` for what they are at each connection."""
        self._node = node
        self._settings = settings

    async def receive(
        self, sock: socket.socket, scope: trio.CancelScope, visitor: Visitor, head: bytes
    ) -> Client | None:
        """Answer the handshake; the client that it makes, or None where it was refused.

        Whoever awaits it owns the client and ends it. It waits for the verifier of a plain
        subscriber's token only, with the verifier's own deadline; cancelled, it leaves nothing.
        """
        raw = read_head(head)
        if visitor.path == PLAIN_PATH:
            await self._identify(visitor, raw)
        return self._open(sock, scope, visitor, head, raw)

    async def _identify(self, visitor: Visitor, raw: RawHead | None) -> None:
        """Prove a plain subscriber's token, with the deadline of its verifier."""
        token = first_of(visitor.query, "token")
        if not token and raw is not None and raw.upgrades:
            token = header_token(raw.value(b"authorization"), raw.value(b"cookie"))
        try:
            visitor.grant = await identify(self._node, token)
        except RefusedError as error:
            visitor.refused = error.status

    def _open(
        self,
        sock: socket.socket,
        scope: trio.CancelScope,
        visitor: Visitor,
        head: bytes,
        raw: RawHead | None,
    ) -> Client | None:
        node, limits = self._node, self._node.options.limits
        visitor.address = client_address(sock) if limits.connections_per_address else ""
        handshake = answer_handshake(head, raw, partial(self._check, visitor))
        if not handshake.accepted:
            send_last(sock, handshake.answer)
            return None
        client = self._make_client(sock, scope, visitor, handshake)
        node.admission.arrive(limits, client, visitor.address)
        if visitor.path != PLAIN_PATH:
            client.headers = forwarded(headers_of(head), node.forward_headers)
        return client

    def _make_client(
        self, sock: socket.socket, scope: trio.CancelScope, visitor: Visitor, handshake: Handshake
    ) -> Client:
        node, answer = self._node, handshake.answer
        if visitor.path == PLAIN_PATH:
            return websocket.open_plain(node, sock, scope, answer, visitor.grant, visitor.channels)
        if visitor.path == UNIDIRECTIONAL_PATH:
            return websocket.open_unidirectional(node, sock, scope, answer)
        return self._open_centrifuge(sock, scope, visitor.query, handshake)

    def _open_centrifuge(
        self, sock: socket.socket, scope: trio.CancelScope, query: Query, handshake: Handshake
    ) -> Client:
        client = websocket.open_centrifuge(self._node, sock, scope, handshake.answer)
        if handshake.subprotocol == PROTOBUF_SUBPROTOCOL or wants_protobuf(query):
            client.disconnect(INAPPROPRIATE_PROTOCOL)
        return client

    def _check(self, visitor: Visitor, origin: str | None, host: str | None) -> HTTPStatus | None:
        """Whether a correct handshake is to be refused; fills in a plain client's channels."""
        if not origin_allowed(origin, host, self._settings().origins):
            return HTTPStatus.FORBIDDEN
        try:
            refuse_while_draining(self._node)
            if visitor.path == PLAIN_PATH:
                if visitor.refused is not None:
                    return visitor.refused
                visitor.channels = plain_channels(self._node, visitor.query, visitor.grant)
            self._node.admission.check(self._node.options.limits, visitor.address)
        except RefusedError as error:
            return error.status
        return None
