"""The id of a Server-Sent Event: the client's positions in all of its channels, as one short line.

A browser keeps the last id only and sends it back as `Last-Event-ID`, in a request head whose size
is limited. So an id has no channel names. Example: `6GOsoL86:Xy12Ab9c:AgQ` has three parts:

* a digest of the names, by which a changed set of channels is noticed;
* the epochs, each once, percent-encoded and joined by commas; the streams of one node mostly share
  one epoch;
* for each channel, in the order of the sorted names, a number: 0 without a position, else
  `1 + offset * E + e`, where `E` is the number of epochs and `e` the index of the stream's epoch.
  The numbers are LEB128 (7 bits a byte, the lowest first), and all together base64url.

With 128 channels, one epoch and offsets below 16,383 an id has at most 360 characters.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final
from urllib.parse import quote, unquote

from repeater.publication import StreamPosition

UNKNOWN: Final = StreamPosition(0, "_")
"""A position that no stream has: a client that comes back with it has lost everything."""

_UINT64: Final = 2**64 - 1
_NUMBER_BYTES: Final = 12  # of the largest number: an offset of 64 bits times thousands of epochs
_DIGEST_BYTES: Final = 6
_NO_POSITION: Final = b"\0"

_ROOM_OF_A_CHANNEL: Final = 20
"""Characters for a channel's part of an id: an epoch of 8 characters and a comma, and the number of
an offset of up to 35 bits."""
_ROOM_OF_AN_ID: Final = 64
"""Characters for the rest: `Last-Event-ID: `, the digest, separators, and one longer epoch."""


def room_of_event_id(channels: int) -> int:
    """Bytes to keep free in a request's head, so that a client with so many channels can return."""
    return _ROOM_OF_AN_ID + channels * _ROOM_OF_A_CHANNEL


def _digest(names: Iterable[str]) -> bytes:
    hashed = blake2b(digest_size=_DIGEST_BYTES)
    for name in names:
        encoded = name.encode(errors="surrogatepass")
        hashed.update(b"%d:%b" % (len(encoded), encoded))
    return urlsafe_b64encode(hashed.digest())


@lru_cache(maxsize=1024)
def _digest_of_one(name: str) -> bytes:
    return _digest((name,))


@lru_cache(maxsize=1024)
def _quoted(text: str) -> bytes:
    return quote(text, safe="").encode()


def _number(value: int) -> bytes:
    """A number of at least 0 as LEB128."""
    if value < 0x80:
        return value.to_bytes()
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _numbers(encoded: bytes) -> Iterator[int]:
    """The numbers of LEB128 bytes.

    Raises:
        ValueError: a number is too long, or is cut off.
    """
    value = shift = 0
    for byte in encoded:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield value
            value = shift = 0
        elif shift >= 7 * _NUMBER_BYTES:
            raise ValueError("a number without end")
    if shift:
        raise ValueError("a number is cut off")


def _text(digest: bytes, epochs: bytes, numbers: bytes) -> bytes:
    return b"%b:%b:%b" % (digest, epochs, urlsafe_b64encode(numbers).rstrip(b"="))


class EventIds:
    """A client's positions, and the ids that say them. Its cost is that of joining short bytes."""

    __slots__ = ("_digest", "_epochs", "_indexes", "_numbers", "positions")

    def __init__(
        self, positions: Mapping[str, StreamPosition], channels: Iterable[str] = ()
    ) -> None:
        """Begin at these positions.

        Args:
            positions: By channel.
            channels: All channels of the client, in any order, those without a position included;
                by default the channels of `positions`.
        """
        names = sorted(set(channels) or positions)
        self._digest = _digest(names)
        self._numbers = dict.fromkeys(names, _NO_POSITION)
        self.positions = {name: positions[name] for name in names if name in positions}
        self._number_all()

    def _number_all(self) -> None:
        """Give each epoch its index, and each channel its number."""
        epochs = dict.fromkeys(one.epoch for one in self.positions.values())
        self._indexes = {epoch: index for index, epoch in enumerate(epochs)}
        self._epochs = b",".join(map(_quoted, epochs))
        for name in self.positions:
            self._renew(name)

    def _renew(self, name: str) -> None:
        offset, index = self.positions[name].offset, self._indexes[self.positions[name].epoch]
        self._numbers[name] = _number(1 + offset * len(self._indexes) + index)

    def move(self, channel: str, position: StreamPosition) -> None:
        """Go on to another position in one channel of the client."""
        self.positions[channel] = position
        if position.epoch in self._indexes:
            self._renew(channel)
        else:
            self._number_all()

    def text(self) -> bytes:
        """The id of this moment; empty without positions."""
        if not self.positions:
            return b""
        return _text(self._digest, self._epochs, b"".join(self._numbers.values()))


def event_id(positions: Mapping[str, StreamPosition], channels: Collection[str] = ()) -> bytes:
    """The id for these positions, as `EventIds`; empty without positions."""
    if not positions:
        return b""
    if len(positions) == 1 and len(channels) < 2:
        return event_id_of_one(*next(iter(positions.items())))
    return EventIds(positions, channels).text()


def event_id_of_one(channel: str, position: StreamPosition) -> bytes:
    """The id of a client with one channel: the same as `event_id`, without state."""
    number = _number(1 + position.offset)
    return _text(_digest_of_one(channel), _quoted(position.epoch), number)


def parse_event_id(text: str, channels: Iterable[str]) -> dict[str, StreamPosition] | None:
    """The positions of an id that came back from a client of these channels, in any order.

    Channels without a position are left out. None if the id is of other channels, or is not one of
    ours; an empty text has no positions.
    """
    if not text:
        return {}
    names = sorted(set(channels))
    digest, _, rest = text.partition(":")
    epochs, _, encoded = rest.partition(":")
    if digest != _digest(names).decode():
        return None
    try:
        numbers = list(_numbers(_decoded(encoded)))
        written = epochs.split(",")
        if len(written) > len(names):
            return None
        return _positions(names, [unquote(one) for one in written], numbers)
    except ValueError:
        return None


def _decoded(encoded: str) -> bytes:
    return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def _positions(
    names: Sequence[str], epochs: Sequence[str], numbers: Sequence[int]
) -> dict[str, StreamPosition]:
    positions = {}
    for name, number in zip(names, numbers, strict=True):
        if number:
            offset, index = divmod(number - 1, len(epochs))
            if offset > _UINT64 or not epochs[index]:
                raise ValueError("an impossible position")
            positions[name] = StreamPosition(offset, epochs[index])
    return positions
