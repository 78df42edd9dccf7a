"""The id of a Server-Sent Event: the client's positions in all of its channels, as one line.

Example: `news:17:Xy12,a%3Ab:3:Qq` is offset 17 and epoch `Xy12` in the channel `news`, and offset 3
and epoch `Qq` in `a:b`. Clients do not look inside. The id goes out as `id:` and comes back as
`Last-Event-ID`, so it never contains a line break or a blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote

from repeater.publication import StreamPosition

UNKNOWN: Final = StreamPosition(0, "_")
"""A position that no stream has: a client that comes back with it has lost everything."""


@lru_cache(maxsize=1024)
def _quoted(text: str) -> bytes:
    return quote(text, safe="").encode()


def position_text(channel: str, position: StreamPosition) -> bytes:
    """One channel's part of an id."""
    return b"%b:%d:%b" % (_quoted(channel), position.offset, _quoted(position.epoch))


def event_id(positions: Mapping[str, StreamPosition]) -> bytes:
    """The id for these positions; empty without positions."""
    return b",".join(position_text(name, position) for name, position in positions.items())


def parse_event_id(text: str) -> dict[str, StreamPosition] | None:
    """The positions of an id that came back; None if the id is not one of ours."""
    positions = {}
    for part in text.split(",") if text else ():
        name, _, rest = part.partition(":")
        offset, _, epoch = rest.partition(":")
        # int() alone would accept more than digits, and very many digits.
        if not (name and epoch and offset.isdecimal() and offset.isascii() and len(offset) < 20):
            return None
        positions[unquote(name)] = StreamPosition(int(offset), unquote(epoch))
    return positions
