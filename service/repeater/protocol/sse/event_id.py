"""The id of a Server-Sent Event: where its client is in all of its channels, in one line.

`news:17:Xy12,a%3Ab:3:Qq` is offset and epoch by channel. Clients take it for opaque. It goes out
as `id:` and comes back as `Last-Event-ID`, so it never has a line break or a blank in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote

from repeater.publication import StreamPosition

UNKNOWN: Final = StreamPosition(0, "_")
"""A position of no stream: whoever comes back with it has lost everything."""


@lru_cache(maxsize=1024)
def _quoted(text: str) -> bytes:
    return quote(text, safe="").encode()


def position_text(channel: str, position: StreamPosition) -> bytes:
    """The part of an id that one channel is."""
    return b"%b:%d:%b" % (_quoted(channel), position.offset, _quoted(position.epoch))


def event_id(positions: Mapping[str, StreamPosition]) -> bytes:
    """The id that stands for these positions; empty for none."""
    return b",".join(position_text(name, position) for name, position in positions.items())


def parse_event_id(text: str) -> dict[str, StreamPosition] | None:
    """The positions of an id that came back; None for what is no id of ours."""
    positions = {}
    for part in text.split(",") if text else ():
        name, _, rest = part.partition(":")
        offset, _, epoch = rest.partition(":")
        # int() would take more than digits, and digits without end.
        if not (name and epoch and offset.isdecimal() and offset.isascii() and len(offset) < 20):
            return None
        positions[unquote(name)] = StreamPosition(int(offset), unquote(epoch))
    return positions
