"""Fossil deltas: one text written as copies from the text before it (protocol, section 10).

A delta of text is itself valid text, since a client of JSON gets it inside a string. Rule 1: no
segment begins or ends within a character; a delta that a client gets as bytes need not heed it.
Rule 2: the work is bounded for all texts, to a millisecond or two, because fan-out waits for it.
Longer texts have no delta. The common beginning and end cost little; between them, the numbers of
look-ups and of tries to make a match longer are limited.
Written here because no maintained library makes deltas; the SDKs only apply them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from struct import unpack
from typing import Final, NamedTuple

_DIGITS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"

_WORTH: Final = 8  # bytes: `n@off,` and the `n:` of the insert behind it take 7 or 8
_BLOCK: Final = 16  # bytes of one look-up; 8 took twice the time for larger deltas
_NEAREST: Final = 4  # places tried for a block that is in the base many times
_LIMIT: Final = 131_072  # bytes of either text; the checksum of so many takes 0.3 ms
# In one delta; each of these is at most half a millisecond on a hostile text.
_INDEXED: Final = 32_768  # bytes of the base, from the first difference on
_LOOKUPS: Final = 4_096  # at 0.1 us; one for each byte of the target without a match
_TRIES: Final = 256  # at 2 us


class _Copy(NamedTuple):
    """The target's bytes from `start` to `end` are the base's from `offset` on."""

    start: int
    end: int
    offset: int


def delta_or_full(base: bytes, target: bytes, *, text: bool = True) -> tuple[bytes, bool]:
    """What to send to a client that holds `base`: the delta and True, or `target` and False.

    The delta is taken only if it is smaller. Texts above 128 KiB are always sent whole. With
    `text` both are valid UTF-8, and so is the delta; else all of them are any bytes.
    """
    if len(base) > _LIMIT or len(target) > _LIMIT:
        return target, False
    delta = make_delta(base, target, text=text)
    if len(delta) < len(target):
        return delta, True
    return target, False


def make_delta(base: bytes, target: bytes, *, text: bool = True) -> bytes:
    """The Fossil delta that turns `base` into `target`; it may be larger than the target.

    With `text` both are valid UTF-8, and so is the delta. Takes some 10 us for a short text with
    one change, and at worst some 2 ms for hostile texts of 128 KiB.
    """
    size, checksum = _number(len(target)), _number(_checksum(target))
    segments = b"".join(_segments(target, _copies(base, target, text=text)))
    return b"%b\n%b%b;" % (size, segments, checksum)


def _number(value: int) -> bytes:
    digits = bytearray()
    while value >= 64:
        digits.append(_DIGITS[value & 63])
        value >>= 6
    digits.append(_DIGITS[value])
    digits.reverse()
    return bytes(digits)


def _checksum(data: bytes) -> int:
    """The sum of the big-endian 32-bit words, the last one padded with zeros."""
    padded = data + bytes(-len(data) % 4)
    words: tuple[int, ...] = unpack(f">{len(padded) // 4}I", padded)
    return sum(words) & 0xFFFFFFFF


def _segments(target: bytes, copies: Iterable[_Copy]) -> Iterator[bytes]:
    """The copies as text, in the target's order, and an insert for what lies between them."""
    done = 0
    for start, end, offset in copies:
        if done < start:
            yield b"%b:%b" % (_number(start - done), target[done:start])
        yield b"%b@%b," % (_number(end - start), _number(offset))
        done = end
    if done < len(target):
        yield b"%b:%b" % (_number(len(target) - done), target[done:])


