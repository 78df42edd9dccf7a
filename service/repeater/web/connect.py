"""The subscription paths as Quart routes: for the connections that the door cannot see."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from quart import Blueprint, Websocket, websocket
from quart.typing import ResponseReturnValue
from werkzeug.local import LocalProxy

from repeater.config import Settings
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
from repeater.node import Node
from repeater.protocol.websocket.handshake import JSON_SUBPROTOCOL, PROTOBUF_SUBPROTOCOL
from repeater.transports import asgi


def create_connect(node: Callable[[], Node], settings: Callable[[], Settings]) -> Blueprint:
    """`/ws` and `/connection/websocket`, like the native ones but for their transport."""
    connect = Blueprint("connect", __name__)

    @connect.before_websocket
    async def check() -> ResponseReturnValue | None:
        headers = websocket.headers
        origin, host = headers.get("Origin"), headers.get("Host")
        if not origin_allowed(origin, host, settings().origins):
            return "Forbidden\n", 403
        try:
            refuse_while_draining(node())
            node().admission.check(node().options.limits, websocket.remote_addr or "")
        except RefusedError as error:
            return f"{error.status.phrase}\n", error.status
        return None

    @connect.websocket("/ws")
    async def plain() -> ResponseReturnValue | None:
        query = websocket.args.to_dict(flat=False)
        try:
            token = first_of(query, "token") or _header_token()
            grant = await identify(node(), token)
            channels = plain_channels(node(), query, grant)
        except RefusedError as error:
            return f"{error.status.phrase}\n", error.status
        await websocket.accept()
        await asgi.serve_plain(node(), _connection(), grant, channels)
        return None

    @connect.websocket("/connection/websocket")
    async def centrifuge() -> None:
        offered = websocket.requested_subprotocols
        chosen = next((s for s in (JSON_SUBPROTOCOL, PROTOBUF_SUBPROTOCOL) if s in offered), None)
        query = websocket.args.to_dict(flat=False)
        await websocket.accept(subprotocol=chosen)
        protobuf = chosen == PROTOBUF_SUBPROTOCOL or wants_protobuf(query)
        await asgi.serve_centrifuge(node(), _connection(), protobuf=protobuf)

    @connect.websocket("/connection/uni_websocket")
    async def unidirectional() -> None:
        first = websocket.args.get("cf_connect", "")
        await websocket.accept()
        await asgi.serve_unidirectional(node(), _connection(), first)

    return connect


def _header_token() -> str:
    headers = websocket.headers
    return header_token(headers.get("Authorization"), headers.get("Cookie"))


def _connection() -> Websocket:
    """The connection itself, since other tasks write to it, outside this request's context."""
    proxy = cast("LocalProxy[Websocket]", websocket)
    return proxy._get_current_object()
