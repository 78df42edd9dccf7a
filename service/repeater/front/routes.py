"""The paths that subscribers connect to, each with its kind of conversation and its codecs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from repeater.clients.opening import Kind
from repeater.front.request import Request
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_JSON,
    CENTRIFUGE_JSON_ASGI,
    CENTRIFUGE_SSE,
    CENTRIFUGE_STREAM,
    CENTRIFUGE_UNI,
    CENTRIFUGE_UNI_ASGI,
    CENTRIFUGE_UNI_SSE,
    CENTRIFUGE_UNI_STREAM,
    PLAIN,
    PLAIN_ASGI,
    Codec,
)
from repeater.protocol.event_messages import EVENT_MESSAGES, EVENT_MESSAGES_ASGI
from repeater.protocol.sse.event_stream import ENVELOPE_STREAM, OPENING
from repeater.protocol.sse.event_stream import EVENT_STREAM as PLAIN_EVENTS

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
_JSON: Final = "application/json; charset=utf-8"


class Route(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One path for subscribers."""

    name: str
    """The transport's name, for metrics and logs."""
    kind: Kind
    codec: Codec
    """For the native transport."""
    asgi_codec: Codec
    """For an ASGI server, which makes the frames of a WebSocket itself."""
    enveloping: tuple[Codec, Codec] | None = None
    """Those two of a plain subscriber that asks for envelopes; None for the other kinds."""
    methods: tuple[str, ...] = ("GET",)
    media_type: str = ""
    """A stream's content type; empty for a WebSocket."""
    opening: bytes = b""
    """Sent at once, so that a client that waits for the first byte sees the stream open."""
    asks_protobuf: Callable[[Request], bool] | None = None
    """Whether a request asks for Protobuf; None where JSON alone is spoken (section 16)."""


def _stream(
    name: str,
    kind: Kind,
    codec: Codec,
    media_type: str,
    methods: tuple[str, ...],
    opening: bytes = b"",
    asks_protobuf: Callable[[Request], bool] | None = None,
    enveloping: Codec | None = None,
) -> Route:
    return Route(
        name=name,
        kind=kind,
        codec=codec,
        asgi_codec=codec,
        methods=methods,
        media_type=media_type,
        opening=opening,
        asks_protobuf=asks_protobuf,
        enveloping=None if enveloping is None else (enveloping, enveloping),
    )


_EITHER: Final = ("GET", "POST")

STREAMS: Final = {
    "/events": _stream(
        "events", "plain", PLAIN_EVENTS, EVENT_STREAM, ("GET",), enveloping=ENVELOPE_STREAM
    ),
    "/connection/sse": _stream("sse", "emulated", CENTRIFUGE_SSE, EVENT_STREAM, _EITHER, OPENING),
    "/connection/http_stream": _stream(
        "http_stream",
        "emulated",
        CENTRIFUGE_STREAM,
        _JSON,
        ("POST",),
        asks_protobuf=Request.has_octets,
    ),
    "/connection/uni_sse": _stream(
        "uni_sse", "unidirectional", CENTRIFUGE_UNI_SSE, EVENT_STREAM, _EITHER, OPENING
    ),
    "/connection/uni_http_stream": _stream(
        "uni_http_stream", "unidirectional", CENTRIFUGE_UNI_STREAM, _JSON, ("POST",)
    ),
}
"""Endless HTTP responses, by path."""

WEBSOCKETS: Final = {
    "/ws": Route(
        name="websocket",
        kind="plain",
        codec=PLAIN,
        asgi_codec=PLAIN_ASGI,
        enveloping=(EVENT_MESSAGES, EVENT_MESSAGES_ASGI),
    ),
    "/connection/websocket": Route(
        name="websocket",
        kind="bidirectional",
        codec=CENTRIFUGE_JSON,
        asgi_codec=CENTRIFUGE_JSON_ASGI,
        asks_protobuf=Request.wants_protobuf,
    ),
    "/connection/uni_websocket": Route(
        name="uni_websocket",
        kind="unidirectional",
        codec=CENTRIFUGE_UNI,
        asgi_codec=CENTRIFUGE_UNI_ASGI,
    ),
}
"""WebSockets, by path."""

ROUTES: Final = STREAMS | WEBSOCKETS
