"""Reads streams where the follower asks for it: once for a node, some at a time, in no herd.

What is found goes behind what is late already, before anything newer of the channel. Whoever reads
waits until nothing is late, before the next channel: so few bytes wait, however many channels were
hurt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.receipts import Receipt
from repeater.brokers.valkey.envelope import ForeignError
from repeater.errors import BrokerError
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.brokers.valkey.bus import Outlet
    from repeater.brokers.valkey.follower import Followed, Place, Read

_log = get_logger("engine")

_AT_ONCE: Final = 16
ENTRIES: Final = 1_000
"""Most entries of one read."""

Look = Callable[[str, "Place | None"], Receipt["Read"]]
"""Reads a channel's stream from a place on, inclusive; without a place its top alone."""

Fork = Callable[[str, str], Receipt[None]]
"""Ends an epoch of a channel's stream, if it has it still."""


class Repairs:
    """Lives inside the broker, whose nursery runs `run`."""

    def __init__(self, look: Look, fork: Fork, outlet: Outlet) -> None:
        self._look = look
        self._fork = fork
        self._outlet = outlet
        self._wanted: deque[Followed] = deque()
        self._under_way: set[Followed] = set()
        self._came = trio.lowlevel.ParkingLot()
        self.done = 0
        """Streams that were read."""
        self.forked = 0
        """Streams that had forked."""

    def want(self, followed: Followed) -> None:
        """Have a stream read; nothing if it is to be read already."""
        if followed not in self._under_way:
            self._under_way.add(followed)
            self._wanted.append(followed)
            self._came.unpark()

    def forget(self) -> None:
        """The engine is not there: nothing is read until it has come back."""
        self._under_way.difference_update(self._wanted)
        self._wanted.clear()

    async def run(self) -> None:
        """Read until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            while not self._wanted:  # No deadline: nothing is in doubt.
                await self._came.park()
            followed = self._wanted.popleft()
            try:
                await self._repair(followed)
            except BrokerError as error:
                # All channels are looked at when the engine is there again.
                _log.info("a stream could not be read", reason=str(error))
            finally:
                self._under_way.discard(followed)

    async def _repair(self, followed: Followed) -> None:
        while followed.reading and not followed.given_up:
            try:
                found = await self._look(followed.channel, followed.place).wait()
            except ForeignError as error:
                _log.warning("a stream has an entry that is not ours", reason=str(error))
                found = await self._look(followed.channel, None).wait()
            verdict = followed.read(found)
            self.done += 1
            self._outlet.put_all(verdict.events)
            if verdict.forked:
                self.forked += 1
                await self._fork(followed.channel, verdict.forked).wait()
            await self._outlet.wait_empty()
