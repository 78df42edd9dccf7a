"""The channels of one partition that a node holds, and what of it the engine has not got yet. Pure.

One script is under way at a time, with what has gathered meanwhile. A script says how things are
and not what has changed, so after an error it is simply sent again. What it has made this node
tell stays in the engine until it has been told: after a lost answer it is read from there.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from repeater.valkey.pipe import Part

CHANNELS: Final = 200
"""Most channels in one script: about 2 ms of the engine."""

_TOLD: Final = 500  # most events in one script that have been told

Told = tuple[bytes, int]
"""`o` or `v` with a channel's name, and the number of the change."""


class Keys:
    """The names of one partition. Values.

    <prefix>:{tag}oc:<channel>  sorted set  nodes that hold the channel, by the Unix milliseconds
                                            until which that counts; under the empty name the
                                            number of the last change
    <prefix>:{tag}oh:<node>     sorted set  the channels that a node holds, by its last word
    <prefix>:{tag}ot:<node>     sorted set  what a node has to tell, by the number of the change
    """

    __slots__ = ("_begin",)

    def __init__(self, prefix: str, tag: str) -> None:
        """Begin all names with a prefix and, in a cluster, with a tag in its braces."""
        self._begin = f"{prefix}:{tag}".encode()

    def nodes(self, channel: bytes) -> bytes:
        """The nodes that hold a channel."""
        return self._begin + b"oc:" + channel

    def held(self, node: str) -> bytes:
        """The channels that a node holds."""
        return self._begin + b"oh:" + node.encode()

    def telling(self, node: str) -> bytes:
        """What a node has to tell."""
        return self._begin + b"ot:" + node.encode()


class Batch(msgspec.Struct, frozen=True):
    """What goes in one script."""

    channels: Sequence[str]
    events: Sequence[bytes]
    """`o` or `v` with a name, of each channel."""
    told: Sequence[Told]

    def keys(self, keys: Keys) -> list[bytes]:
        """The keys of the channels."""
        return [keys.nodes(event[1:]) for event in self.events]

    def arguments(self) -> list[Part]:
        """What follows the times in the arguments."""
        return [len(self.told), *(part for one in self.told for part in one), *self.events]


class Lane:
    """Lives inside `Occupancy`."""

    def __init__(self, partition: int, keys: Keys) -> None:
        """Hold nothing yet."""
        self.partition = partition
        self.keys = keys
        self.held: dict[str, None] = {}
        self.is_busy = False
        """Whether a script is under way."""
        self.in_doubt = False
        """Whether the engine may have made this node tell something that it does not know of."""
        self._changed: dict[str, None] = {}
        self._told: list[Told] = []

    @property
    def waits(self) -> bool:
        """Whether something waits for the next script."""
        return bool(self._changed or self._told or self.in_doubt)

    @property
    def has_changes(self) -> bool:
        """Whether the engine has not got something."""
        return bool(self._changed)

    @property
    def is_settled(self) -> bool:
        """Whether the engine knows what this node holds."""
        return not (self._changed or self.is_busy)

    def change(self, channel: str, *, is_held: bool) -> None:
        """Hold a channel, or hold it no more."""
        if is_held:
            self.held[channel] = None
        else:
            self.held.pop(channel, None)
        self._changed[channel] = None

    def mention(self, channels: Iterable[str]) -> None:
        """Say of these channels with the next scripts whether they are held."""
        self._changed.update(dict.fromkeys(channels))

    def tell_of(self, event: bytes, number: int) -> None:
        """Note that an event has been told, so that the engine forgets it."""
        self._told.append((event, number))

    def told(self) -> frozenset[Told]:
        """Events that have been told, of which the engine is about to hear."""
        return frozenset(self._told)

    def take(self) -> Batch:
        """What goes with the next script; maybe nothing."""
        channels = tuple(islice(self._changed, CHANNELS))
        for channel in channels:
            del self._changed[channel]
        events = [
            (b"o" if one in self.held else b"v") + one.encode(errors="surrogatepass")
            for one in channels
        ]
        told, self._told = self._told[:_TOLD], self._told[_TOLD:]
        return Batch(channels, events, told)

    def failed(self, batch: Batch) -> None:
        """Send a batch again, as things are then."""
        self.mention(batch.channels)
        self._told = [*batch.told, *self._told]
        self.in_doubt = True
