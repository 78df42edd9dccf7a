"""One request for a subscription, whatever way it came: the value that `admit` decides on.

The native path makes it of a head that was read, the ASGI entry of a scope. Rule: a header or a
parameter is looked up here and nowhere else, so that both read the same bytes alike.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from repeater.protocol.http.head import Head
from repeater.protocol.websocket.handshake import PROTOBUF_SUBPROTOCOL, choose_subprotocol

TOKEN_COOKIE: Final = "repeater_token"
_BEARER: Final = "bearer "
_LENGTH_DIGITS: Final = 19  # of a 64-bit number
_CHUNKED: Final = b"transfer-encoding"
_NOT_PLAIN: Final = (b"expect", b"upgrade", b"http2-settings", _CHUNKED)

Query = Mapping[str, Sequence[str]]
ReadBody = Callable[[], Awaitable[bytes]]
"""Waits for the whole body. The caller of `admit` chooses the deadline and the errors."""


class Request(msgspec.Struct, eq=False):
    """A request without its body. Lives until it is answered; nothing of it is kept longer.

    The query is parsed when first asked for. Header names are in lower case.
    """

    method: str
    path: str
    query_string: bytes
    pairs: Sequence[tuple[bytes, bytes]]
    """The headers in their order."""
    headers: Mapping[bytes, bytes]
    """The headers by name; of a repeated one the last counts."""
    peer: str | socket.socket = ""
    """An address, or the socket to ask for it."""
    subprotocol: str | None = None
    """The one that a WebSocket's handshake chose."""
    _query: Query | None = None

    @property
    def address(self) -> str:
        """Where the request comes from: an IP address, `unix`, or empty if that is not known."""
        return self.peer if isinstance(self.peer, str) else client_address(self.peer)

    @property
    def query(self) -> Query:
        """The parameters of the address, each with its values."""
        if self._query is None:
            self._query = parse_qs(self.query_string.decode("latin-1"))
        return self._query

    def parameter(self, name: str) -> str:
        """A parameter's first value; empty for none."""
        values = self.query.get(name)
        return values[0] if values else ""

    def header(self, name: bytes) -> str | None:
        """The header with this lower-case name as text; None without one."""
        value = self.headers.get(name)
        return None if value is None else _text_of(value)

    def header_lines(self) -> Iterator[tuple[str, str]]:
        """Every header, repeated ones included, as names and values in Latin-1."""
        for name, value in self.pairs:
            yield name.decode("latin-1"), value.decode("latin-1")

    def origin_and_host(self) -> tuple[str | None, str | None]:
        """What the origin rule compares. A repeated one of the two is nobody's own page.

        Which of two values counts is guesswork, and a guess decides whether a foreign page may
        connect: so a doubled header is an origin that no glob but `*` allows.
        """
        if len(self.headers) != len(self.pairs):
            names = [name for name, _ in self.pairs]
            if names.count(b"origin") > 1 or names.count(b"host") > 1:
                return "", None
        if b"origin" not in self.headers:
            return None, None  # as most requests, and then the host is not asked for
        return self.header(b"origin"), self.header(b"host")

    def credentials(self) -> str:
        """The connection token among the headers, `Bearer` or a cookie; empty for none."""
        if b"authorization" not in self.headers and b"cookie" not in self.headers:
            return ""
        authorization = self.header(b"authorization")
        if authorization is not None and authorization[: len(_BEARER)].lower() == _BEARER:
            return authorization[len(_BEARER) :].strip()
        cookie = self.header(b"cookie")
        if not cookie or TOKEN_COOKIE not in cookie:
            return ""
        try:
            morsel = SimpleCookie(cookie).get(TOKEN_COOKIE)
        except CookieError:
            return ""
        return "" if morsel is None else morsel.value

    def wants_protobuf(self) -> bool:
        """Whether the client asks for the protocol's binary form (section 2.1)."""
        if self.subprotocol == PROTOBUF_SUBPROTOCOL:
            return True
        query = self.query
        return "protobuf" in (*query.get("format", ()), *query.get("cf_protocol", ()))

    @property
    def length(self) -> int:
        """The body's length in bytes as announced; 0 where nothing is."""
        text = self.headers.get(b"content-length", b"")
        return int(text) if text.isdigit() and len(text) <= _LENGTH_DIGITS else 0


def request_of_head(head: Head, peer: str | socket.socket) -> Request:
    """A native request. Its path is as it came, since no path of ours needs an escape."""
    path, _, query = head.target.partition(b"?")
    method = head.method.decode()
    return Request(method, path.decode("latin-1"), query, head.headers, head.by_name, peer)


def request_of_scope(scope: Any) -> Request:
    """A request of an ASGI server; a WebSocket's method is GET."""
    pairs = [(name.lower(), value) for name, value in scope["headers"]]
    client = scope.get("client")
    peer = str(client[0]) if client else ""
    method, query = scope.get("method", "GET"), scope["query_string"]
    request = Request(method, scope["path"], query, pairs, dict(pairs), peer)
    request.subprotocol = choose_subprotocol(scope.get("subprotocols", ()))
    return request


def is_plain(head: Head) -> bool:
    """Whether the native path may judge a request for a stream.

    It may not where the syntax is bad, a header is repeated, `Host` is missing, or the body is not
    delimited by its length alone: such a request is for the server that knows all of HTTP.
    """
    if not head.sound or head.upgrades or head.repeats or b"host" not in head.by_name:
        return False
    return not any(name in head.by_name for name in _NOT_PLAIN)


def client_address(sock: socket.socket) -> str:
    """Where a connection comes from; `unix` for a Unix socket, empty for a peer that is gone."""
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""


def _text_of(value: bytes) -> str:
    """UTF-8 where it can be, since that is how a browser sends `Last-Event-ID`."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
