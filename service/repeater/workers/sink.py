"""Fan-out to workers: each event of the supervisor's broker goes to the workers that hold it.

An event is encoded once, however many workers get it, and not at all if nobody holds its channel.
While a worker lags there is no room, and publishers wait, as they wait for a full intake in one
process (`Backlog.lagging` says for how long).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import trio

from repeater.publication import Publication, Rupture, weight_of
from repeater.workers.messages import encode
from repeater.workers.values import row_of

if TYPE_CHECKING:
    from repeater.publication import Event
    from repeater.workers.backlog import Backlog


class Sink:
    """Implements `EventSink`. Lives inside an `Exchange`; ended by `close`."""

    def __init__(self, holders: Mapping[str, Iterable[Backlog]]) -> None:
        """Give an event to the `holders` of its channel, and a rupture of all to all workers."""
        self._holders = holders
        self.backlogs: set[Backlog] = set()
        """Those of all workers."""
        self._lagging: set[Backlog] = set()
        self._line = trio.lowlevel.ParkingLot()
        self._closed = False
        self.publications = 0
        """Publications taken since the start, also those that no worker holds the channel of."""

    def changed(self, backlog: Backlog) -> None:
        """Note whether a worker lags."""
        if backlog.lagging:
            self._lagging.add(backlog)
        else:
            self._lagging.discard(backlog)
            if not self._lagging:
                self._line.unpark_all()

    async def wait_room(self) -> None:
        """Wait until no worker lags.

        No line is kept: those who wait are workers, each with its own line of publishers.
        """
        while self._lagging and not self._closed:
            await self._line.park()
        if self._closed:
            raise trio.ClosedResourceError

    def check_room(self) -> None:
        """`wait_room` without waiting."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._lagging:
            raise trio.WouldBlock

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        """Give an event to the workers that hold its channel."""
        if self._closed:
            raise trio.ClosedResourceError
        if self._lagging:
            raise trio.WouldBlock
        holders: Iterable[Backlog] | None = self._holders.get(event.channel)
        if type(event) is Publication:
            self.publications += 1
        elif type(event) is Rupture and not event.channel:
            holders = tuple(self.backlogs)
        if holders is None:
            return
        weight = weight or weight_of(event)
        row = encode(row_of(event, weight))
        for backlog in holders:
            backlog.put(row, weight)

    def close(self) -> None:
        """Take no more events."""
        self._closed = True
        self._line.unpark_all()
