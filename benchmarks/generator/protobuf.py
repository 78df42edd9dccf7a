"""The bytes of Protobuf clients: messages of the client protocol, written field by field.

Pure functions; neither the server's schema nor a library's runtime is needed to write so few.
"""

from __future__ import annotations

from typing import Final

# Wire types (protobuf.dev, "Encoding").
_VARINT: Final = 0
_BYTES: Final = 2

# Fields of the client protocol: client.proto of the server.
_ID: Final = 1  # of a command and of a reply
_CONNECT: Final = 4
_SUBSCRIBE: Final = 5
_UNSUBSCRIBE: Final = 6
_PUBLISH: Final = 7
_REPLY_PUSH: Final = 4
_REPLY_SUBSCRIBE: Final = 6
_REPLY_UNSUBSCRIBE: Final = 7
_REPLY_PUBLISH: Final = 8


def varint(number: int) -> bytes:
    """An unsigned varint: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def field(number: int, value: int | bytes) -> bytes:
    """One field: a number, or bytes, text or a message."""
    if isinstance(value, int):
        return varint(number << 3 | _VARINT) + varint(value)
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def delimited(message: bytes) -> bytes:
    """A message with its length before it."""
    return varint(len(message)) + message


def connect(number: int) -> bytes:
    """A `connect` command."""
    return delimited(field(_ID, number) + field(_CONNECT, b""))


def subscribe(number: int, channel: str, wishes: tuple[int, ...] = ()) -> bytes:
    """A `subscribe` command; `wishes` are the numbers of more fields that are true."""
    request = field(1, channel.encode()) + b"".join(field(wish, 1) for wish in wishes)
    return delimited(field(_ID, number) + field(_SUBSCRIBE, request))


def unsubscribe(number: int, channel: str) -> bytes:
    """An `unsubscribe` command."""
    return delimited(field(_ID, number) + field(_UNSUBSCRIBE, field(1, channel.encode())))


def publish(number: int, channel: str, data: bytes) -> bytes:
    """A `publish` command."""
    request = field(1, channel.encode()) + field(2, data)
    return delimited(field(_ID, number) + field(_PUBLISH, request))


def push(channel: str, data: bytes, offset: int) -> bytes:
    """The push of a publication as the server writes it, for a floor with the same bytes."""
    publication = field(4, data) + (field(6, offset) if offset else b"")
    return delimited(field(_REPLY_PUSH, field(2, channel.encode()) + field(4, publication)))


def subscribed(number: int) -> bytes:
    """The beginning of the reply to a `subscribe`; no other reply has these bytes."""
    return field(_ID, number) + varint(_REPLY_SUBSCRIBE << 3 | _BYTES)


def unsubscribed(number: int) -> bytes:
    """The reply to an `unsubscribe`."""
    return field(_ID, number) + field(_REPLY_UNSUBSCRIBE, b"")


def published(number: int) -> bytes:
    """The reply to a `publish`."""
    return field(_ID, number) + field(_REPLY_PUBLISH, b"")
