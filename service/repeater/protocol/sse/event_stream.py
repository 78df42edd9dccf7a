"""Plain Server-Sent Events: a publication's data as a `message`, the client's position as the id.

A browser keeps the last id only, so an id must cover every channel of its client. The bytes must
also be the same for many clients. With one channel both are easy: its position is the whole id.
With several channels, the clients with exactly the same positions share a `SetCodec`. The repeater
encodes with this codec in the order in which the clients get the events, and so moves the codec's
positions on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from repeater.errors import Disconnect
from repeater.protocol.centrifugo.codecs import Codec
from repeater.protocol.centrifugo.json_format import PLAIN_DATA
from repeater.protocol.sse.event_id import EventIds, event_id_of_one
from repeater.publication import Publication, StreamPosition

COMMENT: Final = b":\n\n"
"""A comment line, which clients ignore; it keeps a stream from being idle."""

OPENING: Final = b"\n"
"""The first bytes of an SDK's stream that has nothing to say yet: an empty line, as upstream.

Without a carriage return, which upstream sends. Where one comes in the same segment as an event,
before it, `eventsource` 2 for Node loses the event: it takes the empty line behind the event for
the second half of a CR LF.
"""

_LINE: Final = 14
"""At most the bytes around one line of the data: `data: `, `id: `, and the line feeds."""

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
    """An id without data: it moves the client's last event id on, and the client sees no event."""
    return b"id: " + position + b"\n\n" if position else b""


def retry(milliseconds: int) -> bytes:
    """The field that tells a browser how long to wait before it reconnects."""
    return b"retry: %d\n\n" % milliseconds


def reset(channels: Sequence[str], position: bytes) -> bytes:
    """The event that tells a client to load its state anew: it missed events of these channels."""
    data = msgspec.json.encode({"channels": channels})
    return event(data, kind=b"reset", position=position)


class EventStreamCodec(Codec):
    """Events without ids, for channels in which no client can resume."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(name, PLAIN_DATA, frame=event, ping=COMMENT, answered=False)

    def publications(
        self, publications: Sequence[Publication], base: Publication | None = None
    ) -> list[bytes]:
        """One chunk; the id of each event is the client's position after this event.

        Of a binary publication, which is left out, there is the id alone.
        """
        chunk = b"".join(
            [
                silent_id(self.position(one))
                if one.binary
                else event(one.data, position=self.position(one))
                for one in publications
            ]
        )
        return [chunk] if chunk else []

    def size(self, publication: Publication) -> int:
        """As `Codec.size`, without the id: each line of the data begins anew."""
        if publication.binary:
            return 0
        data = publication.data
        return len(data) + _LINE * (1 + data.count(b"\n") + data.count(b"\r"))

    def position(self, _publication: Publication) -> bytes:
        """The id of a publication's event; empty for no id."""
        return b""

    def farewell(self, disconnect: Disconnect) -> bytes:
        """The event that says why the stream ends.

        A browser reconnects by itself; a page that gets this event can stop it.
        """
        return event(msgspec.json.encode(disconnect), kind=b"disconnect")


class ChannelCodec(EventStreamCodec):
    """For clients that can resume in exactly one channel. Stateless."""

    __slots__ = ()

    def position(self, publication: Publication) -> bytes:
        """The publication's own position in its stream; empty if it has none."""
        position = publication.position
        return b"" if position is None else event_id_of_one(publication.channel, position)


class SetCodec(EventStreamCodec):
    """For clients with the same positions in the same channels. Lives as long as its clients.

    Rule: a client joins only when it has exactly the codec's positions. From then on all clients
    of the codec get the same events, so the codec's positions hold for each of them.
    """

    __slots__ = ("_ids",)

    def __init__(
        self, positions: Mapping[str, StreamPosition], channels: Iterable[str] = ()
    ) -> None:
        """Begin at these positions; the arguments are those of `EventIds`."""
        super().__init__("event-stream set")
        self._ids = EventIds(positions, channels)

    @property
    def positions(self) -> Mapping[str, StreamPosition]:
        """How far the clients are, by channel."""
        return self._ids.positions

    def position(self, publication: Publication) -> bytes:
        """All positions after this publication, as an id."""
        position = publication.position
        if position is None:
            return b""
        self._ids.move(publication.channel, position)
        return self._ids.text()


EVENT_STREAM: Final = EventStreamCodec("event-stream")
EVENT_STREAM_CHANNEL: Final = ChannelCodec("event-stream channel")
