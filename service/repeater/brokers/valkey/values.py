"""What a stream and the bus say: a place in a stream, a message, and what was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from repeater.publication import Event


class Place(NamedTuple):
    """A publication of a stream: its offset, the stream's epoch, and its uid.

    Offset 0: before the first one. Then there is no uid.
    """

    offset: int
    epoch: str
    uid: bytes


NO_STREAM: Final = Place(0, "", b"")
"""The place in a channel that has no stream: whichever stream begins, this is before it."""


class Message(NamedTuple):
    """What came by the bus, or one entry of a stream. Offset 0: it is in no stream."""

    place: Place
    event: Event | None
    """None: the stream has changed, and must be looked at."""


class Read(NamedTuple):
    """What a stream has: its top, and entries from the place on that was asked for, inclusive."""

    top: Place
    entries: Sequence[Message] = ()
