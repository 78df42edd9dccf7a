"""The bounded queue between the brokers and the repeater.

When it is full, publishers wait in `wait_room`, in order, and the node's publish deadline turns a
wait that is too long into "try later". The repeater takes all waiting events at once, up to a
batch's bytes.

The waiting time of events is measured without one clock reading for each event. The clock is read
when an event comes into an empty queue, and when a batch leaves other events behind: events that
come later are younger than that reading.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter

import trio

from repeater.publication import Event


class Intake:
    """Events that happened and wait for fan-out, oldest first.

    Lives inside the node; ended by `close`, after the last publisher.
    """

    def __init__(self, limit: int, batch_limit: int) -> None:
        self._limit = limit
        self._batch_limit = batch_limit
        self._waiting: deque[Event] = deque()
        self._publishers = trio.lowlevel.ParkingLot()
        self._repeater = trio.lowlevel.ParkingLot()
        self._closed = False
        self.batch_since = 0.0
        """The `perf_counter` time at which the last batch's oldest event came. It is too early by
        one batch's fan-out at most, and never too late."""
        self._since = 0.0  # the same for the oldest event that waits
        self._taken = 0
        # Events from this number on came after this time; an entry for each batch that left some.
        self._marks: deque[tuple[int, float]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait_room(self) -> None:
        """Wait until one more event fits. The node sets the deadline.

        This is a checkpoint only when it waits, so the room is still there when it returns.

        Raises:
            trio.ClosedResourceError: the node is shutting down.
        """
        while len(self._waiting) >= self._limit and not self._closed:
            await self._publishers.park()
        if self._closed:
            raise trio.ClosedResourceError

    def check_room(self) -> None:
        """`wait_room` without waiting.

        Raises:
            trio.WouldBlock: the intake is full.
            trio.ClosedResourceError: the node is shutting down.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if len(self._waiting) >= self._limit:
            raise trio.WouldBlock

    def put_nowait(self, event: Event) -> None:
        """Hand over one event, without waiting.

        Raises:
            trio.WouldBlock: the intake is full.
            trio.ClosedResourceError: the node is shutting down.
        """
        self.check_room()
        if not self._waiting:
            self._since = perf_counter()
        self._waiting.append(event)
        if self._repeater:
            self._repeater.unpark()

    async def take_batch(self) -> list[Event]:
        """Take all waiting events, up to the batch limit; empty once closed and all are taken.

        No deadline: an idle node waits for its next event for ever.
        """
        while not self._waiting:
            if self._closed:
                return []
            await self._repeater.park()
        batch: list[Event] = []
        size = 0
        while self._waiting and size < self._batch_limit:
            event = self._waiting.popleft()
            batch.append(event)
            size += len(event.data)
        self._note_times(len(batch))
        if self._publishers:
            self._publishers.unpark(count=len(batch))
        return batch

    def _note_times(self, taken: int) -> None:
        """Note since when a batch of `taken` events has waited, and since when the others wait."""
        self.batch_since = self._since
        self._taken += taken
        if not self._waiting:
            self._marks.clear()
            return
        self._marks.append((self._taken + len(self._waiting), perf_counter()))
        while self._marks[0][0] <= self._taken:
            self._since = self._marks.popleft()[1]

    def close(self) -> None:
        """Accept no more events; the repeater takes the waiting ones and ends."""
        self._closed = True
        self._publishers.unpark_all()
        self._repeater.unpark_all()
