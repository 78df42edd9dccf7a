"""The state of one HTTP/2 connection and its streams: `h2`, with bounds that no peer can move."""

from __future__ import annotations

from typing import Any, Final

import h2.connection
import hpack
import trio
from h2.config import H2Configuration
from hypercorn.protocol.http_stream import HTTPStream

from repeater.front.hypercorn_websocket import WebSocketStream

FRAME: Final = 16_384
"""Most bytes of a DATA frame that we send, whatever its peer takes: what waits to be written is one
frame for each stream."""

_TABLE: Final = 4_096
"""Most bytes of headers that are remembered for a peer, whatever it allows; the default of RFC
7541. Each header that we send is looked for in all of them."""


class _Encoder(hpack.Encoder):
    """Writes heads in a time and a memory that the peer cannot choose."""

    @property
    def header_table_size(self) -> int:
        """The size that the peer allows, up to our own limit (RFC 7541, section 4.2)."""
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        size = min(value, _TABLE)
        if size != self.header_table.maxsize:
            self.header_table.maxsize = size
            self.table_size_changes.append(size)

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        """As `hpack`'s, without the Huffman code.

        The library's code is quadratic: 23 ms for a value of 15 KB. A stranger chooses such values,
        because the answer to a preflight repeats a header of the request.
        """
        return super().encode(headers, huffman)


class Connection(h2.connection.H2Connection):
    """The state of one connection. Owned by its `HTTP2`."""

    MAX_CLOSED_STREAMS = 1_024  # remembered; 65,536 would be 6 MB a connection

    def __init__(self) -> None:
        super().__init__(H2Configuration(client_side=False, header_encoding=None))
        self.encoder = _Encoder()


class Stream:
    """One request. Owned by its `HTTP2` until it is answered or reset."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.http: HTTPStream | WebSocketStream
        self.whole = False  # the request has ended
        self.answered = False  # the answer has ended
        self.endless = False
        self.window = trio.Event()
        self.sending = trio.Lock()
        """Held while one part is sent: several tasks send on a WebSocket, and a part that waits for
        room must neither be cut by another one nor miss that there is room."""
