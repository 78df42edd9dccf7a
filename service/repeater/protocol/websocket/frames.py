"""WebSocket frames on the server's side: writing is ours, reading is the `websockets` library's.

A server frame is a header and the payload, unmasked (RFC 6455, section 5.2), so all subscribers
share the same bytes; that is the point of this project. Received bytes go through the library's
sans-I/O parser. A connection takes a parser when the first byte of a message arrives and gives it
back when the buffer is empty, so that an idle subscriber keeps no parser.
"""

from __future__ import annotations

import logging
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Callable
from typing import Final

from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import SERVER, Protocol
from websockets.protocol import State as ProtocolState
from websockets.typing import BytesLike

from repeater.protocol.websocket.deflate import Inflating

_LOGGER = logging.getLogger("repeater.websocket.frames")
_LOGGER.setLevel(logging.CRITICAL + 1)

SMALL: Final = 128  # bytes; a fragment below that costs more to read than its bytes are worth
_REASON_LIMIT: Final = 123  # the 125 bytes of a control frame, minus two for the code

PING_FRAME: Final = b"\x89\x00"


def _framing(head: bytes) -> Callable[[bytes], bytes]:
    """Make a function that frames with this first byte: no call inside the call for each frame."""
    long, longer = head + b"\x7e", head + b"\x7f"

    def frame(payload: bytes) -> bytes:
        size = len(payload)
        if size < 126:
            return head + size.to_bytes(1) + payload
        if size < 65_536:
            return long + size.to_bytes(2) + payload
        return longer + size.to_bytes(8) + payload

    return frame


