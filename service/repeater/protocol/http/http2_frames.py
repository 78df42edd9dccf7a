"""The frames of HTTP/2, counted as they arrive: which carry nothing, and whether one is unfinished.

`h2` turns frames into events, but some frames make no event, and one made of several fragments
makes an event at its end only. A limit must see all of them, so this module looks at the nine bytes
in front of each frame (RFC 9113, section 4.1).
"""

from __future__ import annotations

from typing import Final

import msgspec

_PREFACE: Final = 24  # bytes that a client sends before its first frame (RFC 9113, section 3.4)
_HEADER: Final = 9
_DATA: Final = 0
_HEADERS: Final = 1
_WINDOW_UPDATE: Final = 8
_CONTINUATION: Final = 9
_END_STREAM: Final = 0x1
_END_HEADERS: Final = 0x4

SMALL: Final = 16
"""Bytes below which a DATA frame that does not end its stream carries nothing. The smallest event
of a stream of events has 25 bytes."""


class Counted(msgspec.Struct, frozen=True):
    """What some bytes brought."""

    empty: int
    """Frames that carry nothing for an application, `window_updates` left out."""
    window_updates: int


class FrameCounter:
    """Counts the frames that one client sends. Lives inside its connection; pure."""

    def __init__(self) -> None:
        self.frames = 0
        """Frames that are whole."""
        self.block = 0
        """Bytes of an unfinished head so far; 0 if no head is unfinished."""
        self._header = b""
        self._left = _PREFACE  # bytes until the next frame
        self._kind = -1  # of the frame that `_left` belongs to; -1 for the preface
        self._empty = 0
        self._window_updates = 0

    @property
    def unfinished(self) -> bool:
        """Whether the preface, a head, or a frame other than DATA has begun and is not whole."""
        if self.block or self._header:
            return True
        return self._left > 0 and self._kind != _DATA

    def feed(self, data: bytes) -> Counted:
        """Take bytes in their order; return what has begun in them."""
        self._empty = self._window_updates = 0
        at, size = 0, len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                at += step
                self._left -= step
            else:
                missing = _HEADER - len(self._header)
                self._header += data[at : at + missing]
                at += missing
                if len(self._header) < _HEADER:
                    break
                self._begin(self._header)
                self._header = b""
            if not self._left:
                self.frames += 1
        return Counted(self._empty, self._window_updates)

    def _begin(self, header: bytes) -> None:
        length, kind, flags = int.from_bytes(header[:3]), header[3], header[4]
        self._left, self._kind = length, kind
        if kind in (_HEADERS, _CONTINUATION):
            self.block = 0 if flags & _END_HEADERS else self.block + length + _HEADER
        if kind == _WINDOW_UPDATE:
            self._window_updates += 1
        elif kind == _DATA:
            self._empty += length < SMALL and not flags & _END_STREAM
        elif kind != _HEADERS:
            self._empty += 1
