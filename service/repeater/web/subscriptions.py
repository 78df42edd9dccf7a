"""Streams and emulation under an ASGI server: in front of Quart, which would gather what streams.

The door serves plain requests for streams itself; here is everything else about them: HTTP/2,
requests on a reused connection, preflights and refusals, and `/emulation` in any case.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from repeater.clients.emulation import OverflowedError, UnknownSessionError
from repeater.front.admit import (
    WAYS,
    Answer,
    admit,
    common_answer,
    cors_headers,
    credentials_of,
    let_in,
    refusal,
)
from repeater.protocol.http.request import HTTPRequest, make_request
from repeater.transports.asgi_stream import Receive, Send, send_answer, serve

if TYPE_CHECKING:
    from repeater.config import Settings
    from repeater.node import Node

EMULATION_PATH: Final = "/emulation"
_OCTETS: Final = "application/octet-stream"

Application = Callable[[Any, Any, Any], Awaitable[None]]


class EmulationRequest(msgspec.Struct, frozen=True):
    """The body of `POST /emulation`; `data` is commands, joined by line ends."""

    session: str = ""
    node: str = ""
    data: str = ""


_decode = msgspec.json.Decoder(EmulationRequest).decode


class _GoneError(Exception):
    """The peer hung up before its body was whole."""


class _RefusedBodyError(Exception):
    """The body is too large, or did not come in time; `status` says which."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class SubscriptionRoutes:
    """An ASGI application: the streams and emulation, and `app` for everything else."""

    def __init__(
        self, app: Application, node: Callable[[], Node], settings: Callable[[], Settings]
    ) -> None:
        self._app = app
        self._node = node
        self._settings = settings

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path not in WAYS and path != EMULATION_PATH:
            await self._app(scope, receive, send)
            return
        request = make_request(scope["method"], path, scope["query_string"], scope["headers"])
        try:
            if path == EMULATION_PATH:
                await send_answer(send, await self._emulate(request, receive))
            else:
                await self._stream(request, receive, send, _address(scope))
        except _RefusedBodyError as error:
            await send_answer(send, refusal(error.status, cors_headers(request)))
        except _GoneError:
            return

    async def _stream(
        self, request: HTTPRequest, receive: Receive, send: Send, address: str
    ) -> None:
        node = self._node()
        admitted = await admit(node, self._settings().origins, request)
        if not isinstance(admitted, Answer) and admitted.first is None:
            admitted = admitted.with_body(await self._body(receive))
        if not isinstance(admitted, Answer):
            admitted = let_in(node, admitted, address) or admitted
        if isinstance(admitted, Answer):
            await send_answer(send, admitted)
        else:
            await serve(node, receive, send, admitted, address)

    async def _emulate(self, request: HTTPRequest, receive: Receive) -> Answer:
        """Put the commands into their session's queue (protocol, section 14.2)."""
        common = common_answer(request, self._settings().origins, ("POST",))
        if common is not None:
            return common
        node, cors = self._node(), cors_headers(request)
        if request.headers.get("content-type", "").startswith(_OCTETS):
            return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, cors)
        if request.length > node.options.message_limit:
            return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, cors)
        try:
            command = _decode(await self._body(receive))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return refusal(HTTPStatus.BAD_REQUEST, cors)
        if not (command.session and command.node):
            return refusal(HTTPStatus.BAD_REQUEST, cors)
        if command.node != node.id:
            return refusal(HTTPStatus.NOT_FOUND, cors)
        try:
            node.emulation.take(command.session, command.data, credentials_of(request))
        except UnknownSessionError:
            return refusal(HTTPStatus.NOT_FOUND, cors)
        except OverflowedError:
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, cors)
        return Answer(HTTPStatus.NO_CONTENT, cors)

    async def _body(self, receive: Receive) -> bytes:
        """The whole body, within the deadline that a head has.

        Raises:
            _RefusedBodyError: it is too large, or too slow.
            _GoneError: the peer hung up.
        """
        limit = self._node().options.message_limit
        body = bytearray()
        with trio.move_on_after(self._settings().head_timeout):
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


def _address(scope: Any) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
