"""Request heads by llhttp (`httptools`), in its strict mode: what they say, not what it means.

Each way in decides for itself what is plain enough for it.
"""

from __future__ import annotations

from typing import Final

import httptools

HEAD_END: Final = b"\r\n\r\n"


class RawHead:
    """A head as it came: the target, and the headers in their order. The parser fills it.

    Header names are in lower case.
    """

    __slots__ = ("headers", "method", "upgrades", "url", "version")

    def __init__(self) -> None:
        self.method = b""
        self.version = ""
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.upgrades = False
        """Whether it asks for another protocol."""

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value))

    def value(self, name: bytes) -> str | None:
        """The last value of the header with this lower-case name; None without one."""
        value = dict(self.headers).get(name)
        return None if value is None else text_of(value)


def text_of(value: bytes) -> str:
    """UTF-8 where it can be, since that is how a browser sends `Last-Event-ID`."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def read_head(head: bytes) -> RawHead | None:
    """Read a head, which goes up to and including its empty line; None for bad syntax."""
    found = RawHead()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        found.upgrades = True
    except httptools.HttpParserError:
        return None
    found.method, found.version = parser.get_method(), parser.get_http_version()
    return found
