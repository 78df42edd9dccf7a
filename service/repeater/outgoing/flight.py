"""Rows under way: taken from the table, and not removed from it yet.

Each row goes to the engine with its name, so that it is published once however often it is sent.
Rows of one channel are sent one behind the other without waiting for answers. When one fails, its
channel waits until all its answers are there, and then sends what is left again; other channels go
on. The engine takes no row whose predecessor failed, so a failure never turns the order round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from repeater.brokers.receipts import Receipt
from repeater.brokers.source_rows import DeposedError, SourceRow
from repeater.causes import Cause, Why
from repeater.clients.channel_operations import checked_publication
from repeater.errors import BrokerError, ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.brokers.contract import Outcome
    from repeater.clients.contract import ClientNode
    from repeater.options import ChannelOptions
    from repeater.outgoing.rows import OutgoingRow
    from repeater.publication import Publication

_FIRST_PAUSE: Final = 0.1  # seconds until a channel that failed is tried again; it doubles
_LONGEST_PAUSE: Final = 2.0
_STEP: Final = 0.001  # seconds for which rows are sent before others have their turn
_BINARY: Final = Why(
    Cause.REQUEST,
    "the channel carries bytes, and what a transaction publishes is JSON",
    'leave publication_data_format = "binary" out of its namespace',
)


class Finished(NamedTuple):
    """A row that the engine needs no more."""

    row: OutgoingRow
    why: Why | None
    """Why it can never be published; None if it is published."""


class _Lane:
    """The rows of one channel. `rows` are those that are not finished, in their order."""

    __slots__ = ("failed", "last", "outstanding", "pause", "rows", "unsent")

    def __init__(self) -> None:
        self.rows: dict[int, OutgoingRow] = {}
        self.unsent: deque[OutgoingRow] = deque()
        self.outstanding = 0  # receipts that are open
        self.failed = False
        self.last: OutgoingRow | None = None  # the one that was sent last
        self.pause = _FIRST_PAUSE

    def before(self) -> str:
        """The name of the row that the next one must not come before."""
        return self.last.name if self.last is not None and self.last.id in self.rows else ""


class Flight:
    """The rows under way of one lead. `run` sends them; the caller removes what is finished.

    No bound here: who adds rows asks `len` and `size` first.
    """

    def __init__(self, node: ClientNode, source: str, largest: int) -> None:
        """Publish rows of `source` by a node; the data of a row has at most `largest` bytes."""
        self._node = node
        self._source = source
        self._largest = largest
        self.term = 0
        """The lead's number, set before the first row; a higher one at any time."""
        self.deposed = 0
        """The highest term that the engine has refused ours for."""
        self.failing_since: float | None = None
        """When the engine failed first since it last succeeded; None if it did not."""
        self.size = 0
        """The bytes of all rows."""
        self._under_way: dict[int, OutgoingRow] = {}
        self._lanes: dict[str, _Lane] = {}
        # One for each row to be sent: the lane whose next row has its turn.
        self._turns: deque[_Lane] = deque()
        self._came = trio.lowlevel.ParkingLot()
        self._finished: list[Finished] = []
        self._finishing = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._under_way)

    def ids(self) -> list[int]:
        """The numbers of all rows that are in the table and need not be taken again."""
        return list(self._under_way)

    def add(self, rows: Sequence[OutgoingRow]) -> None:
        """Send rows, behind those that were added before. Never waits."""
        for row in rows:
            self._under_way[row.id] = row
            self.size += row.size
            lane = self._lanes.setdefault(row.channel, _Lane())
            lane.rows[row.id] = row
            # One that waits sends all that it has, this row too, when its pause is over.
            if not lane.failed:
                lane.unsent.append(row)
                self._turns.append(lane)
        self._came.unpark()

    async def run(self) -> None:
        """Send rows until the node shuts down and takes no more; cancelled, it ends at once.

        No deadline: rows come for ever. What was sent may be published afterwards, too.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await self._send_all()
            except trio.ClosedResourceError:
                nursery.cancel_scope.cancel("the node takes no more")
            finally:
                self._nursery = None

    async def wait_finished(self) -> None:
        """Wait until a row is finished. No deadline: an engine may be away for long."""
        while not self._finished:
            await self._finishing.park()

    def take_finished(self) -> list[Finished]:
        """The rows that have finished since the last call. Still under way until `land`."""
        finished, self._finished = self._finished, []
        return finished

    def land(self, finished: Sequence[Finished]) -> None:
        """Forget rows that are gone from the table."""
        for row, _why in finished:
            del self._under_way[row.id]
            self.size -= row.size

    async def _send_all(self) -> None:
        ends = perf_counter() + _STEP
        while True:
            while not self._turns:  # No deadline: see `run`.
                await self._came.park()
                ends = perf_counter() + _STEP
            lane = self._turns[0]
            try:
                if lane.unsent:
                    self._send_next(lane)
            except trio.WouldBlock:
                await self._wait_room()
                continue
            self._turns.popleft()
            if perf_counter() > ends:
                await trio.lowlevel.checkpoint()
                ends = perf_counter() + _STEP

    async def _wait_room(self) -> None:
        """Wait until the broker may take one more. No deadline: without room nothing is lost."""
        try:
            await self._node.broker.wait_room()
        except BrokerError:
            await trio.lowlevel.checkpoint()  # `submit` says the same, for each channel.

    def _send_next(self, lane: _Lane) -> None:
        """Send the next row of a lane.

        Raises:
            trio.WouldBlock, trio.ClosedResourceError: nothing was sent; see `Broker.submit`.
        """
        row = lane.unsent[0]
        name = SourceRow(self._source, self.term, row.name, lane.before())
        try:
            publication, options = self._checked(row)
            answer = self._node.broker.submit(
                publication, options, idempotency_key=row.key, row=name
            )
        except ReplyError as error:
            lane.unsent.popleft()
            self._finish(lane, row, error.why)
        except BrokerError as error:
            self._fail(lane, error)
        else:
            lane.unsent.popleft()
            lane.last = row
            self._await(lane, row, answer)

    def _checked(self, row: OutgoingRow) -> tuple[Publication, ChannelOptions]:
        """What the broker takes.

        Raises:
            ReplyError: the row can never be published.
        """
        found = checked_publication(self._node, row.publication(self._largest), row.key)
        if found[0].binary:
            raise ReplyError(ErrorCode.BAD_REQUEST, why=_BINARY)
        return found

    def _await(self, lane: _Lane, row: OutgoingRow, answer: Outcome | Receipt[Outcome]) -> None:
        if isinstance(answer, Receipt):
            lane.outstanding += 1
            answer.when_settled(partial(self._settled, lane, row))
        else:
            self._finish(lane, row, None)

    def _settled(
        self, lane: _Lane, row: OutgoingRow, answer: Outcome | ReplyError | BrokerError
    ) -> None:
        lane.outstanding -= 1
        if isinstance(answer, BrokerError):
            self._fail(lane, answer)
        else:
            self._finish(lane, row, answer.why if isinstance(answer, ReplyError) else None)
            self._try_again(lane)

    def _finish(self, lane: _Lane, row: OutgoingRow, why: Why | None) -> None:
        del lane.rows[row.id]
        if not lane.rows:
            del self._lanes[row.channel]
        if why is None:
            lane.pause = _FIRST_PAUSE
            self.failing_since = None
        self._finished.append(Finished(row, why))
        self._finishing.unpark()

    def _fail(self, lane: _Lane, error: BrokerError) -> None:
        """Note that a row of the lane failed: it stays, and nothing more is sent for now."""
        self._node.broker_errors["publish"] += 1
        if isinstance(error, DeposedError):
            self.deposed = max(self.deposed, error.term)
        if self.failing_since is None:
            self.failing_since = trio.current_time()
        lane.failed = True
        lane.unsent.clear()
        self._try_again(lane)

    def _try_again(self, lane: _Lane) -> None:
        """Have a lane that failed begin again, once all its answers are there."""
        if lane.failed and not lane.outstanding and self._nursery is not None:
            self._nursery.start_soon(self._begin_again, lane)

    async def _begin_again(self, lane: _Lane) -> None:
        await trio.sleep(lane.pause)
        lane.pause = min(2 * lane.pause, _LONGEST_PAUSE)
        lane.failed = False
        lane.last = None
        lane.unsent.extend(lane.rows.values())
        self._turns.extend([lane] * len(lane.rows))
        self._came.unpark()
