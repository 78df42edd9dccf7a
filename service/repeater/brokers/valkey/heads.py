"""Asks for the tops of streams by the bus: of some after a connection, of all every 10 s.

The answers come in their turn among the messages. So a top that is not the place means that
messages were lost, however many are on their way. While the bus is not read, nothing is asked: the
answers would gather with the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from repeater.valkey.pipe import Lost

if TYPE_CHECKING:
    from repeater.brokers.valkey.engine import Engine
    from repeater.brokers.valkey.holds import Held, Holds
    from repeater.brokers.valkey.values import Place

CHECK: Final = 10.0
"""Seconds in which the tops of all channels are asked for once."""
_SLICES: Final = 40
_FEW: Final = 64  # channels that are one slice
_TOGETHER: Final = 256  # asked for in one pass of the loop: about 1 ms


class Heads:
    """Lives inside a `Bus`, whose nursery runs `run`."""

    def __init__(
        self,
        engine: Engine,
        headed: Callable[[Held, Place | Exception], None],
        wait_room: Callable[[], Awaitable[None]],
    ) -> None:
        """Have `headed` called with each answer; `wait_room` waits while the bus is not read."""
        self._engine = engine
        self._headed = headed
        self._wait_room = wait_room
        self._wanted: deque[Held] = deque()
        self._came = trio.lowlevel.ParkingLot()

    def ask(self, some: Collection[Held]) -> None:
        """Ask for the tops of some channels at once."""
        for one in some:
            try:
                self._engine.head(one.partition, one.channel, partial(self._headed, one))
            except Lost as error:
                self._headed(one, error)

    def want(self, some: Collection[Held]) -> None:
        """Have the tops of many channels asked for, as fast as other tasks are not held up."""
        self._wanted.extend(some)
        self._came.unpark()

    async def run(self, holds: Holds) -> None:
        """Ask for what is wanted, and for all that is held every 10 s, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_wanted)
            while True:
                await self._check(list(holds.held.values()))
                holds.ask_again()

    async def _ask_wanted(self) -> None:
        wanted = self._wanted
        while True:
            while not wanted:  # No deadline: nothing is wanted.
                await self._came.park()
            await self._wait_room()
            self.ask([wanted.popleft() for _ in range(min(_TOGETHER, len(wanted)))])
            await trio.lowlevel.checkpoint()

    async def _check(self, held: Sequence[Held]) -> None:
        """Look at channels in slices: the engine has other things to do as well."""
        size = max(_FEW, -(-len(held) // _SLICES))
        slices = max(1, -(-len(held) // size))
        for number in range(slices):
            await trio.sleep(CHECK / slices)
            await self._wait_room()
            some = held[number * size : (number + 1) * size]
            self.want([one for one in some if one.subscribed and not one.given_up])
