"""What comes by the bus, on its way to fan-out: in order, and only what the follower lets through.

If fan-out's intake is full, events wait here, and the bus is not read meanwhile. So no more waits
than was read at once, and what repairs have found. A server that gets rid of too little cuts the
connection; then all channels are looked at, and nothing is lost in silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from repeater.brokers.contract import EventSink
    from repeater.publication import Event


class Outlet:
    """The way to the intake. Lives inside the broker, whose nursery runs `run`."""

    def __init__(self) -> None:
        self._intake: EventSink | None = None
        self._late: deque[Event] = deque()
        self._came = trio.lowlevel.ParkingLot()
        self._emptied = trio.lowlevel.ParkingLot()

    async def run(self, intake: EventSink) -> None:
        """Hand on what is late as soon as there is room, until cancelled."""
        self._intake = intake
        try:
            while True:
                while not self._late:
                    await self._came.park()
                await intake.wait_room()  # No deadline: fan-out sets the pace.
                self._hand_on()
        except trio.ClosedResourceError:
            self._close()  # The node is shutting down, and hands nothing on any more.
            await trio.sleep_forever()
        finally:
            self._close()

    def _close(self) -> None:
        self._intake = None
        self._late.clear()
        self._emptied.unpark_all()

    def put(self, event: Event) -> None:
        """Hand on one event, behind those that wait."""
        if self._late or self._intake is None:
            self._wait_with((event,))
            return
        try:
            self._intake.put_nowait(event)
        except trio.WouldBlock:
            self._wait_with((event,))
        except trio.ClosedResourceError:
            self._close()

    def put_all(self, events: Sequence[Event]) -> None:
        """Hand on several events in their order."""
        for event in events:
            self.put(event)

    def _wait_with(self, events: Sequence[Event]) -> None:
        if self._intake is not None:
            self._late.extend(events)
            self._came.unpark()

    def _hand_on(self) -> None:
        assert self._intake is not None
        late = self._late
        try:
            while late:
                self._intake.put_nowait(late[0])
                late.popleft()
        except trio.WouldBlock:
            return
        self._emptied.unpark_all()

    async def wait_empty(self) -> None:
        """Wait until nothing is late."""
        while self._late:  # No deadline: fan-out sets the pace.
            await self._emptied.park()
