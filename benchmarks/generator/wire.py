"""The bytes of the load generator's side: requests, masked client frames, events, frame parsing.

Pure functions and constants; no socket here. Masking with four zero bytes is legal and free.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

CHANNEL: Final = "news"
EVENT_SIZE: Final = 136  # with the 4 bytes of a frame's header: the 140 of the prototypes' runs
TEXT_OPCODE: Final = 1
BINARY_OPCODE: Final = 2
PING_OPCODE: Final = 9

DEFLATE: Final = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
"""The line of a handshake that offers compression."""
_RSV1: Final = 0x40  # of a compressed frame (RFC 7692)

_NUMBER: Final = b'"n":"'
_DIGITS: Final = 6


class WireError(Exception):
    """The peer sent something that it may not send in a benchmark, or hung up."""


def handshake(path: str, more: str = "") -> bytes:
    """A WebSocket upgrade request; the key is the RFC's example, the same for every client.

    `more` are whole lines.
    """
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Sec-WebSocket-Version: 13\r\n{more}\r\n"
    ).encode()


def event(number: int, published_ns: int = 0, size: int = EVENT_SIZE) -> bytes:
    """One event's JSON: a number, its time of publishing, and padding to `size` bytes."""
    text = event_head(number, published_ns) + '"pad":"'
    return (text + "x" * (size - len(text) - 2) + '"}').encode()


def event_head(number: int, published_ns: int) -> str:
    """How an event's JSON begins, in front of its other members."""
    return f'{{"n":"{number:0{_DIGITS}d}","t":"{published_ns:019d}",'


def event_number(payload: bytes) -> int | None:
    """The number of the event in a frame's payload, bare or inside a push; None without one."""
    return next(iter(event_numbers(payload)), None)


def event_numbers(payload: bytes) -> list[int]:
    """The numbers of all events in a payload: some servers put several into one frame."""
    return [int(part[:_DIGITS]) for part in payload.split(_NUMBER)[1:]]


def push(data: bytes, offset: int) -> bytes:
    """A Centrifugo push as the server writes it, for a floor with frames of the same length."""
    return b'{"push":{"channel":"%s","pub":{"data":%s,"offset":%d}}}' % (
        CHANNEL.encode(),
        data,
        offset,
    )


def post(channel: str, data: bytes) -> bytes:
    """A `POST /api/publish` request on a connection that stays open."""
    return request("/api/publish", b'{"channel":"%s","data":%s}' % (channel.encode(), data))


def broadcast(channels: Sequence[str], data: bytes) -> bytes:
    """A `POST /api/broadcast` request on a connection that stays open."""
    names = ",".join(f'"{channel}"' for channel in channels)
    return request("/api/broadcast", b'{"channels":[%s],"data":%s}' % (names.encode(), data))


def request(path: str, body: bytes, headers: bytes = b"") -> bytes:
    """A POST request on a connection that stays open; `headers` are whole lines."""
    return (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"%sContent-Length: %d\r\n\r\n%s" % (path.encode(), headers, len(body), body)
    )


def server_frame(payload: bytes, opcode: int = TEXT_OPCODE) -> bytes:
    """An unmasked frame, as a server sends it."""
    return bytes((0x80 | opcode,)) + _length(len(payload), 0) + payload


def client_frame(payload: bytes, opcode: int = TEXT_OPCODE) -> bytes:
    """A frame masked with zeros, as a client sends it."""
    return bytes((0x80 | opcode,)) + _length(len(payload), 0x80) + b"\x00\x00\x00\x00" + payload


def pong(payload: bytes) -> bytes:
    """The answer to a ping with this payload, masked with zeros."""
    return b"\x8a" + _length(len(payload), 0x80) + b"\x00\x00\x00\x00" + payload


def _length(size: int, mask: int) -> bytes:
    if size < 126:
        return bytes((mask | size,))
    if size < 65_536:
        return bytes((mask | 126,)) + size.to_bytes(2)
    return bytes((mask | 127,)) + size.to_bytes(8)


def split_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole unmasked frames in `data`, as (opcode, payload), and the bytes left over.

    A compressed message refers to no other one, and is inflated.
    """
    frames: list[tuple[int, bytes]] = []
    at, end = 0, len(data)
    while end - at >= 2:
        start, size = at + 2, data[at + 1]
        if size >= 126:
            extra = 2 if size == 126 else 8
            start += extra
            size = int.from_bytes(data[start - extra : start])
            if start > end:
                break
        if start + size > end:
            break
        payload = data[start : start + size]
        if data[at] & _RSV1:
            payload = zlib.decompressobj(-15).decompress(payload)
        frames.append((data[at] & 0x0F, payload))
        at = start + size
    return frames, data[at:]
