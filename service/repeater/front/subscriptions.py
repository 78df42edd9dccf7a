"""Subscriptions on raw sockets: an admitted request becomes a client of a native transport.

A request that is not certainly plain HTTP is handed over to Hypercorn, which knows all of HTTP,
with every byte that was read.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio

from repeater.clients.client import Client
from repeater.clients.opening import begin
from repeater.clients.plain import holds_at_once
from repeater.deadlines import lift
from repeater.front.admit import admit
from repeater.front.protobuf import codec_of
from repeater.front.reasons import explained, no_handshake
from repeater.front.refusal import Refusal, note_refusal
from repeater.front.request import Request, is_plain, request_of_head
from repeater.front.responses import (
    answer_end,
    dated,
    http_date,
    opening_bytes,
    stream_headers,
)
from repeater.front.routes import STREAMS, WEBSOCKETS, Route
from repeater.protocol.centrifugo.deflated_codecs import Compression
from repeater.protocol.http.answer import answer_status, write_answer, write_head
from repeater.protocol.websocket.handshake import answer_handshake
from repeater.transports import http_stream, websocket
from repeater.transports.sockets import RECEIVE, send_last

if TYPE_CHECKING:
    from repeater.config import CurrentSettings
    from repeater.errors import Disconnect
    from repeater.front.hypercorn import Handover
    from repeater.front.open_connections import OpenConnection
    from repeater.front.preamble import Preamble
    from repeater.node import Node
    from repeater.protocol.centrifugo.codecs import Codec
    from repeater.protocol.http.head import Head

RestOfRequest = Callable[[socket.socket, trio.CancelScope], AbstractContextManager[None]]
"""Surrounds a wait for the rest of a request on this socket, inside this scope."""

_BODILESS: Final = ("GET", "OPTIONS")
_LAST: Final = (("Connection", "close"),)
_UPGRADE: Final = (("Upgrade", "websocket"),)


class Subscriptions:
    """Serves subscribers natively. Lives inside the `Acceptor`; keeps no state of its clients."""

    def __init__(
        self,
        node: Node,
        handover: Handover,
        settings: CurrentSettings,
        preamble: Preamble,
        rest_of_request: RestOfRequest,
    ) -> None:
        """Keep `settings`, a function; each connection calls it for the settings then in force.

        `rest_of_request` gives a wait its deadline, and lets a shutdown end it at once.
        """
        self._rest_of_request = rest_of_request
        self._node = node
        self._handover = handover
        self._settings = settings
        self._preamble = preamble
        self._prefix = settings().path_prefix
        self._compression = Compression()

    async def serve_websocket(
        self,
        sock: socket.socket,
        scope: trio.CancelScope,
        head: Head,
        received: bytes,
        connection: OpenConnection | None = None,
    ) -> None:
        """Answer the handshake, and serve its client until the client leaves.

        A head that is not plain is handed over: Hypercorn serves it, or refuses its fault.

        The caller owns the socket. `received` are the bytes after the head; `scope` surrounds the
        call.
        """
        settings = self._settings()
        deflate = settings.compression and not _asks_envelope(head)
        handshake = answer_handshake(head, deflate=deflate)
        if not handshake.answer:
            await self._handover.serve(sock, head.raw + received, connection)
            return
        request, forwarded = self._request(sock, head, connection)
        if not handshake.accepted:
            send_last(sock, self._no_handshake(request, handshake.answer))
            return
        request.subprotocol = handshake.subprotocol
        del head, connection
        with admit(self._node, settings, request) as admission:
            opening = await admission.decide()
            if isinstance(opening, Refusal):
                note_refusal(self._node, request, opening)
                send_last(sock, _last_answer(opening))
                return
            if forwarded:
                self._preamble.name_client(sock, forwarded)
            route = WEBSOCKETS[request.path]
            wanted, late = opening.wanted, None
            envelope = wanted is not None and wanted.envelope
            codec = codec_of(route, opening) if opening.protobuf or envelope else route.codec
            if handshake.deflates:
                codec = self._compression.codec(codec, settings.compression_min_size)
            transport = _transport(sock, route, codec, envelope=envelope)
            ready = wanted is not None and holds_at_once(self._node, wanted.channels)
            client = Client(self._node.registry, transport, scope, ready=ready)
            if wanted is None or (ready and not envelope):
                client.outbox.send(dated(handshake.answer))
            else:
                transport.refuse = partial(_last_words, request, route)
                late = websocket.LateAnswer(dated(handshake.answer), wanted)
            session = begin(self._node, client, opening)
            first = opening.first
            serving = websocket.serve(self._node, client, sock, session, received, first, late)
            # This frame lives as long as its client: no part of the request may stay in it.
            del request, forwarded, handshake, opening, route, transport, wanted, first, late
            del settings, codec, envelope
            await serving

    async def serve_stream(
        self,
        sock: socket.socket,
        scope: trio.CancelScope,
        head: Head,
        received: bytes,
        connection: OpenConnection | None = None,
    ) -> None:
        """Serve a stream until its client leaves, or hand its connection over.

        The arguments are those of `serve_websocket`. The deadline of `scope`, which a wait
        for the head or for the request's body has set, is lifted after the body.
        """
        if not is_plain(head):
            lift(scope)
            await self._handover.serve(sock, head.raw + received, connection)
            return
        request, forwarded = self._request(sock, head, connection)
        body = _Body(sock, received, request.length, partial(self._rest_of_request, sock, scope))
        with admit(self._node, self._settings(), request, body.read) as admission:
            opening = await admission.decide()
            lift(scope)
            if not isinstance(opening, Refusal):
                if forwarded:
                    self._preamble.name_client(sock, forwarded)
                route = STREAMS[request.path]
                codec = codec_of(route, opening)
                headers = stream_headers(route, request, protobuf=opening.protobuf)
                headers = (*headers, *_LAST, ("Date", http_date()))
                answer = write_head(200, headers) + opening_bytes(route)
                refuse = partial(_last_words, request, route)
                serving = http_stream.serve(self._node, sock, scope, opening, codec, answer, refuse)
                del head, received, request, forwarded, body, route, headers, connection
                del answer, refuse
                await serving
                return
        if opening.counted or (request.method in _BODILESS and not body.announced):
            # Answered here, and the connection ends. Handed over instead, a preflight would take
            # the request that follows it to the ASGI server; and a counted refusal would be
            # counted twice.
            note_refusal(self._node, request, opening)
            send_last(sock, _last_answer(opening))
        else:
            await self._handover.serve(sock, head.raw + body.received, connection)

    def _no_handshake(self, request: Request, answer: bytes) -> bytes:
        """Note why a handshake is refused; in development mode the answer says it, too."""
        refusals, status = self._node.refusals, HTTPStatus(int(answer.split(b" ", 2)[1]))
        name, why = WEBSOCKETS[request.path].name, no_handshake(answer)
        refusals.note(why, name, status=status.value, address=request.address)
        if not refusals.explaining:
            return answer
        headers = _UPGRADE if status is HTTPStatus.UPGRADE_REQUIRED else ()
        told = explained(refusals, answer_status(status, headers), why)
        return write_answer(told, keep_alive=False, date=http_date())

    def _request(
        self, sock: socket.socket, head: Head, connection: OpenConnection | None
    ) -> tuple[Request, str]:
        """The request, and its client's address if a trusted proxy named it."""
        request = request_of_head(head, sock, connection)
        if self._prefix:
            request.path = request.path.removeprefix(self._prefix)
        if not self._preamble.has_proxies:
            return request, ""
        forwarded = self._preamble.forwarded_client(sock, request.header_lines())
        if forwarded:
            request.peer = forwarded
        return request, forwarded


