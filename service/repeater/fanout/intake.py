"""The bounded queue between the brokers and the repeater.

When it is full, in events or in bytes, publishers wait in `wait_room`, and the node's publish
deadline turns a wait that is too long into "try later". The repeater takes all waiting events at
once, up to a batch's bytes.

Publishers are served in the order in which they came. A publisher that comes while others wait
waits behind them, even if there is room. Room wakes as many publishers as it has places, from the
front of the line. A woken publisher may publish nothing after all (a repeated key, an old version);
then its place wakes the next one, so nobody sleeps beside an empty intake.

The waiting time of events is measured without one clock reading for each event. The clock is read
when an event comes into an empty queue, and when a batch leaves other events behind: events that
come later are younger than that reading.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice
from time import perf_counter

import trio

from repeater.publication import Event, weight_of


class _Publisher:
    """One publisher in the line."""

    __slots__ = ("lot", "woken")

    def __init__(self) -> None:
        self.lot = trio.lowlevel.ParkingLot()
        self.woken = False


class Intake:
    """Events that happened and wait for fan-out, oldest first.

    Lives inside the node; ended by `close`, after the last publisher.
    """

    def __init__(self, limit: int, byte_limit: int, batch_limit: int) -> None:
        """Bound the events by number and weight (`weight_of`), and a batch by weight.

        There is room for one more event while both are below their limits. So one event may pass
        the limit in bytes, however large the event is.
        """
        self._limit = limit
        self._byte_limit = byte_limit
        self._batch_limit = batch_limit
        self._waiting: deque[Event] = deque()
        self._weights: deque[int] = deque()  # of the same events
        self._line: OrderedDict[_Publisher, None] = OrderedDict()
        self._woken = 0  # publishers of the line that were woken and have not left it
        self._served: trio.lowlevel.Task | None = None  # whose turn came last
        self._repeater = trio.lowlevel.ParkingLot()
        self._closed = False
        self.bytes = 0
        """The weight of the events that wait."""
        self.batch_since = 0.0
        """The `perf_counter` time at which the last batch's oldest event came. It is too early by
        one batch's fan-out at most, and never too late."""
        self._since = 0.0  # the same for the oldest event that waits
        self._taken = 0
        # Events from this number on came after this time; an entry for each batch that left some.
        self._marks: deque[tuple[int, float]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def publishers(self) -> int:
        """The number of publishers that wait for room."""
        return len(self._line)

    def _has_room(self) -> bool:
        return len(self._waiting) < self._limit and self.bytes < self._byte_limit

    async def wait_room(self) -> None:
        """Wait until one more event fits and all who came earlier were served.

        The node sets the deadline. Cancelled, the publisher leaves the line, and its place goes to
        the next one. This is a checkpoint only when it waits, so the room is still there when it
        returns: the caller uses it before it awaits anything.

        Raises:
            trio.ClosedResourceError: the node is shutting down.
        """
        if not self._closed and (self._line or not self._has_room()):
            await self._wait_in_line()
        if self._closed:
            raise trio.ClosedResourceError

    async def _wait_in_line(self) -> None:
        publisher = _Publisher()
        self._line[publisher] = None
        try:
            while not self._closed:
                if not publisher.woken:
                    await publisher.lot.park()
                elif not self._has_room():
                    # Those in front filled it: fewer events fit than were expected.
                    publisher.woken = False
                    self._woken -= 1
                elif next(iter(self._line)) is not publisher:
                    # Trio may run woken tasks in another order. The first one runs in this turn.
                    await trio.lowlevel.checkpoint()
                else:
                    self._served = trio.lowlevel.current_task()
                    return
        finally:
            del self._line[publisher]
            self._woken -= publisher.woken
            if not self._woken:
                self._wake_publishers()

    def _wake_publishers(self) -> None:
        """Wake as many publishers as there is room for, from the front of the line."""
        if not self._line or not self._has_room():
            return
        for publisher in islice(self._line, self._limit - len(self._waiting)):
            if not publisher.woken:
                publisher.woken = True
                self._woken += 1
                publisher.lot.unpark()

    def check_room(self) -> None:
        """`wait_room` without waiting; has room for whoever has just waited for it.

        Raises:
            trio.WouldBlock: the intake is full, or others wait for room.
            trio.ClosedResourceError: the node is shutting down.
        """
        if self._closed:
            raise trio.ClosedResourceError
        # Asked first: a turn ends with this call, also where nobody else waits any more.
        served = self._served is not None and self._was_served()
        if self._line and not served:
            raise trio.WouldBlock
        if len(self._waiting) >= self._limit or self.bytes >= self._byte_limit:
            raise trio.WouldBlock

    def _was_served(self) -> bool:
        """Whether this task is the one whose turn has come; whoever asks ends the turn."""
        served, self._served = self._served, None
        return served is trio.lowlevel.current_task()

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        """Hand over one event, without waiting; `weight` as for `EventSink.put_nowait`.

        Raises:
            trio.WouldBlock: the intake is full.
            trio.ClosedResourceError: the node is shutting down.
        """
        if self._closed:
            raise trio.ClosedResourceError
        waiting = self._waiting
        if len(waiting) >= self._limit or self.bytes >= self._byte_limit:
            raise trio.WouldBlock
        if not waiting:
            self._since = perf_counter()
        weight = weight or weight_of(event)
        self.bytes += weight
        waiting.append(event)
        self._weights.append(weight)
        if self._repeater:
            self._repeater.unpark()

    async def take_batch(self) -> list[Event]:
        """Take all waiting events, up to the batch limit; empty once closed and all are taken.

        An event that would pass the limit begins the next batch; one that is heavier than the limit
        is a batch of its own. No deadline: an idle node waits for its next event for ever.
        """
        while not self._waiting:
            if self._closed:
                return []
            await self._repeater.park()
        self._served = None  # It had its turn before this task ran.
        waiting, weights, room = self._waiting, self._weights, self._batch_limit
        batch = [waiting.popleft()]
        size = weights.popleft()
        while weights and size + weights[0] <= room:
            batch.append(waiting.popleft())
            size += weights.popleft()
        self.bytes -= size
        self._note_times(len(batch))
        if self._line:
            self._wake_publishers()
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
        for publisher in self._line:
            publisher.lot.unpark_all()
        self._repeater.unpark_all()
