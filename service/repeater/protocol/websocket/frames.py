"""WebSocket frames on the server's side: writing is ours, reading is the `websockets` library's.

A server frame is a header and the payload, unmasked (RFC 6455, section 5.2), so the same bytes
serve every subscriber: sharing them is the point of this project. Inbound bytes go through the
library's sans-I/O parser, which is made when the first byte of a message arrives and dropped when
the buffer is empty, so that an idle subscriber keeps no parser.
"""

from __future__ import annotations

import logging
from codecs import IncrementalDecoder, getincrementaldecoder
from typing import Final

from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import SERVER, Protocol
from websockets.protocol import State as ProtocolState
from websockets.typing import BytesLike

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


class _Receiving(Protocol):
    """The library's protocol, without its ban on leaving in the middle of a message."""

    def recv_frame(self, frame: Frame) -> None:
        """A close frame between fragments is correct (RFC 6455, section 5.4) and is echoed."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class FrameReader:
    """Turns received bytes into messages and into the answers that the protocol owes.

    Lives inside one connection's read loop; dropped by it whenever `idle`.
    """

    __slots__ = ("_closing", "_opcode", "_payload", "_pongs", "_protocol", "_text", "_unread")

    def __init__(self, message_limit: int) -> None:
        self._protocol = _Receiving(SERVER, max_size=message_limit, logger=_LOGGER)
        self._opcode: Opcode | None = None  # of the fragmented message that has begun
        self._payload = bytearray()  # not a list: empty fragments without end must cost nothing
        self._text: IncrementalDecoder | None = None  # checks the fragments of a text
        self._unread = 0  # bytes that belong to no whole frame yet
        self._pongs = b""
        self._closing = b""

    def feed(self, data: bytes) -> list[str | bytes]:
        """Take received bytes; returns the whole messages.

        A text message is a `str`, a binary one `bytes`. Afterwards send `pongs`, carry out the
        messages, and send `closing`.
        """
        self._protocol.receive_data(data)
        self._unread += len(data)
        messages: list[str | bytes] = []
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            self._unread -= _received_size(event)
            if event.opcode not in _DATA:
                continue
            try:
                message = self._message(event)
            except UnicodeDecodeError:
                self._protocol.fail(CloseCode.INVALID_DATA, "invalid UTF-8")
                break
            if message is not None:
                messages.append(message)
        self._take_answers()
        return messages

    def _message(self, frame: Frame) -> str | bytes | None:
        """Return the message that this frame completes; None while fragments are missing.

        Raises:
            UnicodeDecodeError: the message cannot be text any more.
        """
        if self._opcode is None and frame.fin:
            return _decoded(frame.opcode, frame.data)
        if self._opcode is None:
            self._opcode = frame.opcode
            self._text = _utf8_decoder() if frame.opcode is Opcode.TEXT else None
        self._payload += frame.data
        if self._text is not None:
            # Each fragment is checked when it comes: broken text must not be waited for.
            self._text.decode(frame.data, frame.fin)
        if not frame.fin:
            return None
        message = _decoded(self._opcode, self._payload)
        self._opcode, self._text, self._payload = None, None, bytearray()
        return message

    def _take_answers(self) -> None:
        """The library writes frames in order, a close frame last; empty bytes mean EOF."""
        frames = [frame for frame in self._protocol.data_to_send() if frame]
        if frames and self.closed:
            self._closing = frames.pop()
        self._pongs = b"".join(frames)

    @property
    def pongs(self) -> bytes:
        """What the pings of the last `feed` are owed; empty mostly."""
        return self._pongs

    @property
    def closing(self) -> bytes:
        """The close frame that answers a close or a violation; empty while the reader is open."""
        return self._closing

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
        """Whether nothing half-read is kept, so that the reader may be dropped.

        The library's buffer does not say it: that is empty behind a header read already.
        """
        return self._opcode is None and not self._unread


def _received_size(frame: Frame) -> int:
    """The bytes of a client's frame, at the least: its length may be written longer than needed.

    Whoever does that keeps a reader, and loses nothing.
    """
    size = len(frame.data)
    return 6 + size + (0 if size < 126 else 2 if size < 65_536 else 8)


def _decoded(opcode: Opcode, payload: BytesLike) -> str | bytes:
    return str(payload, "utf-8") if opcode is Opcode.TEXT else bytes(payload)


_DATA: Final = frozenset((Opcode.TEXT, Opcode.BINARY, Opcode.CONT))
_utf8_decoder: Final = getincrementaldecoder("utf-8")
