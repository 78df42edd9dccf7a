"""Independent servers that share the channels: one more at the end takes an equal part of each.

Channels are spread by jump hash ("A Fast, Minimal Memory, Consistent Hash Algorithm", Lamping and
Veach, 2014). With one shard more, 1/n of the channels move, all of them to the new one. A channel
that has moved begins a new stream there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING

import trio

from repeater.valkey.servers import ServersStatistics

if TYPE_CHECKING:
    from repeater.valkey.pipe import Tell
    from repeater.valkey.servers import Listener, Servers
    from repeater.valkey.subscriptions import Taker


def shard_of(channel: str, shards: int) -> int:
    """The shard of a channel: the same for all nodes and versions."""
    return jump(int.from_bytes(blake2b(channel.encode(), digest_size=8).digest(), "big"), shards)


def jump(key: int, shards: int) -> int:
    """Jump hash: the shard of a key of 64 bits."""
    found, following = 0, 0
    while following < shards:
        found = following
        key = (key * 2862933555777941757 + 1) % 2**64
        following = int((found + 1) * (2**31 / ((key >> 33) + 1)))
    return found


class Shards:
    """The `Servers` of several others. Made by `open_servers`; the engine's nursery runs `run`."""

    def __init__(self, shards: Sequence[Servers]) -> None:
        """Take servers that all publish by the same command."""
        self._shards = shards
        self.publish = shards[0].publish
        # The first partition of each shard, and behind the last one their number.
        self._firsts = [0, *accumulate(one.partitions for one in shards)]
        self.partitions = self._firsts[-1]

    def partition_of(self, channel: str) -> int:
        """See `Servers`."""
        number = shard_of(channel, len(self._shards))
        return self._firsts[number] + self._shards[number].partition_of(channel)

    def tag(self, partition: int) -> str:
        """See `Servers`."""
        shard, its = self._find(partition)
        return shard.tag(its)

    def ask(self, partition: int, command: bytes, tell: Tell) -> None:
        """See `Servers`."""
        shard, its = self._find(partition)
        shard.ask(its, command, tell)

    def ask_bus(self, partition: int, command: bytes, tell: Tell) -> None:
        """See `Servers`."""
        shard, its = self._find(partition)
        shard.ask_bus(its, command, tell)

    def subscribe(self, partition: int, takers: Mapping[bytes, Taker], tell: Tell) -> None:
        """See `Servers`."""
        shard, its = self._find(partition)
        shard.subscribe(its, takers, tell)

    def unsubscribe(self, partition: int, channels: Sequence[bytes]) -> None:
        """See `Servers`."""
        shard, its = self._find(partition)
        shard.unsubscribe(its, channels)

    def add(self, listener: Listener) -> None:
        """See `Servers`. A shard's bus waits for the listener, and the other shards do not."""
        for first, shard in zip(self._firsts, self._shards, strict=False):
            shard.add(_OfShard(listener, first))

    def why(self, partition: int) -> str:
        """See `Servers`."""
        shard, its = self._find(partition)
        return shard.why(its)

    def outage(self) -> str:
        """See `Servers`: of the first one that is not whole."""
        down = [why for shard in self._shards if (why := shard.outage())]
        if not down:
            return ""
        return f"{len(down)} of {len(self._shards)} shards: {down[0]}"

    def statistics(self) -> ServersStatistics:
        """See `Servers`."""
        each = [shard.statistics() for shard in self._shards]
        losses = Counter[str]()
        for one in each:
            losses.update(one.losses)
        primaries, up = sum(one.primaries for one in each), sum(one.up for one in each)
        return ServersStatistics(primaries, up, dict(losses))

    async def run(self) -> None:
        """See `Servers`."""
        async with trio.open_nursery() as nursery:
            for shard in self._shards:
                nursery.start_soon(shard.run)

    def _find(self, partition: int) -> tuple[Servers, int]:
        number = bisect_right(self._firsts, partition) - 1
        return self._shards[number], partition - self._firsts[number]


class _OfShard:
    """Tells a listener what happens to a shard, by the numbers of all partitions."""

    def __init__(self, listener: Listener, first: int) -> None:
        self._listener = listener
        self._first = first

    def up(self, partitions: Sequence[int]) -> None:
        self._listener.up([self._first + partition for partition in partitions])

    def down(self, partitions: Sequence[int]) -> None:
        self._listener.down([self._first + partition for partition in partitions])

    async def wait_room(self) -> None:
        await self._listener.wait_room()
