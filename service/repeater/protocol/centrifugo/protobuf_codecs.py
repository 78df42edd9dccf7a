"""The codecs of Protobuf clients, by the name of their transport; `front/protobuf.py` imports them.

A message begins with its own length. So messages follow each other in a response as they are, and a
WebSocket's binary frame has one message each (protocol, section 16).
"""

from __future__ import annotations

from typing import Final

from repeater.protocol.centrifugo.codecs import Codec, bidirectional
from repeater.protocol.centrifugo.protobuf_format import PROTOBUF
from repeater.protocol.centrifugo.protobuf_reader import read_emulation
from repeater.protocol.websocket.frames import binary_frame


def _as_it_is(message: bytes) -> bytes:
    return message


CENTRIFUGE_PROTOBUF: Final = bidirectional("centrifuge-protobuf", PROTOBUF, binary_frame)
CENTRIFUGE_PROTOBUF_ASGI: Final = bidirectional("centrifuge-protobuf-asgi", PROTOBUF, None)
CENTRIFUGE_PROTOBUF_STREAM: Final = bidirectional("centrifuge-protobuf-stream", PROTOBUF, _as_it_is)

__all__ = ["CODECS", "read_emulation"]

CODECS: Final[dict[str, Codec]] = {
    "websocket": CENTRIFUGE_PROTOBUF,
    "websocket-asgi": CENTRIFUGE_PROTOBUF_ASGI,
    "http_stream": CENTRIFUGE_PROTOBUF_STREAM,
    "http_stream-asgi": CENTRIFUGE_PROTOBUF_STREAM,
}
