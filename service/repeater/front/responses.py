"""The HTTP around a stream: the check of the page that asks, and the headers of the answer.

The same for the native path, behind an ASGI server, and for `/emulation`. Also the clock of the
`date` header, for the native writer of answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from random import uniform
from typing import TYPE_CHECKING, Final

from repeater.errors import STALE, Disconnect
from repeater.front.request import OCTETS
from repeater.front.routes import EVENT_STREAM, Route
from repeater.protocol.http.answer import Answer, Headers, answer_status, write_answer
from repeater.protocol.sse.event_stream import retry

if TYPE_CHECKING:
    from repeater.front.request import Request
    from repeater.protocol.http.fault import Fault

# A length-prefixed Protobuf push of disconnect 3506, which stops an SDK for good (section 16).
# HTTP ways that speak JSON only answer with it.
PROTOBUF_FAREWELL: Final = b"\x1f\x22\x1d\x5a\x1b\x08\xb2\x1b\x12\x16inappropriate protocol"

_PREFLIGHT_AGE: Final = "300"  # seconds (protocol, section 14.1)
_RETRY: Final = (1_000, 3_000)
"""Milliseconds before a browser reconnects: random, so that browsers do not return all at once."""

# `no-transform`: a proxy that compresses keeps the events of a stream for a long time.
LIVE: Final = Answer(200, b'{"status":"ok"}\n')
"""The answer of a process that lives."""
_NO_CACHE: Final = "private, no-cache, no-store, must-revalidate, max-age=0, no-transform"
_EVENT_STREAM: Final = "text/event-stream"
_RETRY_AFTER: Final = ("Retry-After", "1")
_TEMPORARY: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_FINAL: Final = (7, 9)  # codes 3500 to 3999 and 4500 to 4999: do not reconnect (section 8.2)

_dated, _date, _ending = 0, "", b""


def http_date() -> str:
    """The time for the `date` header, formatted once a second."""
    global _dated, _date, _ending
    now = int(time.time())
    if now != _dated:
        _dated, _date = now, formatdate(now, usegmt=True)
        _ending = f"Date: {_date}\r\n\r\n".encode()
    return _date


def dated(answer: bytes) -> bytes:
    """A head with the `date` header as its last one."""
    http_date()
    return answer[:-2] + _ending


def write_fault(fault: Fault) -> bytes:
    """The answer to a request with this fault, the last answer of its connection."""
    answer = answer_status(fault.status, text=f"{fault.status.phrase}: {fault.reason}")
    return write_answer(answer, keep_alive=False, date=http_date())


def answer_method(request: Request, methods: Sequence[str]) -> Answer | None:
    """Return the answer to a preflight or to another method than these; None for the rest."""
    if request.method in methods:
        return None
    cors = cors_headers(request)
    allowed = ", ".join((*methods, "OPTIONS"))
    if request.method == "OPTIONS":
        asked = _as_written(request, b"access-control-request-headers")
        preflight = (
            *cors,
            *((("Access-Control-Allow-Headers", asked),) if asked else ()),
            ("Access-Control-Allow-Methods", allowed),
            ("Access-Control-Max-Age", _PREFLIGHT_AGE),
        )
        return Answer(HTTPStatus.NO_CONTENT, b"", "", preflight)
    return answer_status(HTTPStatus.METHOD_NOT_ALLOWED, (*cors, ("Allow", allowed)))


def cors_headers(request: Request) -> tuple[tuple[str, str], ...]:
    """The headers that let the requesting page, whose origin was allowed, read the answer.

    A page that only the glob `*` allows may read an answer to a request without credentials only:
    its browser would send the cookies of a user who never chose that page.
    """
    origin = _as_written(request, b"origin")
    if origin is None:
        return ()
    if request.from_anybody:
        return (("Access-Control-Allow-Origin", "*"), ("Vary", "Origin"))
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Credentials", "true"),
        ("Vary", "Origin"),
    )


def _as_written(request: Request, name: bytes) -> str | None:
    """A header's value, with which an answer repeats exactly the bytes that came."""
    value = request.headers.get(name)
    return None if value is None else value.decode("latin-1")


def stream_headers(route: Route, request: Request, *, protobuf: bool = False) -> Headers:
    """A stream's headers: no cache may keep it, no proxy buffer or compress it (section 14.1)."""
    return (
        *cors_headers(request),
        ("Content-Type", OCTETS if protobuf else route.media_type),
        ("Cache-Control", _NO_CACHE),
        ("Pragma", "no-cache"),
        ("X-Accel-Buffering", "no"),
        ("X-Content-Type-Options", "nosniff"),
    )


def answer_later(status: HTTPStatus, cors: Headers) -> Answer:
    """The answer to a request that may be repeated: 429 or 503, with `Retry-After`."""
    return answer_status(status, (*cors, _RETRY_AFTER))


def answer_stream_later(request: Request, status: HTTPStatus, cors: Headers, why: str) -> Answer:
    """The answer to a request for an event stream that may be repeated: a temporary refusal.

    A browser's `EventSource` never comes back after a status other than 200 (the HTML standard).
    So it gets an event stream that says when to come back, and ends. An `EventSource` is known by
    its `Accept`, and a browser by `Sec-Fetch-Mode`, which no program of a page can set. Others get
    the status.
    """
    accept = request.header(b"accept") or ""
    if _EVENT_STREAM not in accept.lower() or b"sec-fetch-mode" not in request.headers:
        return answer_later(status, cors)
    pause = retry(int(uniform(*_RETRY))).removesuffix(b"\n")
    body = pause + f": {int(status)} {status.phrase}: {why}\n\n".encode()
    headers = (*cors, ("Cache-Control", _NO_CACHE), ("X-Accel-Buffering", "no"))
    return Answer(HTTPStatus.OK, body, f"{_EVENT_STREAM}; charset=utf-8", tuple(headers))


def answer_refusal(
    request: Request, route: Route, status: HTTPStatus, cors: Headers, text: str = ""
) -> Answer:
    """The answer to a request for a subscription that is refused; a temporary refusal says so."""
    if status not in _TEMPORARY:
        return answer_status(status, cors, text)
    if route.media_type == EVENT_STREAM:
        return answer_stream_later(request, status, cors, text)
    return answer_later(status, cors)


def answer_end(request: Request, route: Route, end: Disconnect) -> Answer:
    """The answer to a plain subscriber that is ended before its request was answered.

    503 for an end after which a client comes back, and for our own slowness; else 403.
    """
    final = end.code // 500 in _FINAL and end.code != STALE.code
    status = HTTPStatus.FORBIDDEN if final else HTTPStatus.SERVICE_UNAVAILABLE
    cors = cors_headers(request) if route.media_type else ()
    return answer_refusal(request, route, status, cors, end.reason)


def opening_bytes(route: Route) -> bytes:
    """A stream's first bytes; those of a plain one are its `EventSource`'s reconnection pause."""
    return retry(int(uniform(*_RETRY))) if route.kind == "plain" else route.opening
