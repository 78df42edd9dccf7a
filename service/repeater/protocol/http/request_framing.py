"""A connection's bytes as judged requests, for the HTTP server behind. Sans-I/O.

The server behind gets the bytes of one request at a time, and only of correct ones, so its own
rules of framing never decide anything.
"""

from __future__ import annotations

from typing import Final

from repeater.protocol.http.chunked import ChunkedReader
from repeater.protocol.http.fault import BAD_CHUNK, HEAD_TOO_LARGE, NOT_HTTP, Fault, find_fault
from repeater.protocol.http.head import (
    HEAD_END,
    LINE_END,
    Head,
    begins_request,
    read_head,
    skip_empty_lines,
)

_UPGRADE_FIELDS: Final = (b"connection", b"upgrade", b"http2-settings")
_WEBSOCKET: Final = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


class RequestFraming:
    """Splits a connection's bytes into requests. Lives as long as its connection.

    After each `feed`, call `take` until it returns nothing. What it returns never goes beyond the
    end of a request, so call it again only when that request was answered.
    """

    def __init__(self, head_limit: int) -> None:
        self._head_limit = head_limit
        self._received = b""
        self._missing = 0
        self._chunked: ChunkedReader | None = None
        self._keep_alive = True
        self.tunnel = False
        """Whether the last request became a WebSocket's: what follows its head is passed on."""
        self._between = True  # the last request is whole, or nothing came yet
        self._over = False  # the last request ends the connection
        self.fault: Fault | None = None
        """Why the connection must be refused after the bytes that were taken."""

    @property
    def pending(self) -> bool:
        """Whether bytes of a request's head were received, but not all of them."""
        return bool(self._received)

    def feed(self, data: bytes) -> None:
        """Take received bytes; those behind the connection's last request are discarded."""
        if not self._over:
            self._received += data

    def take(self) -> bytes:
        """Return the next bytes of one request; nothing if more are needed, or after a `fault`."""
        if self.tunnel:
            data, self._received = self._received, b""
            return data
        if self._between:
            head = self._next_head()
            return b"" if head is None else self._begin(head)
        return self._take_body()

    def _next_head(self) -> Head | None:
        received = self._received = skip_empty_lines(self._received)
        end = received.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END):
            if len(received) > self._head_limit:
                self.fault = HEAD_TOO_LARGE
            elif received and received not in LINE_END and not begins_request(received):
                self.fault = NOT_HTTP
            return None
        head = read_head(received[:end])
        self.fault = HEAD_TOO_LARGE if end > self._head_limit else find_fault(head)
        if self.fault is not None:
            return None
        self._received = received[end:]
        return head

    def _begin(self, head: Head) -> bytes:
        self._between = False
        self._keep_alive = head.keep_alive
        if head.asks_for_websocket:
            self.tunnel = True
            return _with_upgrade(head, _WEBSOCKET) + self.take()
        fields = head.by_name
        self._chunked = ChunkedReader() if b"transfer-encoding" in fields else None
        self._missing = int(fields.get(b"content-length", b"0"))
        raw = head.raw
        if head.upgrades or b"upgrade" in fields or b"http2-settings" in fields:
            # No protocol but WebSocket is offered here, least of all HTTP/2 without TLS.
            raw = _with_upgrade(head, b"" if self._keep_alive else b"Connection: close\r\n")
        return raw + self._take_body()

    def _take_body(self) -> bytes:
        if self._chunked is not None:
            return self._take_chunks(self._chunked)
        data, self._received = self._received[: self._missing], self._received[self._missing :]
        self._missing -= len(data)
        if not self._missing:
            self._finish()
        return data

    def _take_chunks(self, reader: ChunkedReader) -> bytes:
        """Return the received part of a chunked body, in chunks that every server reads alike."""
        data, self._received = self._received, b""
        content = reader.feed(data)
        part = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
        if reader.broken:
            self.fault = BAD_CHUNK
        if reader.complete:
            self._received = reader.rest
            self._finish()
            return part + b"0\r\n\r\n"
        return part

    def _finish(self) -> None:
        self._between = True
        if not self._keep_alive:
            # An answer 400 to these bytes would come where the answer to the request is expected.
            self._over, self._received = True, b""


def _with_upgrade(head: Head, lines: bytes) -> bytes:
    """The head with these lines instead of those that ask for another protocol."""
    first, *others = head.raw.removesuffix(HEAD_END).split(LINE_END)
    kept = [line for line in others if line.partition(b":")[0].lower() not in _UPGRADE_FIELDS]
    return LINE_END.join((first, *kept)) + LINE_END + lines + LINE_END
