"""Subscriptions and emulation under an ASGI server, in front of Quart, which would buffer them.

The native path serves plain requests; this module serves all others for subscriptions: HTTP/2,
requests on a reused connection, preflights and refusals, and every `/emulation`. Rule: no message
is taken from the ASGI server before the last one was carried out, so that the server's bounded
queue is the back-pressure. Quart's own queue of a WebSocket has no bound (quart-trio 0.13).
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from repeater.access.origins import Page
from repeater.clients.emulated_message import emulate, emulated
from repeater.clients.emulation import (
    OverflowedError,
    UnknownSessionError,
)
from repeater.deadlines import within
from repeater.errors import DisconnectError
from repeater.front import protobuf
from repeater.front.admit import Refusal, admit, note_refusal
from repeater.front.protobuf import codec_of
from repeater.front.request import Request, request_of_scope
from repeater.front.responses import (
    answer_end,
    answer_later,
    answer_method,
    cors_headers,
    foreign_page,
    opening_bytes,
    stream_headers,
)
from repeater.front.routes import STREAMS, WEBSOCKETS
from repeater.protocol.centrifugo.commands import EmulationRequest
from repeater.protocol.http.answer import Answer, answer_status
from repeater.protocol.json_reader import reader
from repeater.transports import asgi_stream, asgi_websocket
from repeater.transports.asgi import Application, Receive, Send, deny, send_answer
from repeater.transports.asgi_stream import ASGIStreamTransport
from repeater.transports.asgi_websocket import (
    ASGIUnidirectionalTransport,
    ASGIWebSocketTransport,
)

if TYPE_CHECKING:
    from repeater.config import Settings
    from repeater.errors import Disconnect
    from repeater.node import Node

EMULATION_PATH: Final = "/emulation"


_Emulated = EmulationRequest[str] | EmulationRequest[bytes]

_decode = reader(EmulationRequest[str], around=0)


class _GoneError(Exception):
    """The peer hung up before the whole body came."""


class _RefusedBodyError(Exception):
    """The body is too large, or did not come in time; `status` says which."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class SubscriptionRoutes:
    """An ASGI application: serves subscriptions and emulation, and gives the rest to `app`."""

    def __init__(
        self, app: Application, node: Callable[[], Node], settings: Callable[[], Settings]
    ) -> None:
        self._app = app
        self._node = node
        self._settings = settings

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        kind, path = scope["type"], scope.get("path", "")
        if kind == "websocket" and path in WEBSOCKETS:
            await self._websocket(scope, receive, send)
        elif kind == "http" and (path in STREAMS or path in WEBSOCKETS or path == EMULATION_PATH):
            await self._http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _websocket(self, scope: Any, receive: Receive, send: Send) -> None:
        if (await receive())["type"] != "websocket.connect":
            return  # The peer hung up before there was a client.
        request, node = request_of_scope(scope), self._node()
        with admit(node, self._settings(), request) as admission:
            opening = await admission.decide()
            if isinstance(opening, Refusal):
                note_refusal(node, request, opening)
                await deny(scope, send, opening.answer)
                return
            route = WEBSOCKETS[request.path]
            kind = (
                ASGIUnidirectionalTransport
                if route.kind == "unidirectional"
                else ASGIWebSocketTransport
            )
            codec = codec_of(route, opening, asgi=True)
            transport = kind(send, codec, route.name, request.address)

            async def refuse(end: Disconnect) -> None:
                await deny(scope, send, answer_end(request, route, end))

            if opening.wanted is not None:
                transport.refuse = refuse
            await asgi_websocket.serve(node, receive, transport, opening, request.subprotocol)

    async def _http(self, scope: Any, receive: Receive, send: Send) -> None:
        request = request_of_scope(scope)
        try:
            if request.path == EMULATION_PATH:
                await send_answer(send, await self._emulate(request, receive))
            elif request.path in WEBSOCKETS:
                await send_answer(send, _upgrade_required(scope))
            else:
                await self._stream(request, receive, send)
        except _RefusedBodyError as error:
            await send_answer(send, answer_status(error.status, cors_headers(request)))
        except _GoneError:
            return

    async def _stream(self, request: Request, receive: Receive, send: Send) -> None:
        node, settings = self._node(), self._settings()

        async def read_body() -> bytes:
            return await self._body(receive)

        with admit(node, settings, request, read_body) as admission:
            opening = await admission.decide()
            if isinstance(opening, Refusal):
                note_refusal(node, request, opening)
                await send_answer(send, opening.answer)
                return
            route = STREAMS[request.path]
            codec = codec_of(route, opening, asgi=True)
            transport = ASGIStreamTransport(send, codec, route.name, request.address)
            headers = stream_headers(route, request, protobuf=opening.protobuf)
            greeting = opening_bytes(route)

            async def refuse(end: Disconnect) -> None:
                await send_answer(send, answer_end(request, route, end))

            if opening.wanted is not None:
                transport.refuse = refuse
            await asgi_stream.serve(node, receive, transport, opening, headers, greeting)

    async def _emulate(self, request: Request, receive: Receive) -> Answer:
        """Put the commands into their session's queue (protocol, section 14.2)."""
        node = self._node()
        if request.judge_page(self._settings().origins) is Page.FOREIGN:
            why = foreign_page(request)
            node.refusals.note(why, "emulation", status=403, address=request.address)
            return answer_status(HTTPStatus.FORBIDDEN, (), node.refusals.told("", why))
        other = answer_method(request, ("POST",))
        if other is not None:
            return other
        cors = cors_headers(request)
        if request.length > node.options.message_limit:
            return answer_status(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, cors)
        try:
            command = await self._emulated(request, receive)
        except (msgspec.DecodeError, DisconnectError):
            return answer_status(HTTPStatus.BAD_REQUEST, cors)
        if not (command.session and command.node):
            return answer_status(HTTPStatus.BAD_REQUEST, cors)
        message = emulated(command.session, command.data, request.credentials())
        try:
            await emulate(node, command.node, message)
        except UnknownSessionError:
            return answer_status(HTTPStatus.NOT_FOUND, cors)
        except OverflowedError:
            return answer_later(HTTPStatus.SERVICE_UNAVAILABLE, cors)
        return Answer(HTTPStatus.NO_CONTENT, b"", "", cors)

    async def _emulated(self, request: Request, receive: Receive) -> _Emulated:
        """Wait for the whole body and read it.

        Raises:
            msgspec.DecodeError, DisconnectError: it is not JSON, or not Protobuf.
            _RefusedBodyError, _GoneError: as `_body`.
        """
        body = await self._body(receive)
        if not request.has_octets():
            return _decode(body)
        await protobuf.load()
        return protobuf.read_emulation(body)

    async def _body(self, receive: Receive) -> bytes:
        """Wait for the whole body and return it; the deadline is that of a head.

        Raises:
            _RefusedBodyError: the body is too large, or too slow.
            _GoneError: the peer hung up.
        """
        limit = self._node().options.message_limit
        body = bytearray()
        with trio.move_on_at(within(self._settings().head_timeout)):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise _GoneError
                body += event.get("body", b"")
                if len(body) > limit:
                    raise _RefusedBodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                if not event.get("more_body", False):
                    return bytes(body)
        raise _RefusedBodyError(HTTPStatus.REQUEST_TIMEOUT)


def _upgrade_required(scope: Any) -> Answer:
    """Return the native path's answer to a WebSocket request without an upgrade."""
    # HTTP/2 forbids the header (RFC 9113, section 8.2.2).
    headers = (("Upgrade", "websocket"),) if scope["http_version"].startswith("1") else ()
    return answer_status(HTTPStatus.UPGRADE_REQUIRED, headers)
