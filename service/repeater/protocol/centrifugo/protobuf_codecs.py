"""The codecs of Protobuf clients, on each way in; `front/protobuf.py` imports them.

A message begins with its own length. So messages follow each other in a response as they are, and a
WebSocket's binary frame has one message each (protocol, section 16).
"""

from __future__ import annotations

from typing import Final

from repeater.protocol.centrifugo.codecs import bidirectional
from repeater.protocol.centrifugo.protobuf_format import PROTOBUF
from repeater.protocol.websocket.frames import binary_frame


def _as_it_is(message: bytes) -> bytes:
    return message


CENTRIFUGE_PROTOBUF: Final = bidirectional("centrifuge-protobuf", PROTOBUF, binary_frame)
CENTRIFUGE_PROTOBUF_ASGI: Final = bidirectional("centrifuge-protobuf-asgi", PROTOBUF, None)
# As of all streams, its chunks may be joined and split, so it serves behind ASGI servers, too.
CENTRIFUGE_PROTOBUF_STREAM: Final = bidirectional("centrifuge-protobuf-stream", PROTOBUF, _as_it_is)
