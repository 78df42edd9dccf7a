"""Ends waits for answers that do not come in time: one task for all waits of a node.

A cancel scope for each wait would cost as much as numbering the event whose answer is awaited.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

if TYPE_CHECKING:
    from repeater.brokers.receipts import Receipt

T = TypeVar("T")

_FOREVER: Final = 1e9  # seconds: behind every deadline


class AnswerDeadlines:
    """The waits of one node. `run` lives in the node's nursery."""

    def __init__(self) -> None:
        # In the order of their deadlines. Those that are settled go when the next one comes, and
        # engines settle receipts about in their order, so the line is as long as what is open.
        self._line: deque[tuple[float, Receipt[Any]]] = deque()
        self._begun = trio.Event()
        self._running = False

    async def run(self) -> None:
        """End waits at their deadlines, until cancelled."""
        self._running = True
        try:
            while True:
                if not self._line:
                    self._begun = trio.Event()
                    await self._begun.wait()
                await trio.sleep_until(self._line[0][0])
                self._end_waits(trio.current_time())
        finally:
            self._running = False
            for _, receipt in self._line:
                receipt.end_waits(trio.current_time() + _FOREVER)

    def _end_waits(self, now: float) -> None:
        line = self._line
        while line and (line[0][1].settled or line[0][0] <= now):
            line.popleft()[1].end_waits(now)

    async def wait(self, receipt: Receipt[T], seconds: float) -> T:
        """Wait for an answer, for at most so many seconds; no checkpoint if it is there.

        Cancelled, what was asked for may happen.

        Raises:
            trio.TooSlowError: the answer did not come in time. What was asked for may happen.
            ReplyError, BrokerError: as `Receipt.wait`.
        """
        if receipt.settled:
            return receipt.result()
        deadline = trio.current_time() + seconds
        line = self._line
        while line and line[0][1].settled:
            line.popleft()
        if not self._running or (line and deadline < line[-1][0]):
            # Nobody would end this wait in time: the node ends, or its timeout was shortened.
            with trio.fail_at(deadline):
                return await receipt.wait()
        line.append((deadline, receipt))
        if len(line) == 1:
            self._begun.set()
        await trio.lowlevel.wait_task_rescheduled(receipt.park(deadline))
        return receipt.result()
