"""How a connection talks, in bytes: a subscriber's `Greeting`, a publisher's `Entry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from benchmarks.generator.wire import client_frame

UPGRADED: Final = b"HTTP/1.1 101"
STREAMING: Final = b"HTTP/1.1 200"
HTTP_REFUSALS: Final = (b"HTTP/1.1 4", b"HTTP/1.1 5")
"""How the answer to an HTTP request that was not carried out begins."""
_CENTRIFUGO_HEARTBEAT: Final = {b"{}": client_frame(b"{}")}


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """How one subscriber introduces itself."""

    request: bytes
    """What is sent first: an upgrade request, say."""
    accepted: bytes = UPGRADED
    """How the answer's head must begin; empty where no head is answered."""
    commands: bytes = b""
    """What is sent after the head, or nothing."""
    ready: bytes = b""
    """What the answer to `commands` contains, or what a stream begins with."""
    heartbeats: Mapping[bytes, bytes] = msgspec.field(default_factory=lambda: _CENTRIFUGO_HEARTBEAT)
    """Payloads that are no events, and what is sent back. WebSocket pings need no entry."""
    stream: bool = False
    """Whether the answer is a response without end, of Server-Sent Events."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """How events get in on one connection."""

    greeting: Greeting
    encode: Callable[[Sequence[bytes], int], bytes]
    """Events to bytes; the number counts the events before them on this connection."""
    answer: bytes = b""
    """What the answer to each event contains, once; empty where none is answered."""
    refusals: Sequence[bytes] = ()
    """What only the answer to an event that was not taken contains."""
