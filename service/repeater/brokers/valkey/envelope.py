"""A publication or an announcement as other nodes get it: by the bus, and in a stream.

    uid (8 bytes), kind (1 byte), content

    d   the data of a publication that has nothing else
    p   msgpack of a `_PublicationRow`
    b   the same, of a binary publication: its data is any bytes
    j l msgpack of an `_InfoRow`: a join, a leave

By the bus comes `<offset> <epoch> <Unix ms>`, a line break, and the envelope; `0` for what is in no
stream; without an envelope: the stream has changed. Rows only grow at the end, so that two
versions of Repeater can run side by side. A kind that a node does not know is counted and logged
there, and who has a position in the channel is told of the loss.

Whoever can write into the engine can write anything. So all of it is checked like a stranger's
bytes before it comes to fan-out.
"""

from __future__ import annotations

import re
from itertools import count
from secrets import token_bytes
from typing import Annotated, Final

import msgspec

from repeater.brokers.valkey.engine import ForeignError
from repeater.brokers.valkey.values import Message, Place
from repeater.json_text import json_text
from repeater.publication import Announcement, ClientInfo, Event, Publication

_UID: Final = 8
_KIND: Final = _UID + 1
_DIGITS: Final = 15
_UNNUMBERED: Final = Place(0, "", b"")
# As publish.lua checks them.
_match_head: Final = re.compile(rb"([0-9]{1,15}) ([0-9A-Za-z_-]{1,32}) ([0-9]{1,15})\n").match
_match_id: Final = re.compile(rb"([0-9]{1,15})-([0-9]{1,15})").fullmatch
_match_epoch: Final = re.compile(rb"[0-9A-Za-z_-]{1,32}").fullmatch
_match_offset: Final = re.compile(rb"[0-9]{1,15}").fullmatch


class _InfoRow(msgspec.Struct, array_like=True, frozen=True):
    user: str
    client: str
    conn_info: bytes | None = None
    chan_info: bytes | None = None


class _PublicationRow(msgspec.Struct, array_like=True, frozen=True):
    data: bytes
    tags: dict[str, str] | None = None
    info: _InfoRow | None = None
    delta: bool = False
    version: Annotated[int, msgspec.Meta(ge=0)] = 0
    version_epoch: str = ""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_publication: Final = msgspec.msgpack.Decoder(_PublicationRow).decode
_decode_info: Final = msgspec.msgpack.Decoder(_InfoRow).decode


class Uids:
    """Names for the publications of one process, which no other publication has."""

    def __init__(self) -> None:
        self._process = token_bytes(4)
        self._numbers = count()

    def next(self) -> bytes:
        """The next one: 4 bytes of the process, and a number."""
        return self._process + (next(self._numbers) & 0xFFFFFFFF).to_bytes(4)


def sealed(event: Publication | Announcement, uid: bytes) -> bytes:
    """The envelope of an event that has no number yet."""
    if type(event) is Announcement:
        return uid + (b"j" if event.joined else b"l") + _encode(_info_row(event.info))
    assert type(event) is Publication
    if event.tags or event.info or event.delta or event.version or event.binary:
        row = _PublicationRow(
            bytes(event.data),
            event.tags,
            None if event.info is None else _info_row(event.info),
            event.delta,
            event.version,
            event.version_epoch,
        )
        return uid + (b"b" if event.binary else b"p") + _encode(row)
    return uid + b"d" + event.data


def behind(here: Place, channel: str, payload: bytes) -> tuple[Publication, Place] | None:
    """What came by the bus, if it is the publication right behind a place, with nothing but data.

    None says nothing about it: `received` reads whatever comes, in more time.
    """
    before, epoch, _ = here
    offset = before + 1
    head = b"%d %b " % (offset, epoch.encode())
    if not payload.startswith(head):
        return None
    try:
        end = payload.index(b"\n")
        time, begin = payload[len(head) : end], end + 1
        content = begin + _KIND
        if payload[content - 1 : content] != b"d" or not time.isdigit() or len(time) > _DIGITS:
            return None
        data = json_text(payload[content:])
    except ValueError:
        return None
    return (
        Publication(channel, data, offset, epoch, None, None, False, 0, "", int(time)),
        Place(offset, epoch, payload[begin : begin + _UID]),
    )


