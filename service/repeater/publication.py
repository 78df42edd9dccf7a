"""Publications, positions and announcements: what travels from one client to the others.

A publication's data stays the JSON text that the publisher sent: nothing between the REST body
and the subscriber's frame decodes it again.
"""

from __future__ import annotations

from typing import Final

import msgspec


class StreamPosition(msgspec.Struct, frozen=True):
    """A place in a channel's stream: publications are numbered 1, 2, 3... within an epoch.

    The epoch changes whenever numbering may have restarted (protocol, section 9.1).
    """

    offset: int
    epoch: str


class ClientInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who somebody is to the others: user id, connection id, and what was granted to be shown.

    The two infos are one-line JSON text.
    """

    user: str
    client: str
    conn_info: msgspec.Raw | None = None
    chan_info: msgspec.Raw | None = None


class Publication(msgspec.Struct, frozen=True):
    """One event in one channel.

    `data` is valid UTF-8 JSON text. `offset` 0 means that the publication is not in the
    channel's history; `epoch` is set beside every other offset. `delta` asks for it to be sent as
    a difference to those who negotiated that. `version`, where it is not 0, says how new the data
    is: a channel's history takes it only if it is newer than the last with a version of the same
    `version_epoch` (section 9.1).
    """

    channel: str
    data: bytes
    offset: int = 0
    epoch: str = ""
    tags: dict[str, str] | None = None
    info: ClientInfo | None = None
    delta: bool = False
    version: int = 0
    version_epoch: str = ""

    @property
    def position(self) -> StreamPosition | None:
        """Its place in the stream; None if it is in none."""
        return StreamPosition(self.offset, self.epoch) if self.offset else None


class Announcement(msgspec.Struct, frozen=True):
    """Somebody joined or left a channel: at most once, in no history (protocol, section 12)."""

    channel: str
    info: ClientInfo
    joined: bool

    @property
    def data(self) -> bytes:
        """None of the publishers' bytes; what the intake counts."""
        return b""


Event = Publication | Announcement
START: Final = StreamPosition(0, "")
"""Before everything, in whatever epoch."""


def one_line(data: bytes) -> bytes:
    """JSON text without raw line breaks, which separate messages (protocol, section 2.2)."""
    if b"\n" in data or b"\r" in data:
        return msgspec.json.format(data, indent=-1)
    return data


def embedded(data: bytes) -> msgspec.Raw | None:
    """JSON text to stand inside a message, None for none."""
    return msgspec.Raw(one_line(data)) if data else None
