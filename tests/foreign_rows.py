"""Rows that no node writes, though they begin as one that a node has written."""

from __future__ import annotations

from typing import Final

_DEEP: Final = b"\x91" * 200_000 + b"\x01"


def deepened(row: bytes) -> bytes:
    """A short msgpack array with one element more: an array in an array, and so on.

    A reader takes the element for a field of a later version, and reads past it.
    """
    return bytes([row[0] + 1]) + row[1:] + _DEEP