def received(channel: str, payload: bytes) -> Message:
    """What came by the bus.

    Raises:
        ForeignError: see there.
    """
    found = _match_head(payload)
    if found is None:
        if payload.startswith(b"0\n"):
            return Message(_UNNUMBERED, opened(channel, payload[2:], _UNNUMBERED, 0))
        raise ForeignError("not a message of a node")
    offset, epoch, time = found.groups()
    envelope = payload[found.end() :]
    place = Place(int(offset), epoch.decode(), envelope[:_UID])
    if not envelope:
        return Message(place, None)
    if not place.offset:
        raise ForeignError("a publication with the number 0")
    return Message(place, opened(channel, envelope, place, int(time)))


def entry_of(channel: str, entry: object, epoch: str) -> Message:
    """An entry of a stream, as XRANGE returns it.

    Raises:
        ForeignError: see there.
    """
    match entry:
        case [bytes() as name, [b"d", bytes() as envelope]]:
            found = _match_id(name)
        case _:
            found = None
    if found is None:
        raise ForeignError("not an entry of a node")
    place = Place(int(found[1]), epoch, envelope[:_UID])
    return Message(place, opened(channel, envelope, place, int(found[2])))


def head_of(epoch: object, offset: object, uid: object) -> Place:
    """The top of a stream as its meta has it; without an epoch there is no stream.

    Raises:
        ForeignError: see there.
    """
    if not epoch:
        return _UNNUMBERED
    offset, uid = offset or b"0", uid or b""
    if (
        isinstance(epoch, bytes)
        and isinstance(offset, bytes)
        and isinstance(uid, bytes)
        and _match_epoch(epoch)
        and _match_offset(offset)
    ):
        return Place(int(offset), epoch.decode(), uid)
    raise ForeignError("not the meta of a stream")


def opened(channel: str, envelope: bytes, place: Place, milliseconds: int) -> Event:
    """The event in an envelope, as fan-out gets it.

    Raises:
        ForeignError: see there.
    """
    kind, content = envelope[_UID:_KIND], envelope[_KIND:]
    try:
        if kind == b"d":
            return Publication(
                channel, json_text(content), place.offset, place.epoch, time=milliseconds
            )
        if kind in (b"p", b"b"):
            row = _decode_publication(content)
            return _publication(channel, row, place, milliseconds, binary=kind == b"b")
        if kind in (b"j", b"l"):
            return Announcement(channel, _info(_decode_info(content)), kind == b"j")
    except (ValueError, msgspec.MsgspecError, RecursionError):  # a decoder goes as deep as they do
        raise ForeignError("not an event of a node") from None
    raise ForeignError("not a kind of event")


def _publication(
    channel: str, row: _PublicationRow, place: Place, time: int, *, binary: bool
) -> Publication:
    return Publication(
        channel,
        row.data if binary else json_text(row.data),
        place.offset,
        place.epoch,
        row.tags,
        None if row.info is None else _info(row.info),
        row.delta,
        row.version,
        row.version_epoch,
        time,
        binary,
    )


def _info_row(info: ClientInfo) -> _InfoRow:
    return _InfoRow(info.user, info.client, _bytes(info.conn_info), _bytes(info.chan_info))


def _bytes(text: msgspec.Raw | None) -> bytes | None:
    return None if text is None else bytes(text)


def _info(row: _InfoRow) -> ClientInfo:
    return ClientInfo(row.user, row.client, _raw(row.conn_info), _raw(row.chan_info))


def _raw(text: bytes | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(json_text(text))
