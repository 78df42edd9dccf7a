"""The request heads of the native streams.

What is not plain beyond doubt is not judged here: `parse_request` says None, and the bytes go to
the server that knows all of HTTP. A request of an ASGI server becomes the same value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs

import msgspec

from repeater.protocol.http.head import read_head, text_of

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


def parse_request(head: bytes) -> HTTPRequest | None:
    """Parse a request head, which goes up to and including its empty line.

    None for whatever is not plain: bad syntax, a repeated header, an upgrade, an expectation, a
    body in chunks.
    """
    raw = read_head(head)
    if raw is None or raw.upgrades:
        return None
    path, _, query = raw.url.partition(b"?")
    request = make_request(raw.method.decode(), path.decode("latin-1"), query, raw.headers)
    plain = len(request.headers) == len(raw.headers) and "host" in request.headers
    if not plain or any(name in request.headers for name in _NOT_PLAIN):
        return None
    return request


def make_request(
    method: str, path: str, query: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> HTTPRequest:
    """A request from its raw parts. Of a repeated header the last one counts."""
    by_name = {name.decode("latin-1").lower(): text_of(value) for name, value in headers}
    return HTTPRequest(method, path, parse_qs(query.decode("latin-1")), by_name)
