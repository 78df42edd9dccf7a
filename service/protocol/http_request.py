"""The request heads of the native streams, by llhttp (`httptools`) in its strict mode.

What is not plain beyond doubt is not judged here: `parse_request` says None, and the bytes go to
the server that knows all of HTTP. A request of an ASGI server becomes the same value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs

import httptools
import msgspec

HEAD_END: Final = b"\r\n\r\n"
_NOT_PLAIN: Final = ("expect", "upgrade", "http2-settings", "transfer-encoding")


class HTTPRequest(msgspec.Struct, frozen=True):
    """A request without its body. Header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]

    @property
    def length(self) -> int:
        """The body's length in bytes as announced; 0 where nothing is."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else 0


class _Collector:
    """What the parser calls."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))


def parse_request(head: bytes) -> HTTPRequest | None:
    """Parse a request head, which goes up to and including its empty line.

    None for whatever is not plain: bad syntax, a repeated header, an upgrade, an expectation, a
    body in chunks.
    """
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    path, _, query = collector.url.partition(b"?")
    request = make_request(
        parser.get_method().decode(), path.decode("latin-1"), query, collector.headers
    )
    plain = len(request.headers) == len(collector.headers) and "host" in request.headers
    if not plain or any(name in request.headers for name in _NOT_PLAIN):
        return None
    return request


def upgrade_headers(head: bytes) -> Mapping[str, str]:
    """The headers of a request to upgrade, which is judged elsewhere; none of a broken one."""
    collector = _Collector()
    try:
        httptools.HttpRequestParser(collector).feed_data(head)
    except httptools.HttpParserUpgrade:
        return _decoded(collector.headers)
    except httptools.HttpParserError:
        return {}
    return {}


def make_request(
    method: str, path: str, query: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> HTTPRequest:
    """A request from its raw parts. Of a repeated header the last one counts.

    Values are UTF-8 where they can be, since that is how a browser sends `Last-Event-ID`.
    """
    return HTTPRequest(method, path, parse_qs(query.decode("latin-1")), _decoded(headers))


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): _text(value) for name, value in headers}


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
