"""A client's end of the Protobuf protocol, by the public schema: commands out, replies in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from tests import official_protobuf as official


def command(**fields: Any) -> bytes:
    """One command with its length; the fields as in JSON, with data in Base64."""
    return official.delimited(ParseDict(fields, official.Command()))


def emulation(session: str, node: str, data: bytes) -> bytes:
    """The body of `POST /emulation`."""
    request = official.EmulationRequest(session=session, node=node, data=data)
    return bytes(request.SerializeToString())


def whole(received: bytes) -> tuple[list[Any], bytes]:
    """The whole replies among these bytes, as JSON would have them, and the bytes behind them."""
    found, rest = official.whole_replies(received)
    return [MessageToDict(one, preserving_proto_field_name=True) for one in found], rest


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
