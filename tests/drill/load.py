"""Full load on one server: back ends of all ways to publish, and subscribers that check it all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import trio

from tests.drill.backends import Backend, Batches, Calls, Streams
from tests.drill.doors import Doors
from tests.drill.followers import Follower
from tests.drill.ledger import BrokenPromise
from tests.drill.offsets import Offsets
from tests.drill.target import until

SETTLES = 60.0  # seconds until all followers are live, or have everything


@dataclass(frozen=True)
class Load:
    """How much there is of everything."""

    channels: int = 10
    followers: int = 40
    calls: int = 4
    batches: int = 1
    streams: int = 1
    pause: float = 0.0
    """Seconds between two requests of one back end."""

    @property
    def names(self) -> list[str]:
        """The channels."""
        return [f"channel{number}" for number in range(self.channels)]


class Traffic:
    """The load on one server. Made by `open_traffic`."""

    def __init__(self, followers: list[Follower], offsets: Offsets) -> None:
        self.followers = followers
        self._offsets = offsets
        self.backends = trio.CancelScope()
        """Ends all publishing."""

    async def wait_live(self) -> None:
        """Wait until all followers are live.

        Raises:
            BrokenPromise: some are not in time.
        """
        with trio.move_on_after(SETTLES):
            await until(lambda: all(one.live for one in self.followers))
        if away := [one.progress.name for one in self.followers if not one.live]:
            raise BrokenPromise(f"{len(away)} followers are not back: {away[0]}")

    async def settle(self) -> None:
        """Publish no more, and wait until every follower has everything.

        Raises:
            BrokenPromise: a follower lacks something.
        """
        self.backends.cancel()
        await self.wait_live()
        with trio.move_on_after(SETTLES):
            await until(lambda: not self._offsets.behind())
        for name in self._offsets.behind():
            raise BrokenPromise(f"{name} never got what others know of")


@asynccontextmanager
async def open_traffic(
    load: Load,
    doors: Doors,
    offsets: Offsets,
    rng: Random,
    starts: Mapping[str, tuple[str, int]] | None = None,
) -> AsyncIterator[Traffic]:
    """The load for the time of a block; publishing begins when all followers are live.

    Args:
        load: How much.
        doors: Where the server is, or each of the servers.
        offsets: What is known.
        rng: Chance.
        starts: Where the channels' followers were before: epochs and offsets.
    """
    names = load.names
    followers = [
        Follower(doors(), names[number % load.channels], offsets, Random(rng.random()))
        for number in range(load.followers)
    ]
    for follower in followers:
        progress = follower.progress
        progress.epoch, progress.offset = (starts or {}).get(progress.channel, ("", 0))
    kinds: list[type[Backend]] = [
        *([Calls] * load.calls),
        *([Batches] * load.batches),
        *([Streams] * load.streams),
    ]
    traffic = Traffic(followers, offsets)
    async with trio.open_nursery() as nursery:
        for follower in followers:
            nursery.start_soon(follower.run)
        await traffic.wait_live()

        async def publish() -> None:
            with traffic.backends:
                async with trio.open_nursery() as backends:
                    for kind in kinds:
                        one = kind(doors(), names, offsets, Random(rng.random()), load.pause)
                        backends.start_soon(one.run)

        nursery.start_soon(publish)
        yield traffic
        nursery.cancel_scope.cancel()
