"""The plain HTTP/1.1 requests that the native path serves: heads, and chunked bodies.

Parsing is llhttp's (`httptools`), in its strict mode. What is not plain beyond doubt is not judged
here: `parse_head` says None, and the bytes go to the server that knows all of HTTP.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import httptools
import msgspec

from repeater.protocol.http.head import HEAD_END, read_head

_USED: Final = frozenset(
    (
        *(b"host", b"content-length", b"transfer-encoding", b"connection"),
        *(b"x-api-key", b"authorization", b"x-centrifugo-error-mode"),
    )
)
_NOT_PLAIN: Final = (b"expect", b"upgrade", b"http2-settings")
_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_REMEMBERED: Final = 64  # heads; each is within the limit of a head, 16 KiB by default
_SILENT_LIMIT: Final = 16_384  # bytes of a chunked body without a byte of content: trailers


class RequestHead(msgspec.Struct, frozen=True):
    """One plain request: where it goes, who sends it, and how its body is delimited.

    `length` is None for a chunked body.
    """

    path: bytes
    query: bytes
    length: int | None
    keep_alive: bool
    api_key: bytes | None
    authorization: bytes | None
    error_mode: bytes | None


@lru_cache(_REMEMBERED)
def parse_head(head: bytes) -> RequestHead | None:
    """Parse a request head, which goes up to and including its empty line.

    A back end's heads are the same bytes again and again, so the last ones are remembered.

    None for whatever is not a plain POST of HTTP/1.1: bad syntax, a missing or repeated header
    that decides something, an upgrade, an expectation, a coding other than chunked.
    """
    raw = read_head(head)
    if raw is None or raw.upgrades:
        return None
    headers: dict[bytes, bytes] = {}
    for name, value in raw.headers:
        if name in _USED and name in headers:
            return None
        headers[name] = value
    if (
        raw.method != b"POST"
        or raw.version != "1.1"
        or b"host" not in headers
        or any(name in headers for name in _NOT_PLAIN)
    ):
        return None
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        return None
    path, _, query = raw.url.partition(b"?")
    return RequestHead(
        path,
        query,
        None if coding is not None else int(headers.get(b"content-length", b"0")),
        not _closes(headers.get(b"connection", b"")),
        headers.get(b"x-api-key"),
        headers.get(b"authorization"),
        headers.get(b"x-centrifugo-error-mode"),
    )


def _closes(connection: bytes) -> bool:
    return b"close" in (option.strip() for option in connection.lower().split(b","))


class ChunkedReader:
    """Takes a chunked body apart (RFC 9112, section 7.1). Lives inside one request.

    The parser would go on into the next request and not say where that began. So it is fed up
    to each empty line and no further, since a chunked body ends with one.
    """

    def __init__(self) -> None:
        self._content: list[bytes] = []
        self._last = b""  # up to three bytes of an empty line that may be under way
        self._silent = 0
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)
        self.complete = False
        """Whether the body ended."""
        self.broken = False
        """Whether it is no chunked body; what follows can't be understood either."""
        self.rest = b""
        """What followed the end."""

    def on_body(self, content: bytes) -> None:
        """Called by the parser."""
        self._content.append(content)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.complete = True

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; returns the content among them, then look at `broken`.

        Bad framing breaks a body, and so do trailers and extensions beyond all measure.
        """
        text = self._last + data
        start = len(self._last)
        while start < len(text) and not (self.complete or self.broken):
            mark = text.find(HEAD_END, max(0, start - 3))
            end = len(text) if mark < 0 else mark + len(HEAD_END)
            try:
                self._parser.feed_data(text[start:end])
            except httptools.HttpParserError:
                self.broken = True
            start = end
        self._last, self.rest = text[-3:], text[start:]
        content, self._content = b"".join(self._content), []
        self._silent = 0 if content else self._silent + len(data)
        if self._silent > _SILENT_LIMIT and not self.complete:
            self.broken = True
        return content
