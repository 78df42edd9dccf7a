"""Request heads, parsed by llhttp (`httptools`) in its strict mode, and not interpreted.

The one reader of heads: subscriptions, API calls and WebSocket handshakes all start from the same
`Head`. Each native path decides for itself which heads are plain enough for it; any other head
goes to Hypercorn.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

HEAD_END: Final = b"\r\n\r\n"
LINE_END: Final = b"\r\n"

_METHOD_CHARACTERS: Final = bytes(range(33, 127)).translate(None, b'"(),/:;<=>?@[\\]{}')
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")
_FIRST_LOOK: Final = 32  # bytes; every method that exists is shorter


class Head:
    """A request head as received: target and headers in their order. The parser fills it.

    Header names are in lower case. `sound` is False for bad syntax. The parts before the mistake
    are there nevertheless, but may be used only to choose the server for the request.
    """

    __slots__ = (
        *("by_name", "headers", "method", "mistake", "raw", "repeats"),
        *("sound", "target", "upgrades", "version"),
    )

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.method = b""
        self.version = ""
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.sound = True
        self.mistake = ""
        """What llhttp says about bad syntax."""
        self.upgrades = False
        """Whether the request asks for another protocol."""
        self.by_name: dict[bytes, bytes] = {}
        """The headers by lower-case name; of a repeated header the last value counts."""
        self.repeats = False
        """Whether any header occurs more than once."""

    def on_url(self, url: bytes) -> None:
        """Called by the parser, once for each piece of the target."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value))

    @property
    def keep_alive(self) -> bool:
        """Whether the connection goes on after this request; HTTP/1.0 always ends it."""
        return self.version == "1.1" and b"close" not in self._items(b"connection")

    @property
    def asks_for_websocket(self) -> bool:
        """Whether the request asks for a WebSocket (RFC 6455, section 4.2.1)."""
        if b"upgrade" not in self.by_name or self.method != b"GET" or self.version != "1.1":
            return False
        asked = self._items(b"upgrade") == [b"websocket"]
        return asked and b"upgrade" in self._items(b"connection")

    def _items(self, name: bytes) -> list[bytes]:
        """The items of all headers of this name, in lower case; without one, an empty item."""
        lines = [value for one, value in self.headers if one == name]
        return [item.strip(b" \t") for item in b",".join(lines).lower().split(b",")]


def read_head(raw: bytes) -> Head:
    """Read a head; `raw` ends with the head's empty line."""
    head = Head(raw)
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        head.upgrades = True
    except httptools.HttpParserError as error:
        head.sound, head.mistake = False, str(error)
    if head.sound:
        head.method, head.version = parser.get_method(), parser.get_http_version()
    head.by_name = dict(head.headers)
    head.repeats = len(head.by_name) != len(head.headers)
    return head


def begins_request(received: bytes) -> bool:
    """Whether these first bytes can begin `METHOD target`; TLS and noise cannot."""
    method, space, target = received[:_FIRST_LOOK].partition(b" ")
    if not method or method.translate(None, _METHOD_CHARACTERS):
        return False
    return not space or not target.startswith(b" ")


def skip_empty_lines(received: bytes) -> bytes:
    """Return the bytes from the request line on: empty lines before it are ignored.

    RFC 9112, section 2.2, asks for it, because some clients send CR LF behind a body.
    """
    found = _EMPTY_LINES.match(received)
    return received[found.end() :] if found else received
