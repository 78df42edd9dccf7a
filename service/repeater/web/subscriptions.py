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
from repeater.causes import Cause, Why
from repeater.clients.emulated_message import emulate, emulated
from repeater.clients.emulation import (
    OverflowedError,
    UnknownSessionError,
)
from repeater.deadlines import within
from repeater.errors import DisconnectError
from repeater.front import protobuf
from repeater.front.admit import admit
from repeater.front.protobuf import codec_of
from repeater.front.reasons import (
    BODY_LATE,
    BODY_TOO_LARGE,
    explained,
    foreign_page,
    no_handshake,
    wrong_method,
)
from repeater.front.refusal import Refusal, note_refusal
from repeater.front.request import Request, request_of_scope
from repeater.front.responses import (
    answer_end,
    answer_later,
    answer_method,
    cors_headers,
    opening_bytes,
    stream_headers,
)
from repeater.front.routes import ROUTES, STREAMS, WEBSOCKETS
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

_NO_COMMAND: Final = Why(
    Cause.REQUEST, "the body is not a message of an SDK", "send session, node and data in JSON"
)
_NO_SESSION: Final = Why(
    Cause.REQUEST,
    "the message names no session or no node",
    "send both as the reply to connect gave them",
)
_UNKNOWN_SESSION: Final = Why(
    Cause.REQUEST,
    "there is no such session, or its stream has other credentials",
    "the client comes back by itself; a balancer has to bring it to this server",
)
_OVERFLOWED: Final = Why(Cause.LIMIT, "too many messages of the session wait", "send fewer at once")


class _GoneError(Exception):
    """The peer hung up before the whole body came."""


class _RefusedError(Exception):
    """The request is refused with this answer, for this reason."""

    def __init__(self, answer: Answer, why: Why) -> None:
        super().__init__(why.text)
        self.answer = answer
        self.why = why


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
            envelope = opening.wanted is not None and opening.wanted.envelope
            kind = (
                ASGIUnidirectionalTransport
                if envelope or route.kind == "unidirectional"
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
                raise _RefusedError(_upgrade_required(scope), no_handshake())
            else:
                await self._stream(request, receive, send)
        except _RefusedError as error:
            await send_answer(send, self._noted(request, error.answer, error.why))
        except _GoneError:
            return

    def _noted(self, request: Request, answer: Answer, why: Why) -> Answer:
        """Log and count a refusal; the answer to give."""
        refusals, route = self._node().refusals, ROUTES.get(request.path)
        what = "emulation" if route is None else route.name
        refusals.note(why, what, status=answer.status, address=request.address)
        return explained(refusals, answer, why)

    async def _stream(self, request: Request, receive: Receive, send: Send) -> None:
        node, settings = self._node(), self._settings()

        async def read_body() -> bytes:
            return await self._body(request, receive)

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
        node, origins = self._node(), self._settings().origins
        if request.judge_page(origins) is Page.FOREIGN:
            why = foreign_page(request, origins)
            raise _RefusedError(answer_status(HTTPStatus.FORBIDDEN), why)
        other = answer_method(request, ("POST",))
        if other is not None:
            if request.method == "OPTIONS":
                return other
            raise _RefusedError(other, wrong_method(request))
        cors = cors_headers(request)
        if request.length > node.options.message_limit:
            raise _too_large(request)
        try:
            command = await self._emulated(request, receive)
        except (msgspec.DecodeError, DisconnectError):
            raise _RefusedError(answer_status(HTTPStatus.BAD_REQUEST, cors), _NO_COMMAND) from None
        if not (command.session and command.node):
            raise _RefusedError(answer_status(HTTPStatus.BAD_REQUEST, cors), _NO_SESSION)
        message = emulated(command.session, command.data, request.credentials())
        try:
            await emulate(node, command.node, message)
        except UnknownSessionError:
            answer = answer_status(HTTPStatus.NOT_FOUND, cors)
            raise _RefusedError(answer, _UNKNOWN_SESSION) from None
        except OverflowedError:
            answer = answer_later(HTTPStatus.SERVICE_UNAVAILABLE, cors)
            raise _RefusedError(answer, _OVERFLOWED) from None
        return Answer(HTTPStatus.NO_CONTENT, b"", "", cors)

    async def _emulated(self, request: Request, receive: Receive) -> _Emulated:
        """Wait for the whole body and read it.

        Raises:
            msgspec.DecodeError, DisconnectError: it is not JSON, or not Protobuf.
            _RefusedError, _GoneError: as `_body`.
        """
        body = await self._body(request, receive)
        if not request.has_octets():
            return _decode(body)
        await protobuf.load()
        return protobuf.read_emulation(body)

    async def _body(self, request: Request, receive: Receive) -> bytes:
        """Wait for the whole body and return it; the deadline is that of a head.

        Raises:
            _RefusedError: the body is too large, or too slow.
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
                    raise _too_large(request)
                if not event.get("more_body", False):
                    return bytes(body)
        answer = answer_status(HTTPStatus.REQUEST_TIMEOUT, cors_headers(request))
        raise _RefusedError(answer, BODY_LATE)


def _too_large(request: Request) -> _RefusedError:
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return _RefusedError(answer_status(status, cors_headers(request)), BODY_TOO_LARGE)


def _upgrade_required(scope: Any) -> Answer:
    """Return the native path's answer to a WebSocket request without an upgrade."""
    # HTTP/2 forbids the header (RFC 9113, section 8.2.2).
    headers = (("Upgrade", "websocket"),) if scope["http_version"].startswith("1") else ()
    return answer_status(HTTPStatus.UPGRADE_REQUIRED, headers)
