"""Plain Server-Sent Events: a publication's data as a `message`, its client's position as the id.

An id must cover every channel of its client, since a browser keeps the last one only; and the bytes
must be the same for many clients. Both hold for one channel: its position is all. For several, a
`SetCodec` is what the clients in the very same positions share: the repeater, which encodes with
it in the order in which they are given the events, moves it on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from repeater.errors import Disconnect
from repeater.protocol.centrifugo.codecs import Codec, say_data
from repeater.protocol.sse.event_id import position_text
from repeater.publication import Publication, StreamPosition

COMMENT: Final = b":\n\n"
"""Says nothing, and keeps a stream from being idle."""

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


def event(data: bytes, *, kind: bytes = b"", position: bytes = b"") -> bytes:
    """One event. Line breaks in the data become `data:` lines, which the reader joins again."""
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(_LINE_END.split(data))
    parts: list[bytes] = []
    if kind:
        parts += (b"event: ", kind, b"\n")
    if position:
        parts += (b"id: ", position, b"\n")
    parts += (b"data: ", data, b"\n\n")
    return b"".join(parts)


def silent_id(position: bytes) -> bytes:
    """Moves the client's last event id on, and is no event (it has no data)."""
    return b"id: " + position + b"\n\n" if position else b""


def retry(milliseconds: int) -> bytes:
    """How long a browser waits before it comes back."""
    return b"retry: %d\n\n" % milliseconds


def reset(channels: Sequence[str], position: bytes) -> bytes:
    """What was missed in these channels is not to be had: the client must load its state anew."""
    data = msgspec.json.encode({"channels": channels})
    return event(data, kind=b"reset", position=position)


class EventStreamCodec(Codec):
    """Events without ids: for channels that nobody can come back to."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(name, say=say_data, wrap=None, frame=event, ping=COMMENT, answered=False)

    def publications(
        self, publications: Sequence[Publication], base: Publication | None = None
    ) -> list[bytes]:
        """One chunk, in which each event has the id of the moment after it."""
        events = [event(one.data, position=self.position(one)) for one in publications]
        return [b"".join(events)] if events else []

    def position(self, _publication: Publication) -> bytes:
        """The id of a publication's event; empty for none."""
        return b""

    def farewell(self, disconnect: Disconnect) -> bytes:
        """Why the stream ends. A browser comes back by itself, so a page may want to stop it."""
        return event(msgspec.json.encode(disconnect), kind=b"disconnect")


class ChannelCodec(EventStreamCodec):
    """For clients with one channel to come back to. Stateless."""

    __slots__ = ()

    def position(self, publication: Publication) -> bytes:
        """The publication's own place in its stream."""
        position = publication.position
        return b"" if position is None else position_text(publication.channel, position)


class SetCodec(EventStreamCodec):
    """For the clients that are in the same place in the same channels. Lives with its clients.

    Rule: whoever joins it has exactly its positions at that moment. From there on all of them
    are given the same, so the positions stay theirs.
    """

    __slots__ = ("_texts", "positions")

    def __init__(self, positions: Mapping[str, StreamPosition]) -> None:
        super().__init__("event-stream set")
        self.positions = dict(positions)
        self._texts = {name: position_text(name, one) for name, one in positions.items()}

    def position(self, publication: Publication) -> bytes:
        """All positions, after this publication."""
        position, name = publication.position, publication.channel
        if position is None:
            return b""
        self.positions[name] = position
        self._texts[name] = position_text(name, position)
        return b",".join(self._texts.values())


EVENT_STREAM: Final = EventStreamCodec("event-stream")
EVENT_STREAM_CHANNEL: Final = ChannelCodec("event-stream channel")
