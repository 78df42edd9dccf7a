"""Unsigned varints: numbers of few bytes, as Protobuf has them before every message and field.

Seven bits a byte, the lowest first; every byte but the last has its highest bit set.
"""

from __future__ import annotations

from typing import Final

_BYTES: Final = 5  # of a uint32
_SHORT: Final = tuple(bytes((number,)) for number in range(0x80))


def varint(number: int) -> bytes:
    """The number as a varint. At 64 KiB or more it is rare, so the first two cases are the fast."""
    if number < 0x80:
        return _SHORT[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80,)) + varint(number >> 7)


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """The number that begins at `start`, and the place of the byte behind it.

    Raises:
        IndexError: the data ends within the number.
        ValueError: the number has more than five bytes, which no uint32 has.
    """
    byte = data[start]
    if byte < 0x80:
        return byte, start + 1
    number, shift = byte & 0x7F, 7
    for place in range(start + 1, start + _BYTES):
        byte = data[place]
        if byte < 0x80:
            return number | byte << shift, place + 1
        number |= (byte & 0x7F) << shift
        shift += 7
    raise ValueError("a number of more than five bytes")
