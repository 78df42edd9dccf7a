"""The bytes of a connection: a subscriber's `Greeting`, a publisher's `Entry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from benchmarks.generator.wire import client_frame

UPGRADED: Final = b"HTTP/1.1 101"
STREAMING: Final = b"HTTP/1.1 200"
HTTP_REFUSALS: Final = (b"HTTP/1.1 4", b"HTTP/1.1 5")
"""The first bytes of the answer to an HTTP request that failed."""
_CENTRIFUGO_HEARTBEAT: Final = {b"{}": client_frame(b"{}")}


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """How one subscriber introduces itself."""

    request: bytes
    """The bytes that are sent first, e.g. an upgrade request."""
    accepted: bytes = UPGRADED
    """The first bytes of the answer's head; empty without a head."""
    commands: bytes = b""
    """The bytes that are sent after the head; may be empty."""
    ready: bytes = b""
    """Bytes in the answer to `commands`, or at the beginning of a stream."""
    heartbeats: Mapping[bytes, bytes] = msgspec.field(default_factory=lambda: _CENTRIFUGO_HEARTBEAT)
    """Payloads of heartbeats, and the answer to each. WebSocket pings need no entry."""
    stream: bool = False
    """Whether the answer is an endless response of Server-Sent Events."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """How one connection publishes events."""

    greeting: Greeting
    encode: Callable[[Sequence[bytes], int], bytes]
    """Makes bytes of events; the number counts the earlier events of this connection."""
    answer: bytes = b""
    """Bytes that each event's answer contains once; empty if events get no answers."""
    refusals: Sequence[bytes] = ()
    """Bytes that only the answer to a refused event contains."""
