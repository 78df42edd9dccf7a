"""The formats of text: Centrifugo's JSON, with and without an envelope, and the data alone.

A publication's data is JSON text already, and is written as it is. No message has a raw line break,
because line breaks are between messages (protocol, section 2.2). Binary data fits into none of
them, except as a message of its own.
"""

from __future__ import annotations

from typing import Final

import msgspec

from repeater.protocol.centrifugo.commands import parse_commands
from repeater.protocol.centrifugo.fossil import delta_or_full
from repeater.protocol.centrifugo.replies import Push, Reply
from repeater.publication import Publication

_encode = msgspec.json.Encoder().encode

BINARY_MARK: Final = b"\x02"
"""Before a message that is binary among others that are text."""


class JSONFormat:
    """Replies, and pushes in an envelope that tells them from replies (protocol, section 5)."""

    __slots__ = ()

    binary = False
    takes_binary = False
    pushes = True
    ping = b"{}"

    # The functions themselves, since a call in between costs as much as a short reply.
    commands = staticmethod(parse_commands)
    reply = staticmethod(_encode)

    def publication(self, publication: Publication) -> bytes:
        """The push that carries one publication."""
        return _enveloped(say_bare(publication))

    def delta(self, publication: Publication, base: Publication | None) -> bytes:
        """The push whose data is a JSON string: the whole text, or the delta (section 10)."""
        return _enveloped(_say_delta(publication, base))

    def push(self, push: Push) -> bytes:
        """The push in its envelope."""
        return _enveloped(_encode(push))


class BareFormat(JSONFormat):
    """Pushes without their envelope, for unidirectional clients (protocol, section 15)."""

    __slots__ = ()

    def publication(self, publication: Publication) -> bytes:
        """The push object of one publication."""
        return say_bare(publication)

    def delta(self, publication: Publication, base: Publication | None) -> bytes:
        """As `JSONFormat.delta`, without the envelope."""
        return _say_delta(publication, base)

    def push(self, push: Push) -> bytes:
        """The push object as it is."""
        return _encode(push)


class PlainFormat(JSONFormat):
    """A publication's data alone, for plain subscribers, which get nothing else."""

    __slots__ = ()

    pushes = False

    def publication(self, publication: Publication) -> bytes:
        """The data."""
        return publication.data

    def delta(self, publication: Publication, _base: Publication | None) -> bytes:
        """The data: a plain subscriber negotiates nothing."""
        return publication.data

    def push(self, _push: Push) -> bytes:
        """Nothing."""
        return b""

    @staticmethod
    def reply(_reply: Reply) -> bytes:
        """Nothing."""
        return b""


class PlainWebSocketFormat(PlainFormat):
    """The data alone; binary data is marked, so that it becomes a binary message.

    The mark is the opcode of a binary frame (RFC 6455, section 5.2) as the first byte. JSON text
    never begins with it.
    """

    __slots__ = ()

    takes_binary = True

    def publication(self, publication: Publication) -> bytes:
        """The data, with the mark if it is binary."""
        return BINARY_MARK + publication.data if publication.binary else publication.data


def say_bare(publication: Publication) -> bytes:
    """The push object of a publication (protocol, section 5)."""
    return _push_object(publication, publication.data)


def _enveloped(push: bytes) -> bytes:
    return b'{"push":' + push + b"}"


def _say_delta(publication: Publication, base: Publication | None) -> bytes:
    if base is None or not publication.delta:
        return _push_object(publication, _encode(publication.data.decode()))
    text, is_delta = delta_or_full(base.data, publication.data)
    return _push_object(publication, _encode(text.decode()), b',"delta":true' if is_delta else b"")


def _push_object(publication: Publication, data: bytes, more: bytes = b"") -> bytes:
    """Write a push object. A client without an epoch learns it here, with offset 1 only."""
    parts = [b'{"channel":', _encode(publication.channel), b',"pub":{"data":', data, more]
    if publication.offset:
        parts.append(b',"offset":%d' % publication.offset)
        if publication.offset == 1:
            parts += (b',"epoch":', _encode(publication.epoch))
    if publication.tags:
        parts += (b',"tags":', _encode(publication.tags))
    if publication.info is not None:
        parts += (b',"info":', _encode(publication.info))
    parts.append(b"}}")
    return b"".join(parts)


JSON: Final = JSONFormat()
BARE: Final = BareFormat()
PLAIN_DATA: Final = PlainFormat()
PLAIN_MESSAGES: Final = PlainWebSocketFormat()
