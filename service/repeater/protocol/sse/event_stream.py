"""Plain Server-Sent Events: a publication's data, or its envelope, as a `message` with its id.

How ids are made, and which clients share them, is in `event_codec`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Final

import msgspec

from repeater.errors import Disconnect
from repeater.protocol.envelope import envelope, size_of_envelope
from repeater.protocol.event_codec import EventCodec
from repeater.publication import Publication

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


class EventStreamCodec(EventCodec):
    """Events whose data is the publication's."""

    __slots__ = ()

    def publications(
        self, publications: Sequence[Publication], base: Publication | None = None
    ) -> list[bytes]:
        """One chunk; the id of each event is the client's position after this event.

        Of a binary publication, which is left out, there is the id alone.
        """
        ids = self.ids
        chunk = b"".join(
            [
                silent_id(ids(one)) if one.binary else event(one.data, position=ids(one))
                for one in publications
            ]
        )
        return [chunk] if chunk else []

    def event(self, publication: Publication, event_id: bytes) -> bytes:
        """The data with its id; the id alone of a binary publication."""
        if publication.binary:
            return silent_id(event_id)
        return event(publication.data, position=event_id)

    def silent_id(self, event_id: bytes) -> bytes:
        """An id without data."""
        return silent_id(event_id)

    def reset(self, channels: Sequence[str], event_id: bytes) -> bytes:
        """An event of its own kind."""
        return reset(channels, event_id)

    def size(self, publication: Publication) -> int:
        """As `Codec.size`, without the id: each line of the data begins anew."""
        if publication.binary:
            return 0
        data = publication.data
        return len(data) + _LINE * (1 + data.count(b"\n") + data.count(b"\r"))

    def farewell(self, disconnect: Disconnect) -> bytes:
        """The event that says why the stream ends.

        A browser reconnects by itself; a page that gets this event can stop it.
        """
        return event(msgspec.json.encode(disconnect), kind=b"disconnect")


class EnvelopeStreamCodec(EventStreamCodec):
    """Events whose data is the publication's envelope."""

    __slots__ = ()

    carries_binary: ClassVar[bool] = True
    ids_in_event: ClassVar[int] = 2

    publications = EventCodec.publications

    def event(self, publication: Publication, event_id: bytes) -> bytes:
        """The envelope with its id, which is inside as well."""
        return event(envelope(publication, event_id), position=event_id)

    def size(self, publication: Publication) -> int:
        """As `EventStreamCodec.size`."""
        size = size_of_envelope(publication)
        if publication.binary:
            return size
        data = publication.data
        return size + _LINE * (data.count(b"\n") + data.count(b"\r"))


EVENT_STREAM: Final = EventStreamCodec("event-stream", frame=event, ping=COMMENT, answered=False)
ENVELOPE_STREAM: Final = EnvelopeStreamCodec(
    "envelope-stream", frame=event, ping=COMMENT, answered=False
)
