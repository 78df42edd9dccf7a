"""Commands and replies as dictionaries, in JSON and in Protobuf.

A dictionary reads the same in both: what Protobuf has as bytes is read as JSON where it can be.
Protobuf is spoken by the classes that `centrifuge-python` ships.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from tests import official_protobuf
from tests.official_protobuf import delimited, told, whole_replies

Message = dict[str, Any]


class Codec:
    """JSON: commands on lines."""

    binary = False
    content_type = "application/json"
    pong = b"{}"

    def frame(self, commands: Sequence[Any]) -> bytes:
        """One message with these commands; a text is a line as it is."""
        return "\n".join(map(_text, commands)).encode()

    def first(self, connect: Message | None) -> bytes:
        """The `connect` command that begins a stream."""
        return self.frame([{"id": 1, "connect": connect or {}}])

    def bare(self, connect: Message | None) -> bytes:
        """The request of a unidirectional way, which is no command."""
        return _text(connect or {}).encode()

    def emulated(self, session: str, node: str, message: bytes) -> bytes:
        """The body of a request to `/emulation`."""
        return _text({"session": session, "node": node, "data": message.decode()}).encode()

    def messages(self, data: bytes) -> Sequence[Message]:
        """What one frame of the server says."""
        return [json.loads(line) for line in data.split(b"\n") if line]

    def split(self, data: bytes, *, events: bool) -> tuple[Sequence[Message], bytes]:
        """What the whole events or lines at the begin of a stream say, and the rest."""
        *whole, rest = data.split(b"\n")
        lines = [one.strip() for one in whole]
        if events:
            lines = [one.removeprefix(b"data:") for one in lines if one.startswith(b"data:")]
        return [json.loads(one) for one in lines if one], rest


class ProtobufCodec(Codec):
    """Protobuf: each command with its length before it; `{"octets": hex}` stands for itself."""

    binary = True
    content_type = "application/octet-stream"
    pong = b"\x00"

    def frame(self, commands: Sequence[Any]) -> bytes:
        return b"".join(
            bytes.fromhex(one["octets"])
            if "octets" in one
            else delimited(_filled(official_protobuf.Command(), one))
            for one in commands
        )

    def emulated(self, session: str, node: str, message: bytes) -> bytes:
        request = official_protobuf.EmulationRequest(session=session, node=node, data=message)
        body: bytes = request.SerializeToString()
        return body

    def messages(self, data: bytes) -> Sequence[Message]:
        found, rest = whole_replies(data)
        assert not rest, "the server cut a message"
        return [told(one) for one in found]

    def split(self, data: bytes, *, events: bool) -> tuple[Sequence[Message], bytes]:
        found, rest = whole_replies(data)
        return [told(one) for one in found], rest


CODECS: Final = {"json": Codec(), "protobuf": ProtobufCodec()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _filled(message: Any, values: Message) -> Any:
    """Fill in the fields that the message has; Protobuf cannot say others, or null."""
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None or value is None:
            continue
        if field.type == FieldDescriptor.TYPE_BYTES:
            setattr(message, name, _octets(value))
        elif isinstance(value, dict) and field.message_type.GetOptions().map_entry:
            for key, one in value.items():
                if isinstance(one, dict):
                    _filled(getattr(message, name)[key], one)
                else:
                    getattr(message, name)[key] = one
        elif isinstance(value, dict):
            _filled(getattr(message, name), value).SetInParent()
        elif isinstance(value, list):
            for one in value:
                if isinstance(one, dict):
                    _filled(getattr(message, name).add(), one)
                else:
                    getattr(message, name).append(one)
        else:
            setattr(message, name, value)
    return message


def _octets(value: Any) -> bytes:
    if isinstance(value, dict) and "octets" in value:
        return bytes.fromhex(value["octets"])
    return _text(value).encode() if not isinstance(value, str) else json.dumps(value).encode()
