"""One request for a subscription, native or from an ASGI server: the value that `admit` decides on.

The native path makes a `Request` from a head, the ASGI path from a scope. Rule: headers and
parameters are looked up here and nowhere else, so that both paths read the same bytes alike.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from repeater.access.origins import Page, host_allowed, judge_page
from repeater.front.open_connections import OpenConnection
from repeater.protocol.http.fault import find_fault
from repeater.protocol.http.head import Head
from repeater.protocol.websocket.handshake import PROTOBUF_SUBPROTOCOL, choose_subprotocol

CONNECTION: Final = "repeater.connection"
"""The key of a scope's `OpenConnection`."""
TOKEN_COOKIE: Final = b"repeater_token"
_BEARER: Final = "bearer "
_BETWEEN: Final = len(": \r\n")
_REQUEST_LINE: Final = len("  HTTP/1.1\r\n\r\n")
_LAST_EVENT_ID: Final = b"last-event-id"
_LAST_EVENT_ID_PARAMETER: Final = "lastEventId"
_LENGTH_DIGITS: Final = 19  # of a 64-bit number
_HOST_LENGTH: Final = 1_024  # bytes; a name of 253 characters in UTF-8, and a port, are shorter
_CHUNKED: Final = b"transfer-encoding"
_COOKIE: Final = b"cookie"
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1; a JWT is one
_NOT_PLAIN: Final = frozenset({b"expect", b"upgrade", b"http2-settings", _CHUNKED})

OCTETS: Final = "application/octet-stream"
"""The media type of Protobuf over HTTP."""

_PARAMETERS: Final = frozenset(
    {
        *("cf_connect", "cf_protocol", "channel", "envelope", "format"),
        *(_LAST_EVENT_ID_PARAMETER, "since", "token"),
    }
)

Query = Mapping[str, Sequence[str]]
ReadBody = Callable[[], Awaitable[bytes]]
"""Waits for the whole body. The caller of `admit` chooses the deadline and the errors."""


class Request(msgspec.Struct, eq=False):
    """A request without its body. Lives until it is answered; no part of it is kept longer.

    The query is parsed when first asked for. Header names are in lower case.
    """

    method: str
    path: str
    query_string: bytes
    pairs: Sequence[tuple[bytes, bytes]]
    """The headers in their order."""
    headers: Mapping[bytes, bytes]
    """The headers by name; of a repeated header the last value counts."""
    peer: str | socket.socket = ""
    """An address, or the socket that knows it."""
    subprotocol: str | None = None
    """The subprotocol that a WebSocket's handshake chose."""
    connection: OpenConnection | None = None
    """The accepted connection; None under another ASGI server, and when its client is known."""
    size: float = math.inf
    """At least the bytes of the request's head; infinite where they were not counted."""
    from_anybody: bool = False
    """Whether the page that sends the request is allowed by the glob `*` alone."""
    _query: Query | None = None

    @property
    def address(self) -> str:
        """The client's IP address; `unix` for a Unix socket, empty if it is not known."""
        return self.peer if isinstance(self.peer, str) else client_address(self.peer)

    @property
    def query(self) -> Query:
        """The parameters of the URL that mean something here, each with its values."""
        if self._query is None:
            self._query = _parse_query(self.query_string.decode("latin-1"))
        return self._query

    @property
    def last_event_id(self) -> str:
        """The id of the last event that a client got; empty if it names none."""
        return self.header(_LAST_EVENT_ID) or self.parameter(_LAST_EVENT_ID_PARAMETER)

    def size_without_id(self, *, since: bool) -> int:
        """The bytes of the request's head in HTTP/1.1, without the last event id.

        `since` says whether the parameter of this name counts. It does not on a WebSocket, whose
        client comes back with the id in its place. A browser that comes back to a stream names the
        id beside the `since` of its first request.
        """
        parts = (b"lastEventId=",) if since else (b"lastEventId=", b"since=")
        lines = sum(
            len(name) + len(value) + _BETWEEN
            for name, value in self.pairs
            if name != _LAST_EVENT_ID
        )
        query = sum(
            len(part) + 1 for part in self.query_string.split(b"&") if not part.startswith(parts)
        )
        return len(self.method) + len(self.path) + query + lines + _REQUEST_LINE

    def parameter(self, name: str) -> str:
        """A parameter's first value; empty if the parameter is missing."""
        values = self.query.get(name)
        return values[0] if values else ""

    def header(self, name: bytes) -> str | None:
        """The header with this lower-case name as text; None if it is missing."""
        value = self.headers.get(name)
        return None if value is None else _text_of(value)

    def header_lines(self) -> Iterator[tuple[str, str]]:
        """Every header, repeated ones included, as names and values in Latin-1."""
        for name, value in self.pairs:
            yield name.decode("latin-1"), value.decode("latin-1")

    def judge_page(self, origins: Sequence[str]) -> Page:
        """Say what kind of page sends this request, and remember whether its cookies count.

        If `Origin` or `Host` is repeated, the origin is empty, and only the glob `*` allows it: a
        guess which of two values counts must not decide whether a foreign page may connect.
        """
        headers = self.headers
        if (
            b"origin" not in headers
            and b"sec-fetch-site" not in headers
            and len(headers) == len(self.pairs)
        ):
            return Page.TRUSTED  # like most requests; nothing else is needed then
        page = self._judge_page(origins)
        self.from_anybody = page is Page.ANYBODY
        return page

    def _judge_page(self, origins: Sequence[str]) -> Page:
        if len(self.headers) != len(self.pairs):
            names = [name for name, _ in self.pairs]
            if names.count(b"origin") > 1 or names.count(b"host") > 1:
                return judge_page("", None, None, origins)
        site = self.header(b"sec-fetch-site")
        return judge_page(self.header(b"origin"), self.header(b"host"), site, origins)

    def host_allowed(self, hosts: tuple[str, ...]) -> bool:
        """Whether the request is for a host of ours: one of these globs, or any without globs.

        A request with a repeated `Host` is for no host.
        """
        if not hosts:
            return True
        headers = self.headers
        if len(headers) != len(self.pairs) and [name for name, _ in self.pairs].count(b"host") > 1:
            return False
        host = headers.get(b"host")
        return host is not None and len(host) <= _HOST_LENGTH and _host_allowed(host, hosts)

    def credentials(self) -> str:
        """The connection token in the headers, `Bearer` or a cookie; empty if it is missing.

        A cookie does not count if only the glob `*` allows the request's page: the browser sends
        the cookie to every page's request, without asking its user.
        """
        if b"authorization" in self.headers:
            authorization = self.header(b"authorization") or ""
            if authorization[: len(_BEARER)].lower() == _BEARER:
                return authorization[len(_BEARER) :].strip()
        if _COOKIE not in self.headers or self.from_anybody:
            return ""
        return token_of_cookies(value for name, value in self.pairs if name == _COOKIE)

    def wants_protobuf(self) -> bool:
        """Whether a WebSocket's client asks for Protobuf (section 2.1)."""
        if self.subprotocol == PROTOBUF_SUBPROTOCOL:
            return True
        if not self.query_string:
            return False
        query = self.query
        return "protobuf" in (*query.get("format", ()), *query.get("cf_protocol", ()))

    def has_octets(self) -> bool:
        """Whether the body is Protobuf, by its media type."""
        return (self.header(b"content-type") or "").startswith(OCTETS)

    @property
    def length(self) -> int:
        """The body's announced length in bytes; 0 if it is missing or malformed."""
        text = self.headers.get(b"content-length", b"")
        return int(text) if text.isdigit() and len(text) <= _LENGTH_DIGITS else 0


