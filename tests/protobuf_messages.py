"""Protobuf messages as an SDK writes and reads them, with the classes of the Python SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from centrifuge.protocol import client_pb2
from google.protobuf.json_format import MessageToDict, ParseDict


def delimited(message: bytes) -> bytes:
    """A message behind its length."""
    return _varint(len(message)) + message


def _varint(number: int) -> bytes:
    low = number & 0x7F
    return bytes([low]) if low == number else bytes([low | 0x80]) + _varint(number >> 7)


def _length(received: bytes) -> tuple[int, int] | None:
    """The length that these bytes begin with, and where it ends; None if it is not whole."""
    size = 0
    for place, byte in enumerate(received):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return size, place + 1
    return None


def command(**fields: Any) -> bytes:
    """One command; the fields as in JSON, with data in Base64."""
    return delimited(ParseDict(fields, client_pb2.Command()).SerializeToString())


def emulation(session: str, node: str, data: bytes) -> bytes:
    """The body of `POST /emulation`."""
    request = client_pb2.EmulationRequest(session=session, node=node, data=data)
    return bytes(request.SerializeToString())


def whole(received: bytes) -> tuple[list[Any], bytes]:
    """The whole replies among these bytes, as JSON would have them, and the bytes behind them."""
    replies = []
    while (found := _length(received)) is not None:
        size, start = found
        if len(received) < start + size:
            break
        reply = client_pb2.Reply.FromString(received[start : start + size])
        replies.append(MessageToDict(reply, preserving_proto_field_name=True))
        received = received[start + size :]
    return replies, received


def frames(received: bytes) -> Iterator[tuple[int, bytes]]:
    """Opcode and payload of a server's whole WebSocket frames."""
    while len(received) >= 2:
        opcode, size, start = received[0] & 0x0F, received[1], 2
        if size >= 126:
            start += 2 if size == 126 else 8
            size = int.from_bytes(received[2:start])
        if len(received) < start + size:
            return
        yield opcode, received[start : start + size]
        received = received[start + size :]
