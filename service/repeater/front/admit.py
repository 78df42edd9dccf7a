"""Who may open a stream, and as what: the same for the native path and behind an ASGI server.

A way in is a path with its methods, its codec and what its client says first. Requests that are
none get their answer here, with the headers that let a page of another origin read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from random import randint
from typing import TYPE_CHECKING, Final, Literal

import attrs
import msgspec

from repeater.backend.headers import NONE, forwarded
from repeater.clients.plain import Wanted, positions_of
from repeater.errors import DisconnectError
from repeater.front.auth import (
    RefusedError,
    first_of,
    header_token,
    identify,
    origin_allowed,
    plain_channels,
    refuse_while_draining,
)
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_SSE,
    CENTRIFUGE_STREAM,
    CENTRIFUGE_UNI_SSE,
    CENTRIFUGE_UNI_STREAM,
    Codec,
)
from repeater.protocol.centrifugo.commands import parse_connect
from repeater.protocol.http.request import HTTPRequest
from repeater.protocol.sse.event_stream import EVENT_STREAM, retry

if TYPE_CHECKING:
    from repeater.node import Node

Headers = list[tuple[str, str]]

_EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
_JSON: Final = "application/json; charset=utf-8"
_OCTETS: Final = "application/octet-stream"
_PREFLIGHT_AGE: Final = "300"  # seconds (protocol, section 14.1)
_RETRY: Final = (1_000, 3_000)
"""Milliseconds before a browser comes back, drawn for each, so that they do not come at once."""

# A length-prefixed protobuf push of disconnect 3506, which stops an SDK for good (section 16).
PROTOBUF_FAREWELL: Final = b"\x1f\x22\x1d\x5a\x1b\x08\xb2\x1b\x12\x16inappropriate protocol"


@attrs.frozen(kw_only=True, eq=False)
class Way:
    """One way in."""

    name: str
    """The transport's, for metrics and logs."""
    conversation: Literal["plain", "emulated", "unidirectional"]
    codec: Codec
    media_type: str
    methods: tuple[str, ...]
    opening: bytes = b""
    """Sent at once, so that whoever waits for the first byte sees the stream open."""


WAYS: Final = {
    "/events": Way(
        name="events",
        conversation="plain",
        codec=EVENT_STREAM,
        media_type=_EVENT_STREAM,
        methods=("GET",),
    ),
    "/connection/sse": Way(
        name="sse",
        conversation="emulated",
        codec=CENTRIFUGE_SSE,
        media_type=_EVENT_STREAM,
        methods=("GET", "POST"),
        opening=b"\r\n",
    ),
    "/connection/http_stream": Way(
        name="http_stream",
        conversation="emulated",
        codec=CENTRIFUGE_STREAM,
        media_type=_JSON,
        methods=("POST",),
    ),
    "/connection/uni_sse": Way(
        name="uni_sse",
        conversation="unidirectional",
        codec=CENTRIFUGE_UNI_SSE,
        media_type=_EVENT_STREAM,
        methods=("GET", "POST"),
        opening=b"\r\n",
    ),
    "/connection/uni_http_stream": Way(
        name="uni_http_stream",
        conversation="unidirectional",
        codec=CENTRIFUGE_UNI_STREAM,
        media_type=_JSON,
        methods=("POST",),
    ),
}
"""By path."""


class Answer(msgspec.Struct, frozen=True):
    """An ordinary answer to a request that opens nothing."""

    status: int
    headers: Headers
    body: bytes = b""


class Stream(msgspec.Struct, frozen=True):
    """A stream that may be opened: how it is answered, and what its client says first.

    `first` is None where that is the request's body.
    """

    way: Way
    headers: Headers
    opening: bytes
    first: str | bytes | None
    wanted: Wanted | None = None
    credentials: str = ""
    forwarded: Mapping[str, str] = NONE
    """What the back end is to see of the request's headers."""

    def with_body(self, body: bytes) -> Stream | Answer:
        """The stream, its client's first message being the body."""
        return _checked(msgspec.structs.replace(self, first=text_or_bytes(body)))


