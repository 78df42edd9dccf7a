"""Answers with many entries are decoded in turns, so that no read holds up the loop.

Equal reads are made once: who asks while one is under way waits for the next one, with all others.
Not for the one under way, which may have been carried out before the caller was ready to hear what
came after it.

So many of a partition are under way at a time, and the others stand in line: answers come faster
than they are decoded, and when very many clients come back at once these would fill the memory. A
partition that does not answer holds up its own reads alone.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from typing import Any, Final, Generic, Protocol, TypeVar

import trio

from repeater.brokers.receipts import Receipt
from repeater.errors import BrokerError

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_IN_A_TURN: Final = 256
"""Entries that are decoded between two checkpoints: about 1 ms."""
AT_ONCE: Final = 128
"""Reads that are under way, of all partitions together: twice as many as repairs make."""
LEAST: Final = 8
"""Reads that each partition may have under way, however many partitions there are."""

Question = Callable[[Callable[[object], None]], None]
"""Asks the engine; gives what it answers to the callable. Raises `BrokerError` if it is down."""


class Decoding(Protocol[T_co]):
    """An answer of the engine that is being decoded."""

    def step(self, most: int) -> int:
        """Decode at most so many entries; how many it were. Fewer: it is done.

        Raises:
            BrokerError: the answer is an error, or is not ours.
        """

    def result(self) -> T_co:
        """What it means, when all is decoded."""


class _Line:
    """The reads of one partition."""

    __slots__ = ("under_way", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Read[Any]] = deque()
        self.under_way = 0


class _Read(Generic[T]):
    """One question that is under way or in line, and who waits for it, or for the next one."""

    __slots__ = ("asked", "key", "later", "line", "question", "receipts", "start")

    def __init__(
        self,
        line: _Line,
        key: Hashable,
        question: Question,
        start: Callable[[object], Decoding[T]],
    ) -> None:
        self.line = line
        self.key = key
        self.question = question
        self.start = start
        self.asked = False
        """Whether it is under way; in line it is not carried out yet, and may still be shared."""
        self.receipts: list[Receipt[T]] = []
        self.later: list[Receipt[T]] = []


class Reads:
    """All reads that are under way or in line. Lives inside a broker, whose nursery runs `run`."""

    def __init__(self, partitions: int = 1) -> None:
        """Read in so many partitions."""
        self._of_each = max(LEAST, AT_ONCE // partitions)
        self._open: dict[Hashable, _Read[Any]] = {}
        self._lines: defaultdict[int, _Line] = defaultdict(_Line)
        self._decoding: deque[tuple[_Read[Any], Decoding[Any]]] = deque()
        self._came = trio.lowlevel.ParkingLot()
        self._ended = False

    def ask(
        self,
        partition: int,
        key: Hashable,
        question: Question,
        start: Callable[[object], Decoding[T]],
    ) -> Receipt[T]:
        """Ask something, together with all who ask the same; `start` begins to decode an answer.

        Raises:
            BrokerError: the engine is known to be down, or `run` has ended.
        """
        if self._ended:
            raise BrokerError("the broker has ended")
        receipt: Receipt[T] = Receipt()
        read = self._open.get(key)
        if read is not None:
            (read.later if read.asked else read.receipts).append(receipt)
            return receipt
        line = self._lines[partition]
        read = _Read(line, key, question, start)
        if line.under_way < self._of_each:
            self._begin(read)
        else:
            line.waiting.append(read)
        read.receipts.append(receipt)
        self._open[key] = read
        return receipt

    def _begin(self, read: _Read[Any]) -> None:
        read.question(lambda answer: self._answered(read, answer))
        read.asked = True
        read.line.under_way += 1

    def _begin_next(self, line: _Line) -> None:
        while line.waiting and line.under_way < self._of_each:
            read = line.waiting.popleft()
            try:
                self._begin(read)
            except BrokerError as error:
                self._end(read, error)

    async def run(self) -> None:
        """Decode what is answered, until cancelled; then fail what waits."""
        try:
            while True:
                while not self._decoding:  # No deadline: nobody reads.
                    await self._came.park()
                room = _IN_A_TURN
                while self._decoding and room > 0:
                    room -= 1 + self._step(room)
                await trio.lowlevel.checkpoint()
        finally:
            self._ended = True
            self._decoding.clear()
            self._lines.clear()
            for read in tuple(self._open.values()):
                self._end(read, BrokerError("the broker has ended"))

    def _answered(self, read: _Read[Any], answer: object) -> None:
        if self._open.get(read.key) is not read:
            return  # The broker has ended.
        self._decoding.append((read, read.start(answer)))
        if self._came:
            self._came.unpark()

    def _step(self, room: int) -> int:
        read, decoding = self._decoding[0]
        try:
            count = decoding.step(room)
            if count >= room:
                return count
            result = decoding.result()
        except BrokerError as error:
            count, result = 0, error
        self._decoding.popleft()
        read.line.under_way -= 1
        self._settle(read, result)
        self._begin_next(read.line)
        return count

    def _settle(self, read: _Read[Any], result: object) -> None:
        """Tell those who waited for this read, and stand in line again for those who came later."""
        receipts = read.receipts
        if read.later:
            read.receipts, read.later, read.asked = read.later, [], False
            read.line.waiting.append(read)
        else:
            del self._open[read.key]
        for receipt in receipts:
            receipt.settle(result)

    def _end(self, read: _Read[Any], error: BrokerError) -> None:
        """Tell all who wait that nothing comes."""
        del self._open[read.key]
        for receipt in (*read.receipts, *read.later):
            receipt.settle(error)
