"""WebSocket frames on the server's side: writing is ours, reading is the `websockets` library's.

A server frame is a header and the payload, unmasked (RFC 6455, section 5.2), so the same bytes
serve every subscriber: sharing them is the point of this project. Inbound bytes go through the
library's sans-I/O parser, which is made when the first byte of a message arrives and dropped when
the buffer is empty, so that an idle subscriber keeps no parser.
"""

from __future__ import annotations

import logging
from typing import Final

from websockets.frames import Close, Frame, Opcode
from websockets.protocol import SERVER, Protocol
from websockets.protocol import State as ProtocolState

_LOGGER = logging.getLogger("repeater.websocket.frames")
_LOGGER.setLevel(logging.CRITICAL + 1)

_REASON_LIMIT: Final = 123  # a control frame's 125 bytes less the code's two

PING_FRAME: Final = b"\x89\x00"


def text_frame(payload: bytes) -> bytes:
    """One unfragmented, unmasked text frame."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame; the reason is cut to the 123 bytes that fit."""
    text = reason.encode()[:_REASON_LIMIT].decode(errors="ignore")
    return Frame(Opcode.CLOSE, Close(code, text).serialize()).serialize(mask=False)


class FrameReader:
    """Turns received bytes into messages and into the answers that the protocol owes.

    Lives inside one connection's read loop; dropped by it whenever `idle`.
    """

    __slots__ = ("_fragments", "_protocol")

    def __init__(self, message_limit: int) -> None:
        self._protocol = Protocol(SERVER, max_size=message_limit, logger=_LOGGER)
        self._fragments: list[Frame] = []

    def feed(self, data: bytes) -> list[bytes | str]:
        """Take received bytes; returns the whole messages, text as bytes and binary as `str` tag.

        Text messages come back as their UTF-8 bytes; a binary message comes back as the
        string "binary", since no codec of ours reads one. Afterwards look at `answers`.
        """
        self._protocol.receive_data(data)
        messages: list[bytes | str] = []
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in _DATA:
                self._collect(event, messages)
        return messages

    def _collect(self, frame: Frame, messages: list[bytes | str]) -> None:
        self._fragments.append(frame)
        if not frame.fin:
            return
        fragments, self._fragments = self._fragments, []
        if fragments[0].opcode is Opcode.BINARY:
            messages.append("binary")
        elif len(fragments) == 1:
            messages.append(bytes(frame.data))
        else:
            messages.append(b"".join(fragment.data for fragment in fragments))

    def answers(self) -> bytes:
        """Pongs, and the close frame that answers a close or a violation; empty mostly."""
        return b"".join(self._protocol.data_to_send())

    @property
    def closed(self) -> bool:
        """Whether the closing handshake began; nothing more is to be read."""
        return self._protocol.state is not ProtocolState.OPEN

    @property
    def close(self) -> Close | None:
        """What we closed with after a violation, or what the peer closed with."""
        return self._protocol.close_sent

    @property
    def idle(self) -> bool:
        """Whether nothing half-read is kept, so that the reader may be dropped."""
        return not (self._fragments or self._protocol.reader.buffer)


_DATA: Final = frozenset((Opcode.TEXT, Opcode.BINARY, Opcode.CONT))
