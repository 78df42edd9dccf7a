"""permessage-deflate (RFC 7692), made so that one compressed frame serves all its receivers.

Rule: no message refers to another one, in neither direction (`server_no_context_takeover`,
`client_no_context_takeover`). So the compressed frame is the same bytes for everybody, one
compressor serves all connections, and no connection owns any part of it. Nothing here waits.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame

from repeater.options import LARGEST_COMPRESSED

_LEVEL: Final = 1
"""Level 3 makes events of 1 KiB 1 % smaller and events of 4 KiB 5 %, for 10 % more time. From 4 on
zlib searches so long that hostile texts take ten times as long as others."""

_WINDOW: Final = 15  # bits; a client's smaller window is read with this one as well
_MEMORY: Final = 8  # zlib's default: 256 KiB for the compressor. Less is not faster.
_TAIL: Final = 4  # bytes of an empty block, which a flush ends with, and frames leave out (7.2.1)
_PADDING: Final = 1  # byte that a sender appends to a last block (7.2.3.4)
_RSV1: Final = 0x40
_BESIDE: Final = 1_024  # bytes that would take as long as all else that one message needs: 10 us
_REMEMBERED: Final = 262_144  # bytes of the messages of one batch of fan-out


class Compressor:
    """Compresses frames, each for itself. One serves all connections of a server.

    Owned by the server's listeners. Used in one thread only; takes some 0.7 MiB from the first
    frame on.
    """

    __slots__ = ("_recent", "_remembered", "_stream")

    def __init__(self) -> None:
        self._stream: zlib._Compress | None = None
        self._recent: dict[bytes, bytes] = {}
        self._remembered = 0  # bytes of the keys of `_recent`

    def deflate(self, frame: bytes) -> bytes:
        """Return the frame with its payload compressed; the frame itself if that is not shorter.

        The frame is unmasked and a whole message of at most 64 KiB. The last frames are
        remembered. So subscriptions with different filters, which are encoded apart from each
        other, share one compression, too.
        """
        deflated = self._recent.get(frame)
        if deflated is None:
            deflated = self._deflate(frame)
            self._remember(frame, deflated)
        return deflated

    def _deflate(self, frame: bytes) -> bytes:
        payload = memoryview(frame)[_header_size(frame) :]
        data = self._compress(payload)
        size = len(data)
        if size >= len(payload):
            return frame
        length = size.to_bytes(1) if size < 126 else b"\x7e" + size.to_bytes(2)
        return b"%c%b%b" % (frame[0] | _RSV1, length, data)

    def _compress(self, payload: memoryview) -> bytes:
        # Taken out meanwhile: after an error a part of this message would be in the next one.
        stream, self._stream = self._stream, None
        if stream is None:
            stream = zlib.compressobj(_LEVEL, wbits=-_WINDOW, memLevel=_MEMORY)
        # A full flush forgets everything that a later message could refer to.
        data = stream.compress(payload) + stream.flush(zlib.Z_FULL_FLUSH)
        self._stream = stream
        return data[:-_TAIL]

    def _remember(self, frame: bytes, deflated: bytes) -> None:
        """Keep a result; if there is no room, the older ones are forgotten."""
        self._remembered += len(frame)
        if self._remembered > _REMEMBERED:
            self._recent.clear()
            self._remembered = len(frame)
        self._recent[frame] = deflated


class DeflatedFrame:
    """Frames messages, and compresses those that become shorter by it."""

    __slots__ = ("_compressor", "_frame", "_min_size")

    def __init__(
        self, compressor: Compressor, frame: Callable[[bytes], bytes], min_size: int
    ) -> None:
        """Take the function that makes one unfragmented, unmasked frame of a message.

        Payloads with fewer than `min_size` bytes, or more than 64 KiB, are not compressed.
        """
        self._compressor = compressor
        self._frame = frame
        self._min_size = min_size

    def join(self, messages: Sequence[bytes]) -> bytes:
        """Return the frames of messages that are written at once.

        As many as have 64 KiB together are compressed, of short ones fewer, and the others are not:
        nobody else has a turn meanwhile. Fan-out, which can give way, asks for fewer at a time.
        """
        frames: list[bytes] = []
        left = LARGEST_COMPRESSED
        for message in messages:
            left -= len(message) + _BESIDE
            frames.append(self(message) if left >= 0 else self._frame(message))
        return b"".join(frames)

    def __call__(self, message: bytes) -> bytes:
        """Return the frame of a message."""
        frame = self._frame(message)
        if self._min_size <= len(frame) - _header_size(frame) <= LARGEST_COMPRESSED:
            return self._compressor.deflate(frame)
        return frame


def _header_size(frame: bytes) -> int:
    size = frame[1]
    return 2 if size < 126 else 4 if size == 126 else 10


class Inflating(PerMessageDeflate):
    """The library's reading of compressed messages, with the exact limit, and sizes on the wire.

    Lives inside a frame reader. Its decompressor lives from a message's first frame to the last.
    """

    def __init__(self) -> None:
        super().__init__(
            remote_no_context_takeover=True,
            local_no_context_takeover=True,
            remote_max_window_bits=_WINDOW,
            local_max_window_bits=_WINDOW,
        )
        self._sizes: deque[int] = deque()

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Inflate one frame.

        Raises:
            PayloadTooBig: the message would be longer than `max_size`; no more was inflated.
            ProtocolError: the data is not deflated, or a continuation says that it is compressed,
                or fragments go on behind the last block.
        """
        assert max_size is not None, "a server reads no message without a limit"
        self._sizes.append(len(frame.data))
        # One byte more: the library takes a message of exactly the limit for a longer one, and a
        # limit of 0 for none.
        inflated = super().decode(frame, max_size=max_size + 1)
        if len(inflated.data) > max_size:
            raise PayloadTooBig(None, max_size)
        # The decompressor keeps all that comes behind the last block, and no limit counts it. The
        # last frame has dropped it, be it the message's own or that of one that may not be there.
        unfinished = self.decode_cont_data and not frame.fin
        if unfinished and len(self.decoder.unused_data) > _PADDING:
            raise ProtocolError("data behind the last block")
        return inflated

    def take_size(self) -> int:
        """The size of the next frame's payload on the wire, in the order of `decode`."""
        return self._sizes.popleft()
