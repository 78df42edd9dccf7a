"""The HTTP around a stream: the check of the page that asks, and the headers of the answer.

The same for the native path, behind an ASGI server, and for `/emulation`. Also the clock of the
`date` header, for the native writer of answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from random import randint
from typing import TYPE_CHECKING, Final

from repeater.access.origins import origin_allowed
from repeater.protocol.http.answer import Answer, Headers, answer_status
from repeater.protocol.sse.event_stream import retry

if TYPE_CHECKING:
    from repeater.front.request import Request
    from repeater.front.routes import Route

OCTETS: Final = "application/octet-stream"
"""The media type of the binary protocol, which the HTTP transports do not speak."""

# A length-prefixed protobuf push of disconnect 3506, which stops an SDK for good (section 16).
PROTOBUF_FAREWELL: Final = b"\x1f\x22\x1d\x5a\x1b\x08\xb2\x1b\x12\x16inappropriate protocol"

_PREFLIGHT_AGE: Final = "300"  # seconds (protocol, section 14.1)
_RETRY: Final = (1_000, 3_000)
"""Milliseconds before a browser reconnects: random, so that browsers do not return all at once."""

_date = (0, "")


def http_date() -> str:
    """The time for the `date` header, formatted once a second."""
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = (now, formatdate(now, usegmt=True))
    return _date[1]


def answer_page(request: Request, origins: Sequence[str], methods: Sequence[str]) -> Answer | None:
    """Return the answer to a foreign origin, a preflight or another method; None for the rest."""
    if not origin_allowed(*request.origin_and_host(), origins):
        return answer_status(HTTPStatus.FORBIDDEN)
    cors = cors_headers(request)
    allowed = ", ".join((*methods, "OPTIONS"))
    if request.method == "OPTIONS":
        asked = request.header(b"access-control-request-headers")
        preflight = (
            *cors,
            *((("Access-Control-Allow-Headers", asked),) if asked else ()),
            ("Access-Control-Allow-Methods", allowed),
            ("Access-Control-Max-Age", _PREFLIGHT_AGE),
        )
        return Answer(HTTPStatus.NO_CONTENT, b"", "", preflight)
    if request.method not in methods:
        return answer_status(HTTPStatus.METHOD_NOT_ALLOWED, (*cors, ("Allow", allowed)))
    return None


def cors_headers(request: Request) -> tuple[tuple[str, str], ...]:
    """The headers that let the requesting page, whose origin was allowed, read the answer."""
    origin = request.header(b"origin")
    if origin is None:
        return ()
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Credentials", "true"),
        ("Vary", "Origin"),
    )


def stream_headers(route: Route, request: Request) -> Headers:
    """A stream's headers: no cache may keep it, and no proxy may buffer it (section 14.1)."""
    return (
        *cors_headers(request),
        ("Content-Type", route.media_type),
        ("Cache-Control", "private, no-cache, no-store, must-revalidate, max-age=0"),
        ("Pragma", "no-cache"),
        ("X-Accel-Buffering", "no"),
    )


def opening_bytes(route: Route) -> bytes:
    """A stream's first bytes; those of a plain one are its `EventSource`'s reconnection pause."""
    return retry(randint(*_RETRY)) if route.kind == "plain" else route.opening
