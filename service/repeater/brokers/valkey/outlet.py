"""The way of events from the bus to fan-out: in order, and few of them wait.

If fan-out's intake is full, events wait here. The bus is not read meanwhile, nor are streams. So no
more waits than came with one read of the bus, and with the reads of streams that were under way. A
server that gets rid of too little cuts the connection; then all channels are looked at, and nothing
is lost in silence.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from repeater.brokers.contract import EventSink
    from repeater.publication import Event


class Outlet:
    """Lives inside a `Bus`, whose nursery runs `run`."""

    def __init__(self) -> None:
        self._intake: EventSink | None = None
        self._late: deque[Event] = deque()
        self._came = trio.lowlevel.ParkingLot()
        self._emptied = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        """The number of events that wait for room."""
        return len(self._late)

    async def run(self, intake: EventSink) -> None:
        """Hand on what is late as soon as there is room, until cancelled."""
        self._intake = intake
        try:
            while True:
                while not self._late:  # No deadline: nothing is late.
                    await self._came.park()
                await intake.wait_room()  # No deadline: fan-out sets the pace.
                self._hand_on(intake)
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
        """Hand on one event, behind those that wait; drop it if nobody takes events any more."""
        intake = self._intake
        if intake is None:
            return
        if not self._late:
            try:
                intake.put_nowait(event)
            except trio.WouldBlock:
                self._came.unpark()
            except trio.ClosedResourceError:
                self._close()
                return
            else:
                return
        self._late.append(event)

    def _hand_on(self, intake: EventSink) -> None:
        late = self._late
        while late:
            try:
                intake.put_nowait(late[0])
            except trio.WouldBlock:
                return
            late.popleft()
        self._emptied.unpark_all()

    async def wait_empty(self) -> None:
        """Wait until nothing is late."""
        while self._late:  # No deadline: fan-out sets the pace.
            await self._emptied.park()
