"""Publications, positions and announcements: the values that go from publisher to subscribers.

A publication's data stays the JSON text that the publisher sent: nothing between the REST body
and the subscriber's frame decodes the data again (`json_text`). In a binary channel the data is any
bytes, and the publication is marked.
"""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.causes import Cause, Why
from repeater.errors import ErrorCode, ReplyError
from repeater.json_text import json_text


class StreamPosition(msgspec.Struct, frozen=True):
    """A place in a channel's stream: publications are numbered 1, 2, 3... within an epoch.

    The epoch changes whenever numbering may have restarted (protocol, section 9.1).
    """

    offset: int
    epoch: str


class ClientInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What other clients see of one client: user id, connection id, and the infos of its grants.

    `conn_info` and `chan_info` are a `JSONText`.
    """

    user: str
    client: str
    conn_info: msgspec.Raw | None = None
    chan_info: msgspec.Raw | None = None


# Without the collector's header: nothing in a publication can refer back to it.
class Publication(msgspec.Struct, frozen=True, gc=False):
    """One event in one channel.

    `data` is JSON text, and a `JSONText` as soon as the node has accepted it. With `binary` it is
    any bytes: the node sets the mark by the channel's format, and the mark stays with the
    publication, since another node or a later configuration may have another format for the
    channel. `offset` 0 means
    that the publication is not in the channel's history; with every other offset, `epoch` is set
    too. With `delta` the publication is sent as a delta to the subscribers that negotiated deltas.
    A `version` other than 0 says how new the data is: a channel's history takes the publication
    only if its version is newer than the last version of the same `version_epoch` (section 9.1).
    `time` is Unix milliseconds, set where the publication is numbered; 0 for one without a number.
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
    time: int = 0
    binary: bool = False

    @property
    def position(self) -> StreamPosition | None:
        """The publication's place in the stream; None if it is not in a stream."""
        return StreamPosition(self.offset, self.epoch) if self.offset else None


class Announcement(msgspec.Struct, frozen=True):
    """A client joined or left a channel: told at most once, never kept (protocol, section 12)."""

    channel: str
    info: ClientInfo
    joined: bool

    @property
    def data(self) -> bytes:
        """Empty: an announcement carries no publisher's data."""
        return b""


class Rupture(msgspec.Struct, frozen=True):
    """Publications of a channel may be missing, and the broker cannot fetch them any more.

    Whoever has a position in the channel is told, and comes back. An empty channel means every
    channel.
    """

    channel: str = ""

    @property
    def data(self) -> bytes:
        """Empty: a rupture carries no publisher's data."""
        return b""


Event = Publication | Announcement | Rupture
EVENT_OVERHEAD: Final = 256
"""Bytes of an event beside its texts: the objects that hold them in memory, about. What a frame
adds to the texts on its way to a subscriber is less."""
_TAG_OVERHEAD: Final = 128  # two strings and their place in a dictionary

_EXPECTED: Final = {"tags": "an object of texts", "channel, tags or info": "text in UTF-8"}
"""What the parts of a publication must be; the others must be JSON."""

START: Final = StreamPosition(0, "")
"""The position before every publication, in any epoch."""


def weight_of(event: Event) -> int:
    """The bytes that an event takes in memory, about: every text of it, and `EVENT_OVERHEAD`.

    Intake, batches and history are bounded by it, because a publisher chooses all of these texts.
    """
    if type(event) is not Publication:
        if isinstance(event, Announcement):
            return EVENT_OVERHEAD + len(event.channel) + _weight_of_info(event.info)
        return EVENT_OVERHEAD + len(event.channel)
    weight = EVENT_OVERHEAD + len(event.channel) + len(event.data)
    if event.info is not None:
        weight += _weight_of_info(event.info)
    if event.tags is not None:
        weight += sum(_TAG_OVERHEAD + _size(key) + _size(tag) for key, tag in event.tags.items())
    if event.version_epoch:
        weight += _size(event.version_epoch)
    return weight


def _weight_of_info(info: ClientInfo) -> int:
    weight = EVENT_OVERHEAD + _size(info.user) + _size(info.client)
    if info.conn_info is not None:
        weight += len(info.conn_info)
    if info.chan_info is not None:
        weight += len(info.chan_info)
    return weight


def _size(text: str) -> int:
    """The most bytes that a text takes, in memory or in JSON, where a control character takes 6."""
    return len(text) if text.isascii() and text.isprintable() else 6 * len(text)


def checked(publication: Publication) -> Publication:
    """The publication with a `JSONText` as data; for code that got it from elsewhere.

    The data of a binary one is plain bytes.

    Raises:
        ReplyError: the data or the info is not JSON text, or another text is not text (107).
    """
    data, info, part = publication.data, publication.info, "data"
    if data.__class__ is not bytes:
        data = _bytes_of(data)
    try:
        if not publication.binary:
            data = json_text(data)
        if info is not None:
            part = "info"
            for text in (info.conn_info, info.chan_info):
                if text is not None:
                    json_text(bytes(text))
        if publication.tags is not None:
            part = "tags"
            msgspec.convert(msgspec.to_builtins(publication.tags), dict[str, str])
        # Encoded once more for each codec; a lone surrogate must fail here and not there.
        part = "channel, tags or info"
        msgspec.json.encode((publication.channel, publication.tags, info))
    except (ValueError, TypeError, msgspec.MsgspecError):
        why = Why(Cause.REQUEST, f"{part}: not {_EXPECTED.get(part, 'JSON')}")
        raise ReplyError(ErrorCode.BAD_REQUEST, why=why) from None
    return msgspec.structs.replace(publication, data=data)


def _bytes_of(data: object) -> bytes:
    """Data of another class as plain bytes.

    Raises:
        ReplyError: it is no bytes: `bytes(5)` would be five zeros, and `bytes([49])` the number 1.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ReplyError(ErrorCode.BAD_REQUEST, "a publication's data must be bytes")
    return bytes(data)
