"""From the chunks that a transport was given back to messages, whatever tells them apart.

The reverse of what codecs do (`protocol/centrifugo/codecs.py`), for tests: it decodes what was said
and judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from repeater.protocol.centrifugo.codecs import Codec
from repeater.protocol.centrifugo.json_format import BINARY_MARK

_TEXT: Final = 0x1
_BINARY: Final = 0x2
_PROBE: Final = b"probe"


def decoded_messages(codec: Codec, chunks: Sequence[bytes]) -> list[Any]:
    """Each whole message of these chunks: decoded JSON, else its text; a binary one as bytes.

    Several messages of the Centrifugo protocol in one are given one by one (section 2.2).
    """
    if not codec.framed:
        messages = list(chunks)
    else:
        probe, stream = codec.message(_PROBE), b"".join(chunks)
        if probe.startswith(b"data: "):
            messages = list(_events(stream))
        elif probe.endswith(b"\n"):
            messages = stream.split(b"\n")[:-1]
        else:
            messages = list(_frames(stream))
    lines = (line for message in messages for line in _lines(codec, message))
    return [_decoded(line) for line in lines]


def _lines(codec: Codec, message: bytes) -> list[bytes]:
    """A plain subscriber's message is one event, however many lines it has."""
    return [line for line in message.split(b"\n") if line] if codec.pushes else [message]


def _decoded(message: bytes) -> Any:
    if message.startswith(BINARY_MARK):
        return message[len(BINARY_MARK) :]
    try:
        return msgspec.json.decode(message)
    except msgspec.DecodeError:
        return message.decode()


def _frames(stream: bytes) -> Iterator[bytes]:
    """The messages in a server's WebSocket frames, binary ones marked (RFC 6455, section 5.2)."""
    at = 0
    while len(stream) >= at + 2:
        opcode, size = stream[at] & 0x0F, stream[at + 1]
        at += 2
        if size >= 126:
            more = 2 if size == 126 else 8
            size = int.from_bytes(stream[at : at + more])
            at += more
        if len(stream) < at + size:
            return
        if opcode in (_TEXT, _BINARY):
            yield (BINARY_MARK if opcode == _BINARY else b"") + stream[at : at + size]
        at += size


def _events(stream: bytes) -> Iterator[bytes]:
    """The data of Server-Sent Events; comments and other fields are left out."""
    for event in stream.split(b"\n\n")[:-1]:
        lines = [line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")]
        if lines:
            yield b"\n".join(lines)
