"""The WebSocket of a plain subscriber that can come back: each event in its envelope, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from repeater.errors import Disconnect
from repeater.protocol.envelope import (
    envelope,
    farewell_message,
    lone_id,
    reset_message,
    size_of_envelope,
)
from repeater.protocol.event_codec import EventCodec
from repeater.protocol.websocket.frames import PING_FRAME, text_frame
from repeater.publication import Publication


class EventMessagesCodec(EventCodec):
    """One text message for each event, `reset` or lone id."""

    __slots__ = ()

    carries_binary: ClassVar[bool] = True

    def event(self, publication: Publication, event_id: bytes) -> bytes:
        """The envelope as a message."""
        return self.message(envelope(publication, event_id))

    def silent_id(self, event_id: bytes) -> bytes:
        """`{"id":...}`; nothing without an id."""
        return self.message(lone_id(event_id)) if event_id else b""

    def reset(self, channels: Sequence[str], event_id: bytes) -> bytes:
        """`{"id":...,"reset":{"channels":[...]}}`."""
        return self.message(reset_message(channels, event_id))

    def farewell(self, disconnect: Disconnect) -> bytes:
        """`{"disconnect":{"code":...,"reason":...}}`, for clients that look at messages only."""
        return self.message(farewell_message(disconnect))

    def size(self, publication: Publication) -> int:
        """As `Codec.size`, without the id."""
        return size_of_envelope(publication)


EVENT_MESSAGES: Final = EventMessagesCodec("event-messages", frame=text_frame, ping=PING_FRAME)
EVENT_MESSAGES_ASGI: Final = EventMessagesCodec("event-messages-asgi", frame=None, ping=None)
