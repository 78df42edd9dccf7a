"""Unsigned varints: numbers of few bytes, as Protobuf has them before every message and field.

Seven bits a byte, the lowest first; every byte but the last has its highest bit set.
"""

from __future__ import annotations

from typing import Final

_BYTES: Final = 5  # of a uint32
_SHORT: Final = tuple(bytes((number,)) for number in range(0x80))


def varint(number: int) -> bytes:
    """The number as a varint."""
    if number < 0x80:
        return _SHORT[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80,)) + varint(number >> 7)


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """The number that begins at `start`, and the place of the byte behind it.

    Raises:
        ValueError: the data ends within the number, or the number has more than five bytes, which
            no uint32 has.
    """
    number = shift = 0
    for place, byte in enumerate(data[start : start + _BYTES], start + 1):
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7
    raise ValueError("not a number of at most five bytes")
