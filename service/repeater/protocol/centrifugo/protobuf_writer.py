"""Writes what a Protobuf client is told: the values of `replies` become messages of client.proto.

Rule: the fields of a value and of its message have the same names. So one call makes names and
values of any reply, and another one makes the message of them; both are in C. A field with its
zero value is left out, as in JSON.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import to_builtins

from repeater.protocol.centrifugo.protobuf_messages import message_class
from repeater.protocol.centrifugo.replies import Push, Reply
from repeater.protocol.centrifugo.varint import varint
from repeater.publication import Publication

_REPLY: Final = message_class("Reply")
_SUBSCRIBE_RESULT: Final = message_class("SubscribeResult")

# The fields of a reply, each before its value.
_ID: Final = b"\x08"  # field 1, a number
_SUBSCRIBE: Final = b"\x32"  # field 6, a message
_PUBLISH: Final = b"\x42"  # field 8, a message

_ANNOUNCED: Final = ("recoverable", "epoch", "offset", "positioned", "data")
"""What a push `subscribe` has of a subscribe result. JSON may have more there, for nobody."""


def write_reply(reply: Reply) -> bytes:
    """A reply, with its length before it."""
    # The frequent ones: to write a message inside another one costs the runtime a third more.
    if reply.publish is not None:
        return _answer(reply.id, _PUBLISH, b"")
    if reply.subscribe is not None:
        result = _SUBSCRIBE_RESULT(**_fields(reply.subscribe))
        return _answer(reply.id, _SUBSCRIBE, result.SerializeToString())
    return _written(_fields(reply))


def _answer(number: int, field: bytes, result: bytes) -> bytes:
    message = b"".join((_ID, varint(number), field, varint(len(result)), result))
    return varint(len(message)) + message


def write_push(push: Push) -> bytes:
    """A push inside a reply without id, with its length before it."""
    fields = _fields(push)
    if push.subscribe is not None:
        result = fields["subscribe"]
        fields["subscribe"] = {name: result[name] for name in _ANNOUNCED if name in result}
    return _written({"push": fields})


def write_publication(publication: Publication, data: bytes, *, delta: bool = False) -> bytes:
    """The push of a publication with this data, the whole or a delta; with its length before it.

    A client without an epoch learns it here, with offset 1 only.
    """
    pub: dict[str, Any] = {"data": data}
    if delta:
        pub["delta"] = True
    if publication.offset:
        pub["offset"] = publication.offset
        if publication.offset == 1:
            pub["epoch"] = publication.epoch
    if publication.tags:
        pub["tags"] = publication.tags
    if publication.info is not None:
        pub["info"] = _fields(publication.info)
    return _written({"push": {"channel": publication.channel, "pub": pub}})


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a value that are not left out. Data is `Raw`, and bytes in a message."""
    fields: dict[str, Any]
    try:
        fields = to_builtins(value)
    except TypeError:  # It has data. Few replies have, and the hook takes as long as all the rest.
        fields = to_builtins(value, builtin_types=(bytes,), enc_hook=bytes)
    return fields


def _written(fields: dict[str, Any]) -> bytes:
    message: bytes = _REPLY(**fields).SerializeToString()
    return varint(len(message)) + message
