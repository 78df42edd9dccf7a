"""Frames of the link: how messages become bytes and bytes become messages. No socket, no clock.

A frame is 4 bytes with its length, then a msgpack array of two arrays: messages, and events of
channels. All that gathered for the peer is one frame. Messages and events are encoded one by one
when they are sent, and a frame puts their bytes in a row, so an event is encoded once, however many
workers get it.

The peer is the same program in a process that we started. So a length is not checked, and a frame
that cannot be decoded is an error of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LENGTH: Final = 4
"""Bytes of a frame's length, most significant first."""

_TWO_ARRAYS: Final = b"\x92"
_SHORT_ARRAY: Final = 0x90  # up to 15 elements
_ARRAY_16: Final = b"\xdc"
_ARRAY_32: Final = b"\xdd"


def frame(messages: Sequence[bytes], events: Sequence[bytes] = ()) -> bytes:
    """The bytes of one frame, of messages and events that are encoded already."""
    body = b"".join((_TWO_ARRAYS, _array(len(messages)), *messages, _array(len(events)), *events))
    return len(body).to_bytes(LENGTH) + body


def _array(length: int) -> bytes:
    """The head of a msgpack array."""
    if length < 16:
        return bytes((_SHORT_ARRAY | length,))
    if length < 65_536:
        return _ARRAY_16 + length.to_bytes(2)
    return _ARRAY_32 + length.to_bytes(4)


class FrameReader:
    """Finds the frames in a stream of bytes, however the bytes are split."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes of the stream; return the bodies of the frames that are whole now."""
        buffer = self._buffer
        buffer += data
        bodies = []
        start = 0
        while len(buffer) - start >= LENGTH:
            body = start + LENGTH
            end = body + int.from_bytes(buffer[start:body])
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[body:end]))
            start = end
        del buffer[:start]
        return bodies