def _last_answer(refusal: Refusal) -> bytes:
    return write_answer(refusal.answer, keep_alive=False, date=http_date())


def _last_words(request: Request, route: Route, end: Disconnect) -> bytes:
    return write_answer(answer_end(request, route, end), keep_alive=False, date=http_date())


def _asks_envelope(head: Head) -> bool:
    """Whether the request may be for a plain WebSocket with envelopes, which is not compressed.

    An envelope has the id of all channels of its client, and each channel's options say whether it
    may be compressed.
    """
    path, _, query = head.target.partition(b"?")
    return path.endswith(b"/ws") and (b"envelope=" in query or b"since=" in query)


def _transport(
    sock: socket.socket, route: Route, codec: Codec, *, envelope: bool
) -> websocket.WebSocketTransport:
    if envelope:
        return websocket.EnvelopeTransport(sock, codec)
    if route.kind == "unidirectional":
        return websocket.UnidirectionalTransport(sock, codec)
    return websocket.WebSocketTransport(sock, codec)


class _Body:
    """The body of one request, delimited by its length. Lives while the request is admitted."""

    def __init__(
        self,
        sock: socket.socket,
        received: bytes,
        length: int,
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._waiting = waiting
        self._socket = sock
        self._length = length
        self.received = received
        """The bytes after the head so far."""
        self.announced = bool(length or received)
        """Whether there is a body, or other bytes after the head."""

    async def read(self) -> bytes:
        """Wait for the whole body. What surrounds the wait sets the deadline.

        Raises:
            OSError: the peer hung up.
        """
        while len(self.received) < self._length:
            try:
                chunk = self._socket.recv(RECEIVE)
            except BlockingIOError:
                with self._waiting():
                    await trio.lowlevel.wait_readable(self._socket)
                continue
            if not chunk:
                raise ConnectionResetError("hung up inside its request")
            self.received += chunk
        return self.received[: self._length]