text_frame: Final = _framing(b"\x81")
"""Returns one unfragmented, unmasked text frame with this payload."""
binary_frame: Final = _framing(b"\x82")
"""Returns one unfragmented, unmasked binary frame with this payload."""


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame; the reason is cut to the 123 bytes that fit."""
    text = reason.encode()[:_REASON_LIMIT].decode(errors="ignore")
    return Frame(Opcode.CLOSE, Close(code, text).serialize()).serialize(mask=False)


class _Receiving(Protocol):
    """The library's protocol, but a peer may close in the middle of a message."""

    def recv_frame(self, frame: Frame) -> None:
        """Accept a close frame between fragments (RFC 6455, section 5.4), which is echoed."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class FrameReader:
    """Turns received bytes into messages, and into the answers that the protocol demands.

    Lives inside one connection's read loop, from `take_reader` to `give_back`.
    """

    __slots__ = (
        "_closing",
        "_inflating",
        "_limit",
        "_opcode",
        "_payload",
        "_pongs",
        "_protocol",
        "_text",
        "_unread",
        "frames",
        "heard_pongs",
        "idle_frames",
        "inflates",
    )

    def __init__(self, message_limit: int, *, inflates: bool = False) -> None:
        """Take the bytes of the longest message; `inflates` if messages may be compressed."""
        self._limit = message_limit
        self._protocol = _Receiving(SERVER, max_size=message_limit, logger=_LOGGER)
        self.inflates = inflates
        """Whether messages may be compressed."""
        self._inflating = Inflating() if inflates else None
        if self._inflating is not None:
            self._protocol.extensions = [self._inflating]
        self._opcode: Opcode | None = None  # of a fragmented message, until it is whole
        self._payload = bytearray()  # not a list, which endless empty fragments would grow
        self._text: IncrementalDecoder | None = None  # checks the fragments of a text message
        self._unread = 0  # bytes of a frame that is not whole yet
        self._pongs = b""
        self._closing = b""
        self.frames = 0
        """The frames of the last `feed`."""
        self.heard_pongs = 0
        """The pongs among them."""
        self.idle_frames = 0
        """The pings and small fragments among them: frames that cost work and bring no message."""

    def feed(self, data: bytes) -> list[str | bytes]:
        """Take received bytes and return the messages that are whole.

        A text message is a `str`, a binary one `bytes`. Afterwards the caller sends `pongs`,
        carries out the messages, and sends `closing`.
        """
        self._protocol.receive_data(data)
        self._unread += len(data)
        self.frames = self.heard_pongs = self.idle_frames = 0
        messages: list[str | bytes] = []
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            self._unread -= self._received_size(event)
            self.frames += 1
            if event.opcode is not _TEXT or not event.fin:
                self._count(event)
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

    def _received_size(self, frame: Frame) -> int:
        """The least size of a frame on the wire: its length may be written longer than needed.

        The reader of a client that writes longer lengths never becomes idle; the client loses
        nothing.
        """
        inflating = self._inflating
        size = len(frame.data) if inflating is None else inflating.take_size()
        return 6 + size + (0 if size < 126 else 2 if size < 65_536 else 8)

    def _count(self, frame: Frame) -> None:
        """Count a frame that may bring nothing."""
        if frame.opcode is Opcode.PONG:
            self.heard_pongs += 1
        elif frame.opcode is Opcode.PING:
            self.idle_frames += 1
        elif frame.opcode is Opcode.CONT or not frame.fin:
            self.idle_frames += len(frame.data) < SMALL

    def _message(self, frame: Frame) -> str | bytes | None:
        """Return the message that this frame completes; None while fragments are missing.

        Raises:
            UnicodeDecodeError: the bytes so far are not UTF-8.
        """
        if self._opcode is None and frame.fin:
            return _decoded(frame.opcode, frame.data)
        if self._opcode is None:
            self._opcode = frame.opcode
            self._text = _utf8_decoder() if frame.opcode is Opcode.TEXT else None
        self._payload += frame.data
        if self._text is not None:
            # Each fragment is checked on arrival: the rest of a broken text may never come.
            self._text.decode(frame.data, frame.fin)
        if not frame.fin:
            return None
        message = _decoded(self._opcode, self._payload)
        self._opcode, self._text, self._payload = None, None, bytearray()
        return message

    def _take_answers(self) -> None:
        """Take the frames to send. The library gives a close frame last, and `b""` for EOF."""
        frames = [frame for frame in self._protocol.data_to_send() if frame]
        if frames and self.closed:
            self._closing = frames.pop()
        self._pongs = b"".join(frames)

    @property
    def pongs(self) -> bytes:
        """The answers to the pings of the last `feed`; usually empty."""
        return self._pongs

    @property
    def closing(self) -> bytes:
        """The close frame that answers a close or a violation; empty until then."""
        return self._closing

    @property
    def closed(self) -> bool:
        """Whether the closing handshake began; then there is nothing more to read."""
        return self._protocol.state is not ProtocolState.OPEN

    @property
    def close(self) -> Close | None:
        """The code and reason of our close after a violation, or of the peer's close."""
        return self._protocol.close_sent

    @property
    def idle(self) -> bool:
        """Whether no part of a message is kept, so that the reader may be dropped.

        The library's buffer does not show this: it is empty after a frame's header was read.
        """
        return self._opcode is None and not self._unread

    def fits(self, message_limit: int) -> bool:
        """Whether a connection with this limit may use the reader: nothing of another is in it."""
        return self._limit == message_limit and self.idle and not self.closed


# To make a reader costs more than to read a message. Few are enough: most messages are read and
# carried out before another connection has its turn.
_SPARE: Final = 8
_spare: Final[tuple[list[FrameReader], list[FrameReader]]] = ([], [])  # the second ones inflate


def take_reader(message_limit: int, *, inflates: bool = False) -> FrameReader:
    """Return a reader in which nothing is; the caller ends its use by `give_back`, or drops it."""
    spare = _spare[inflates]
    while spare:
        reader = spare.pop()
        if reader.fits(message_limit):
            return reader
    return FrameReader(message_limit, inflates=inflates)


def give_back(reader: FrameReader) -> None:
    """End the use of an `idle` reader: it is kept for the next message of any connection."""
    spare = _spare[reader.inflates]
    if len(spare) < _SPARE:
        spare.append(reader)


def _decoded(opcode: Opcode, payload: BytesLike) -> str | bytes:
    return str(payload, "utf-8") if opcode is Opcode.TEXT else bytes(payload)


_TEXT: Final = Opcode.TEXT
_DATA: Final = frozenset((Opcode.TEXT, Opcode.BINARY, Opcode.CONT))
_utf8_decoder: Final = getincrementaldecoder("utf-8")
