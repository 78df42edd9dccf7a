"""The public schema's own classes, which come with the Python SDK, as the judge of our Protobuf.

`fill` writes our values into them by the fields' names, and `told` reads what a message says as the
JSON form of the protocol would say it. Both go by the public schema's descriptors alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from centrifuge.protocol import client_pb2 as official
from google.protobuf.descriptor import FieldDescriptor

DESCRIPTOR = official.DESCRIPTOR

LACKING = {
    "SubscribeRequest": {"type": 15},
    "PublishRequest": {"type": 3},
    "Publication": {"epoch": 14},
}
"""Fields that are younger than the SDK's copy of the public schema."""

Command: Any = official.Command
Reply: Any = official.Reply
EmulationRequest: Any = official.EmulationRequest


def delimited(*messages: Any) -> bytes:
    """Messages, each with its length before it."""
    return b"".join(varint(len(data)) + data for data in map(_serialized, messages))


def _serialized(message: Any) -> bytes:
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data


def varint(number: int) -> bytes:
    """An unsigned varint."""
    out = b""
    while number > 0x7F:
        out += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return out + bytes((number,))


def replies(data: bytes) -> list[Any]:
    """The replies in a frame."""
    found, rest = whole_replies(data)
    assert not rest
    return found


def whole_replies(data: bytes) -> tuple[list[Any], bytes]:
    """The replies that are whole among these bytes, and the bytes behind them."""
    found = []
    while (length := _length(data)) is not None:
        size, start = length
        if len(data) < start + size:
            break
        found.append(Reply.FromString(data[start : start + size]))
        data = data[start + size :]
    return found, data


def _length(data: bytes) -> tuple[int, int] | None:
    """The length that these bytes begin with, and where it ends; None if it is not whole."""
    size = 0
    for place, byte in enumerate(data):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return size, place + 1
    return None


def fill(message: Any, value: msgspec.Struct) -> Any:
    """Write a value of `commands` or `replies` into a message of the public schema."""
    for name in value.__struct_fields__:
        field = getattr(value, name)
        if name in LACKING.get(message.DESCRIPTOR.name, ()):
            assert not field
        elif isinstance(field, msgspec.Struct):
            fill(getattr(message, name), field).SetInParent()
        elif isinstance(field, dict):
            for key, one in field.items():
                if isinstance(one, msgspec.Struct):
                    fill(getattr(message, name)[key], one)
                else:
                    getattr(message, name)[key] = one
        elif isinstance(field, tuple | list):
            for one in field:
                if isinstance(one, msgspec.Struct):
                    fill(getattr(message, name).add(), one)
                else:
                    getattr(message, name).append(one)
        elif isinstance(field, msgspec.Raw):
            setattr(message, name, bytes(field))
        elif field is not None:
            setattr(message, name, field)
    return message


def told(message: Any) -> dict[str, Any]:
    """What a message says: its fields that are set, with JSON text in `bytes` as its value."""
    return dict(_fields(message))


def _fields(message: Any) -> Iterator[tuple[str, Any]]:
    for field, value in message.ListFields():
        if _is_map(field):
            inner = field.message_type.fields_by_name["value"]
            yield field.name, {key: _value(inner, value[key]) for key in value}
        elif field.is_repeated:
            yield field.name, [_value(field, one) for one in value]
        else:
            yield field.name, _value(field, value)


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return told(value)
    if field.type != FieldDescriptor.TYPE_BYTES:
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value  # any bytes, of a binary channel


def said(kind: Any, value: Any) -> dict[str, Any]:
    """What an object of the protocol's JSON form says, in the same words: no zero values."""
    return dict(_said(kind.DESCRIPTOR, value))


def _said(descriptor: Any, value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, one in value.items():
        field = descriptor.fields_by_name.get(name)
        if field is None:
            assert name in LACKING[descriptor.name]
            continue
        if _is_map(field):
            inner = field.message_type.fields_by_name["value"]
            if one:
                yield name, {key: _said_one(inner, each) for key, each in one.items()}
        elif field.is_repeated:
            if one:
                yield name, [_said_one(field, each) for each in one]
        elif one or field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_BYTES):
            yield name, _said_one(field, one)


def _said_one(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return dict(_said(field.message_type, value))
    return value


def _is_map(field: Any) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)
