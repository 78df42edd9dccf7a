"""Chunked request bodies of HTTP/1.1, decoded by llhttp (`httptools`) in its strict mode."""

from __future__ import annotations

from typing import Final

import httptools

from repeater.protocol.http.head import HEAD_END

_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_FRAMING_LIMIT: Final = 16_384  # bytes of sizes, extensions and trailers of a body without content
_FRAMING_SHARE: Final = 16  # more of them for each byte of content; chunks of one byte need six


class ChunkedReader:
    """Decodes a chunked body (RFC 9112, section 7.1). Lives inside one request.

    The parser would go on into the next request without saying where that request began. So it is
    fed up to each empty line and no further, since a chunked body ends with an empty line.
    """

    def __init__(self) -> None:
        self._content: list[bytes] = []
        self._last = b""  # up to three bytes, perhaps the beginning of an empty line
        self._framing_left = _FRAMING_LIMIT
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)
        self.complete = False
        """Whether the body ended."""
        self.broken = False
        """Whether the framing is invalid; the bytes that follow cannot be parsed either."""
        self.rest = b""
        """The bytes after the body's end."""

    def on_body(self, content: bytes) -> None:
        """Called by the parser."""
        self._content.append(content)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.complete = True

    def feed(self, data: bytes) -> bytes:
        """Take received bytes and return the content among them; the caller then checks `broken`.

        Bad framing breaks a body; so do trailers and extensions of more than some 16 KiB.
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
        framing = len(data) - len(content) - len(self.rest if self.complete else b"")
        left = self._framing_left + len(content) * _FRAMING_SHARE - framing
        self._framing_left = min(left, _FRAMING_LIMIT)
        if self._framing_left < 0:
            self.broken, self.complete = True, False
        return content
