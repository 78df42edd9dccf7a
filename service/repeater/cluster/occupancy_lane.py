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
    from collections.abc import Iterable, Mapping, Sequence

    from repeater.valkey.pipe import Part

CHANNELS: Final = 200
"""Most channels in one script: about 2 ms of the engine."""

_TOLD: Final = 500  # most events in one script that have been told

_LOSABLE: Final = 120_000_000  # microseconds: a replica that is further behind is not promoted

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


def name_of(held: bytes) -> str:
    """The name of a channel that the engine has for held.

    Raises:
        ValueError: no node has written it.
    """
    return held.decode(errors="surrogatepass")


class Batch(msgspec.Struct, frozen=True):
    """What goes in one script."""

    channels: Mapping[str, bool]
    """The channels, and whether the engine has known the node to hold it."""
    told: Sequence[Told]
    changes: Sequence[Told]
    """`o`, `v` or `V` with a name, of each channel, and the last number that was told."""

    def keys(self, keys: Keys) -> list[bytes]:
        """The keys of the channels."""
        return [keys.nodes(event[1:]) for event, _ in self.changes]

    def arguments(self) -> list[Part]:
        """What follows the times in the arguments."""
        pairs = (*self.told, *self.changes)
        return [len(self.told), *(part for pair in pairs for part in pair)]


class Lane:
    """Lives inside `Occupancy`."""

    def __init__(self, partition: int, keys: Keys) -> None:
        """Hold nothing yet."""
        self.partition = partition
        self.keys = keys
        self.is_busy = False
        """Whether a script is under way."""
        self.in_doubt = False
        """Whether the engine may have made this node tell something that it does not know of."""
        # Each value says whether the engine has known the node to hold the channel.
        self._held: dict[str, bool] = {}
        self._changed: dict[str, bool] = {}
        # Those that are held since the last script, of which the engine cannot know. So channels
        # that come and go while the engine is away leave nothing here.
        self._new: set[str] = set()
        self._told: list[Told] = []
        # The last numbers of channels, by which the engine finds out that it has lost a change.
        self._numbers: dict[str, int] = {}

    def __contains__(self, channel: str) -> bool:
        """Whether this node holds a channel."""
        return channel in self._held

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

    def hold(self, channel: str) -> None:
        """Hold a channel."""
        if channel not in self._changed:
            self._new.add(channel)
        self._held[channel] = self._changed.get(channel, False)
        self._changed.setdefault(channel, False)

    def release(self, channel: str) -> None:
        """Hold a channel no more."""
        known = self._held.pop(channel, False)
        if channel in self._new:
            self._new.discard(channel)
            del self._changed[channel]
            return
        self._changed[channel] = known or self._changed.get(channel, False)

    def release_all(self) -> None:
        """Hold nothing any more."""
        for channel in tuple(self._held):
            self.release(channel)

    def mention(self, channels: Iterable[str]) -> None:
        """Say of these channels with the next scripts whether they are held."""
        for channel in channels:
            self._changed.setdefault(channel, False)
            self._new.discard(channel)

    def mention_held(self) -> None:
        """Say which channels are held, so that they stay so."""
        for channel in self._held:
            self._changed.setdefault(channel, False)

    def mention_all(self) -> None:
        """Say everything, because the engine may have lost some of it."""
        self.in_doubt = True
        self.mention_held()
        self.mention(self._numbers)

    def forget_old(self) -> None:
        """Forget the numbers of changes that no engine can lose any more."""
        newest = max(self._numbers.values(), default=0)
        self._numbers = {
            channel: number
            for channel, number in self._numbers.items()
            if number > newest - _LOSABLE
        }

    def tell_of(self, event: bytes, number: int) -> None:
        """Note that an event has been told, so that the engine forgets it."""
        self._told.append((event, number))

    def told(self) -> frozenset[Told]:
        """Events that have been told, of which the engine is about to hear."""
        return frozenset(self._told)

    def take(self) -> Batch:
        """What goes with the next script; maybe nothing."""
        channels = {one: self._changed.pop(one) for one in tuple(islice(self._changed, CHANNELS))}
        self._new.difference_update(channels)
        changes = []
        for channel, known in channels.items():
            kind = b"o" if channel in self._held else b"V" if known else b"v"
            number = self._numbers.get(channel, 0)
            changes.append((kind + channel.encode(errors="surrogatepass"), number))
        told, self._told = self._told[:_TOLD], self._told[_TOLD:]
        return Batch(channels, told, changes)

    def carried_out(self, batch: Batch, changes: Sequence[Told]) -> None:
        """Note that the engine knows of a batch, and what was changed by it."""
        for channel in batch.channels:
            if channel in self._held:
                self._held[channel] = True
        for channel, (event, number) in zip(batch.channels, changes, strict=True):
            if event:
                self._numbers.pop(channel, None)
                self._numbers[channel] = number

    def failed(self, batch: Batch) -> None:
        """Send a batch again, as things are then."""
        for channel, known in batch.channels.items():
            self._changed[channel] = known or self._changed.get(channel, False)
        self._new.difference_update(batch.channels)
        self._told = [*batch.told, *self._told]
        self.in_doubt = True