def request_of_head(
    head: Head, peer: str | socket.socket, connection: OpenConnection | None = None
) -> Request:
    """Make a native request. Its path stays as received, since no path of ours needs an escape."""
    path, _, query = head.target.partition(b"?")
    method = head.method.decode()
    request = Request(method, path.decode("latin-1"), query, head.headers, head.by_name, peer)
    request.connection, request.size = connection, len(head.raw)
    return request


def request_of_scope(scope: Any) -> Request:
    """Make a request from an ASGI scope; a WebSocket's method is GET."""
    pairs = [(name.lower(), value) for name, value in scope["headers"]]
    client = scope.get("client")
    peer = str(client[0]) if client else ""
    method, query = scope.get("method", "GET"), scope["query_string"]
    request = Request(method, scope["path"], query, pairs, dict(pairs), peer)
    request.subprotocol = choose_subprotocol(scope.get("subprotocols", ()))
    request.connection = scope.get(CONNECTION)
    return request


def token_of_cookies(headers: Iterable[bytes], cookie_name: bytes = TOKEN_COOKIE) -> str:
    """The token in the cookie of this name; empty if it is missing. `headers` are the values.

    The first cookie with that name and with a token counts: browsers put the one with the longest
    path first (RFC 6265, section 5.4). No other cookie matters, whatever bytes it has: the headers
    are only split, and so the work is linear, unlike that of `http.cookies`.
    """
    for header in headers:
        if cookie_name not in header:
            continue
        for cookie in header.split(b";"):
            name, equals, value = cookie.partition(b"=")
            if not equals or name.strip() != cookie_name:
                continue
            value = value.strip()
            if len(value) > 1 and value.startswith(b'"') and value.endswith(b'"'):
                value = value[1:-1]
            if _TOKEN.fullmatch(value):
                return value.decode()
    return ""


def is_plain(head: Head) -> bool:
    """Whether the native path may serve this request for a stream.

    It may not if the head has a fault or a repeated header, `Host` is missing, or the body is not
    delimited by its length alone: such a request goes to Hypercorn.
    """
    if head.upgrades or head.repeats or b"host" not in head.by_name:
        return False
    return _NOT_PLAIN.isdisjoint(head.by_name) and find_fault(head) is None


@lru_cache(64)
def _host_allowed(host: bytes, hosts: tuple[str, ...]) -> bool:
    # Cached, because most requests are for the same host.
    return host_allowed(_text_of(host), hosts)


def _parse_query(text: str) -> Query:
    """The values of `_PARAMETERS`. Their names are compared as written: they need no escapes.

    `parse_qs` takes 5 us for a part with an escape, and a head has room for 4,000 parts.
    """
    found: dict[str, list[str]] = {}
    escaped = "%" in text or "+" in text
    for part in text.split("&"):
        name, _, value = part.partition("=")
        if value and name in _PARAMETERS:
            if escaped:
                value = unquote(value.replace("+", " "))
            found.setdefault(name, []).append(value)
    return found


def client_address(sock: socket.socket) -> str:
    """The client's address; `unix` for a Unix socket, empty if the peer is gone."""
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""


def _text_of(value: bytes) -> str:
    """Decode a header's value as UTF-8, as browsers send `Last-Event-ID`, else as Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