def text_or_bytes(body: bytes) -> str | bytes:
    """A body as a message: text, unless it is not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


async def admit(node: Node, origins: Sequence[str], request: HTTPRequest) -> Stream | Answer:
    """Decide on a request to one of `WAYS`. May wait for a token's keys, with their deadline."""
    way = WAYS[request.path]
    common = common_answer(request, origins, way.methods)
    if common is not None:
        return common
    headers = cors_headers(request)
    try:
        refuse_while_draining(node)
        if way.conversation == "plain":
            return await _plain(node, way, request, headers)
    except RefusedError as error:
        return refusal(error.status, headers)
    if request.length > node.options.message_limit:
        return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, headers)
    if request.method == "POST" and request.headers.get("content-type", "").startswith(_OCTETS):
        return Answer(HTTPStatus.OK, [*headers, ("Content-Type", _OCTETS)], PROTOBUF_FAREWELL)
    stream = Stream(
        way,
        [*headers, *_stream_headers(way)],
        way.opening,
        None if request.method == "POST" else first_of(request.query, "cf_connect"),
        credentials=credentials_of(request),
        forwarded=forwarded(request.headers.items(), node.forward_headers),
    )
    return stream if stream.first is None else _checked(stream)


def let_in(node: Node, stream: Stream, address: str) -> Answer | None:
    """Ask whether there is room for one more; the last question, since it counts.

    `Admission.arrive` is to follow; an answer is sent where there is none.
    """
    try:
        node.admission.check(node.options.limits, address)
    except RefusedError as error:
        return refusal(error.status, _cors_of(stream))
    return None


def _cors_of(stream: Stream) -> Headers:
    return [header for header in stream.headers if header[0] in _CORS]


def _checked(stream: Stream) -> Stream | Answer:
    """A missing first message is 400; so is a broken one where no reply could say it."""
    cors = _cors_of(stream)
    if stream.way.conversation == "emulated":
        return stream if stream.first else refusal(HTTPStatus.BAD_REQUEST, cors)
    first = stream.first or "{}"
    if isinstance(first, bytes):
        return refusal(HTTPStatus.BAD_REQUEST, cors)
    try:
        parse_connect(first)
    except DisconnectError:
        return refusal(HTTPStatus.BAD_REQUEST, cors)
    return msgspec.structs.replace(stream, first=first)


async def _plain(node: Node, way: Way, request: HTTPRequest, headers: Headers) -> Stream:
    token = first_of(request.query, "token") or credentials_of(request)
    grant = await identify(node, token)
    channels = plain_channels(node, request.query, grant)
    last = request.headers.get("last-event-id") or first_of(request.query, "lastEventId")
    wanted = Wanted(grant=grant, channels=channels, since=positions_of(last, list(channels)))
    opening = retry(randint(*_RETRY))
    return Stream(way, [*headers, *_stream_headers(way)], opening, "", wanted)


def credentials_of(request: HTTPRequest) -> str:
    """What a request's headers prove itself with, if anything."""
    return header_token(request.headers.get("authorization"), request.headers.get("cookie"))


def common_answer(
    request: HTTPRequest, origins: Sequence[str], methods: Sequence[str]
) -> Answer | None:
    """What is answered on every path: foreign origins, preflights, other methods."""
    headers = request.headers
    if not origin_allowed(headers.get("origin"), headers.get("host"), origins):
        return refusal(HTTPStatus.FORBIDDEN, [])
    cors = cors_headers(request)
    allowed = ", ".join((*methods, "OPTIONS"))
    if request.method == "OPTIONS":
        asked = headers.get("access-control-request-headers")
        preflight = [("Access-Control-Allow-Headers", asked)] if asked else []
        preflight += [
            ("Access-Control-Allow-Methods", allowed),
            ("Access-Control-Max-Age", _PREFLIGHT_AGE),
        ]
        return Answer(HTTPStatus.NO_CONTENT, [*cors, *preflight])
    if request.method not in methods:
        return refusal(HTTPStatus.METHOD_NOT_ALLOWED, [*cors, ("Allow", allowed)])
    return None


_CORS: Final = ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Vary")


def cors_headers(request: HTTPRequest) -> Headers:
    """What lets the page that asks, which is an allowed one, read the answer."""
    origin = request.headers.get("origin")
    if origin is None:
        return []
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Credentials", "true"),
        ("Vary", "Origin"),
    ]


def refusal(status: HTTPStatus, headers: Headers) -> Answer:
    """A status with its phrase as the body."""
    plain = ("Content-Type", "text/plain; charset=utf-8")
    return Answer(status, [*headers, plain], f"{status.phrase}\n".encode())


def _stream_headers(way: Way) -> Headers:
    """No cache may keep a stream, and no proxy may gather it (section 14.1)."""
    return [
        ("Content-Type", way.media_type),
        ("Cache-Control", "private, no-cache, no-store, must-revalidate, max-age=0"),
        ("Pragma", "no-cache"),
        ("X-Accel-Buffering", "no"),
    ]
