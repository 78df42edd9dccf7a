"""Request heads, parsed by llhttp (`httptools`) in its strict mode, and not interpreted.

The one reader of heads: subscriptions, API calls and WebSocket handshakes all start from the same
`Head`. Each native path decides for itself which heads are plain enough for it; any other head
goes to Hypercorn, which knows all of HTTP.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import httptools
import msgspec

HEAD_END: Final = b"\r\n\r\n"

# Headers that, if repeated, would change the meaning of an API call.
_USED: Final = frozenset({
    b"host", b"content-length", b"transfer-encoding", b"connection",
    b"x-api-key", b"authorization", b"x-centrifugo-error-mode",
})  # fmt: skip
_NOT_PLAIN: Final = (b"expect", b"upgrade", b"http2-settings")
_REMEMBERED: Final = 64  # heads; each has at most the size of `head_limit`, 16 KiB by default


class Head:
    """A request head as received: target and headers in their order. The parser fills it.

    Header names are in lower case. `sound` is False for bad syntax. The parts before the mistake
    are there nevertheless, but may be used only to choose the server for the request.
    """

    __slots__ = ("_by_name", "headers", "method", "raw", "sound", "target", "upgrades", "version")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.method = b""
        self.version = ""
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.sound = True
        self.upgrades = False
        """Whether the request asks for another protocol."""
        self._by_name: dict[bytes, bytes] | None = None

    def on_url(self, url: bytes) -> None:
        """Called by the parser, once for each piece of the target."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value))

    @property
    def by_name(self) -> dict[bytes, bytes]:
        """The headers by lower-case name; of a repeated header the last value counts."""
        if self._by_name is None:
            self._by_name = dict(self.headers)
        return self._by_name

    @property
    def repeats(self) -> bool:
        """Whether any header occurs more than once."""
        return len(self.by_name) != len(self.headers)


def read_head(raw: bytes) -> Head:
    """Read a head; `raw` ends with the head's empty line."""
    head = Head(raw)
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        head.upgrades = True
    except httptools.HttpParserError:
        head.sound = False
        return head
    head.method, head.version = parser.get_method(), parser.get_http_version()
    return head


class CallHead(msgspec.Struct, frozen=True):
    """The head of one plain API call: its path, its credentials, and how its body is delimited.

    `length` is the body's bytes, None for a chunked body.
    """

    path: bytes
    query: bytes
    length: int | None
    keep_alive: bool
    api_key: bytes | None
    authorization: bytes | None
    error_mode: bytes | None
    host: bytes
    from_page: bool
    """Whether a browser says which page makes the call."""


@lru_cache(_REMEMBERED)
def read_call_head(raw: bytes) -> CallHead | None:
    """Read the head of an API call; `raw` ends with the head's empty line.

    Returns None unless it is a plain POST of HTTP/1.1: for bad syntax, for a missing or repeated
    header that matters here, for an upgrade, an expectation, or a coding other than chunked.
    """
    # Cached, because a back end sends the same bytes as a head again and again.
    head = read_head(raw)
    if not head.sound or head.upgrades or head.method != b"POST" or head.version != "1.1":
        return None
    headers: dict[bytes, bytes] = {}
    for name, value in head.headers:
        if name in _USED and name in headers:
            return None
        headers[name] = value
    if b"host" not in headers or any(name in headers for name in _NOT_PLAIN):
        return None
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        return None
    path, _, query = head.target.partition(b"?")
    return CallHead(
        path,
        query,
        None if coding is not None else int(headers.get(b"content-length", b"0")),
        not _closes(headers.get(b"connection", b"")),
        headers.get(b"x-api-key"),
        headers.get(b"authorization"),
        headers.get(b"x-centrifugo-error-mode"),
        headers[b"host"],
        b"origin" in headers or b"sec-fetch-site" in headers,
    )


def _closes(connection: bytes) -> bool:
    return b"close" in (option.strip() for option in connection.lower().split(b","))
