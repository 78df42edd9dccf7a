"""JSON text that passes through the server: it is checked once, where it is accepted.

Code behind that place parses no data again. It gets a `JSONText`, whose type proves the check.
Depth is counted without recursion, because a parser's own limit depends on the stack above it.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Final

import msgspec

DEPTH_LIMIT: Final = 128
"""Levels of arrays and objects in one value; a chat message has three or four."""

_PREFIX: Final = 4_096  # bytes looked at first: a text that is deep at its beginning costs no more
_LINE_BREAKS: Final = b"\r\n"
_BRACKETS: Final = b"[]{}"
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: 1 and -1
_NO_BRACKETS: Final = bytes(set(range(256)) - set(_BRACKETS))

# The `\u` of a lone surrogate, in a text in which every backslash begins an escape.
_HIGH: Final = rb"[dD][89abAB][0-9a-fA-F]{2}"
_LOW: Final = rb"[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE: Final = re.compile(
    rb"\\u(?:(?=%b)(?!%b\\u%b)|(?=%b)(?<!\\u%b\\u))" % (_HIGH, _HIGH, _LOW, _LOW, _HIGH)
)
_ESCAPED_BACKSLASH: Final = rb"\\"
_NO_JSON: Final = b"\0\0"  # stands for an escaped backslash; no JSON text has these bytes
# Escapes of private characters. A text with all of them and a lone surrogate is refused.
_MARKERS: Final = tuple(b"\\uE%03X" % number for number in range(0, 4096, 255))

_skip = msgspec.json.Decoder(msgspec.Raw).decode


class JSONText(bytes):
    """Valid JSON in UTF-8, on one line and at most `DEPTH_LIMIT` levels deep; empty for none.

    Made by `json_text` and `accepted` only. Except for line breaks between its tokens, the text is
    as its author wrote it, lone surrogates in escapes included.
    """

    __slots__ = ()


NOTHING: Final = JSONText()
"""No text: a field that was left out."""


def json_text(data: bytes) -> JSONText:
    """Check any bytes and return them as JSON text; costs nothing for a `JSONText`.

    Raises:
        ValueError: the bytes are not JSON in UTF-8, or are too deep; the reason repeats nothing
            of them.
    """
    if type(data) is JSONText:
        return data
    if deeper(data, DEPTH_LIMIT):
        raise ValueError(f"deeper than {DEPTH_LIMIT} levels")
    try:
        data.decode()  # The parser does not check the encoding of text that it skips.
        _check(data)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(reason_of(error)) from None
    if 10 in data or 13 in data:
        # Valid JSON has no line breaks inside its strings and numbers.
        data = data.translate(None, _LINE_BREAKS)
    return JSONText(data)


def json_of(value: object) -> JSONText:
    """A value of Python as JSON text. `bytes` are JSON text already, and are checked.

    Raises:
        TypeError: the value, or a part of it, has no form in JSON.
        ValueError: it is not a number (`nan`, `inf`), not text in UTF-8, too deep, or refers to
            itself; or the bytes are not JSON.
    """
    if isinstance(value, bytes):
        return json_text(value)
    try:
        # Not msgspec, which writes `nan` as `null`, and what is no JSON as a text.
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError(f"deeper than {DEPTH_LIMIT} levels") from None
    return json_text(text.encode())


def _check(data: bytes) -> None:
    try:
        _skip(data)
    except msgspec.DecodeError:
        masked = mask(data)
        if masked is None:
            raise
        _skip(masked.text)


def accepted(raw: msgspec.Raw) -> JSONText:
    """Return a field of a message that a reader of `protocol.json_reader` returned."""
    text = bytes(raw)
    if b"\n" in text or b"\r" in text:
        text = text.translate(None, _LINE_BREAKS)
    return JSONText(text)


def embedded(text: bytes) -> msgspec.Raw | None:
    """JSON text as a part of a message; None for empty text."""
    return msgspec.Raw(text) if text else None


def deeper(text: bytes | str, limit: int) -> bool:
    """Whether brackets outside of strings nest deeper than `limit`. Takes linear time.

    The text need not be valid. Up to its first mistake, no parser finds it deeper.
    """
    # A usual text has fewer brackets than the limit, and is not looked at again.
    if isinstance(text, str):
        if text.count("[") + text.count("{") <= limit:
            return False
        text = text.encode(errors="replace")
    elif text.count(b"[") + text.count(b"{") <= limit:
        return False
    if len(text) > _PREFIX and deeper(text[:_PREFIX], limit):
        return True
    outside = b"".join(text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = memoryview(outside.translate(_STEPS, _NO_BRACKETS)).cast("b")
    return max(accumulate(steps), default=0) > limit


class Masked(msgspec.Struct, frozen=True):
    """A text whose lone surrogates, which the parser refuses, are a marker and four digits."""

    text: bytes
    marker: bytes

    @property
    def character(self) -> str:
        """The marker as it is read."""
        return chr(int(self.marker[2:], 16))

    def restored(self, part: bytes) -> bytes:
        """A part of the masked text as its author wrote it."""
        return part.replace(self.marker, b"\\u")

    def replaced(self, part: bytes) -> bytes:
        """A part of the masked text with U+FFFD in place of each lone surrogate."""
        if self.marker not in part:
            return part
        return re.sub(re.escape(self.marker) + b"[0-9a-fA-F]{4}", rb"\\ufffd", part)


def mask(text: bytes) -> Masked | None:
    """Mask the lone surrogates of a text, written as escapes; None if it has none.

    `JSON.stringify` and `json.dumps` write them for a text that was cut within an emoji.
    """
    marker = next((one for one in _MARKERS if one not in text), None)
    if marker is None or _NO_JSON in text:
        return None
    # A constant takes the place of each, since a call of Python's for each would take long.
    constant = marker.replace(b"\\", _ESCAPED_BACKSLASH)
    found = _LONE.sub(constant, text.replace(_ESCAPED_BACKSLASH, _NO_JSON))
    result = found.replace(_NO_JSON, _ESCAPED_BACKSLASH)
    return None if result == text else Masked(result, marker)


def reason_of(error: Exception) -> str:
    """Where in the JSON the mistake is; input that is not text is only called "not JSON"."""
    return str(error) if isinstance(error, msgspec.DecodeError) else "not JSON"