def _copies(base: bytes, target: bytes, *, text: bool) -> Iterator[_Copy]:
    """The common beginning, matches in the middle, the common end: each only if it saves bytes."""
    shorter = min(len(base), len(target))
    head = _run(base, 0, target, 0, shorter)
    if text:
        head = _character_at_or_before(target, head)
    if head >= _WORTH:
        yield _Copy(0, head, 0)
    else:
        head = 0
    same = _run_back(base, len(base), target, len(target), shorter - head)
    tail = len(target) - same
    if text:
        tail = _character_at_or_after(target, tail)
    if len(target) - tail < _WORTH:
        tail = len(target)
    yield from _search(base, target, head, tail, text=text)
    if tail < len(target):
        yield _Copy(tail, len(target), len(base) - (len(target) - tail))


def _search(base: bytes, target: bytes, done: int, end: int, *, text: bool) -> Iterator[_Copy]:
    """Matches for the target's bytes from `done` to `end`, from anywhere in the base."""
    if end - done < _BLOCK:
        return
    find = _index(base, done).get
    # Edits change values in place, so the likeliest match continues where the last one ended.
    at, shift, tries, lookups = done, 0, _TRIES, _LOOKUPS
    while at <= end - _BLOCK and tries > 0 and lookups > 0:
        places = find(target[at : at + _BLOCK])
        lookups -= 1
        if places is None:
            at += 1
            continue
        nearby = _nearest(places, at + shift)
        tries -= len(nearby)
        match = max(
            (_grow(base, place, target, at, done, end, text=text) for place in nearby),
            key=lambda copy: copy.end - copy.start,
        )
        if match.end - match.start < _WORTH:  # Only when half characters had to be left out.
            at += 1
            continue
        yield match
        at = done = match.end
        shift = match.offset - match.start


def _index(base: bytes, start: int) -> dict[bytes, list[int]]:
    """The places of each block of the base from `start` on; one begins every `_BLOCK` bytes."""
    index: dict[bytes, list[int]] = {}
    for place in range(start, min(len(base) - _BLOCK + 1, start + _INDEXED), _BLOCK):
        block = base[place : place + _BLOCK]
        if block in index:
            index[block].append(place)
        else:
            index[block] = [place]
    return index


def _nearest(places: list[int], expected: int) -> list[int]:
    """A few of the places around the expected one, the nearest first."""
    if len(places) > _NEAREST:
        middle = bisect_left(places, expected)
        first = max(0, min(middle - _NEAREST // 2, len(places) - _NEAREST))
        places = places[first : first + _NEAREST]
    return sorted(places, key=lambda place: abs(place - expected))


def _grow(
    base: bytes, place: int, target: bytes, at: int, done: int, end: int, *, text: bool
) -> _Copy:
    """The whole match around equal bytes, within the target's `done` to `end`."""
    back = _run_back(base, place, target, at, min(place, at - done))
    forward = _run(base, place, target, at, min(len(base) - place, end - at))
    start, stop = at - back, at + forward
    if text:
        start = _character_at_or_after(target, start)
        stop = _character_at_or_before(target, stop)
    return _Copy(start, stop, place - at + start)


def _run(base: bytes, place: int, target: bytes, at: int, limit: int) -> int:
    """How many bytes are equal from here on: compares in doubling steps, then in halving ones."""
    size, step = 0, 32
    while size + step <= limit and (
        base[place + size : place + size + step] == target[at + size : at + size + step]
    ):
        size += step
        step *= 2
    while step := step // 2:
        if size + step <= limit and (
            base[place + size : place + size + step] == target[at + size : at + size + step]
        ):
            size += step
    return size


def _run_back(base: bytes, place: int, target: bytes, at: int, limit: int) -> int:
    """How many bytes are equal just before here, at most `limit`."""
    size, step = 0, 32
    while size + step <= limit and (
        base[place - size - step : place - size] == target[at - size - step : at - size]
    ):
        size += step
        step *= 2
    while step := step // 2:
        if size + step <= limit and (
            base[place - size - step : place - size] == target[at - size - step : at - size]
        ):
            size += step
    return size


def _character_at_or_before(text: bytes, at: int) -> int:
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _character_at_or_after(text: bytes, at: int) -> int:
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at += 1
    return at
