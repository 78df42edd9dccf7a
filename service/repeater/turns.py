"""Who goes on next: how the readers of all connections share the one event loop.

A *pass* of the loop runs every task that can run. A thousand connections that all have a full
buffer must not make one pass a second long: fan-out, pings and health checks run once a pass, too.

Rule: all readers together have one budget in each pass (1 ms, as fan-out has). A reader asks
`over` between two steps of its work: frames, commands, a request's head. When the budget is used
up, the reader waits in one line for all connections. Each pass lets a few readers of the line go
on, and at least one, whatever fan-out has used of the pass. The budget begins when the first reader
asks, behind its first step. So a pass costs fan-out's budget, and at most two of the readers'
budgets and two steps, whatever the number of connections and whatever they send.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final

import trio

GiveWay = Callable[[], Awaitable[None]]
"""`Turns.give_way` or `Turns.next`, for code that needs no more of the line."""

_MOST: Final = 64  # readers that are woken in one pass


class Turns(trio.abc.Instrument):
    """The line of one node. An instrument of Trio's, since it must see where a pass begins.

    `open_node` adds it to the run and removes it. Without that, every reader waits in the line:
    slower, and correct.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = 0.0
        # Trio calls `after_io_wait` before it runs the tasks of a pass. A method of ours would cost
        # each event 1 % of its instructions, so a pass only leaves a mark here, without Python.
        self._began: deque[float] = deque(maxlen=1)
        self.after_io_wait = self._began.append  # type: ignore[assignment,method-assign]
        self._line: OrderedDict[trio.lowlevel.Task, None] = OrderedDict()
        self._moving = False
        # The readers woken in this pass: how many, how many of them have not run yet, and whether
        # one of them found the budget used up and stands in the line again.
        self._group = 1
        self._woken = 0
        self._crowded = False

    @property
    def over(self) -> bool:
        """Whether the readers' budget of this pass is used up, so that `next` is to be awaited."""
        if self._began:
            self._begin()
        return perf_counter() > self._ends

    async def give_way(self) -> None:
        """Wait for the next turn if the budget is used up; else no checkpoint."""
        if self.over:
            await self.next()

    def _begin(self) -> None:
        """Begin the budget of this pass."""
        self._began.clear()
        self._ends = perf_counter() + self._seconds

    async def next(self) -> None:
        """Wait for a turn; first come, first served.

        No deadline: each pass serves the first of the line, and nothing in the line waits for a
        peer. Cancelled, the caller leaves the line.
        """
        if self._moving:
            await self._stand_in_line()
            return
        self._moving = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._wake_some()
        self._begin()

    async def _stand_in_line(self) -> None:
        task = trio.lowlevel.current_task()
        self._line[task] = None

        def leave(_raise_cancel: object) -> trio.lowlevel.Abort:
            del self._line[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        while not self._goes_on():
            if not self._woken:
                # The last of its group would have to wake itself: it goes on in the next pass.
                await trio.lowlevel.cancel_shielded_checkpoint()
                self._begin()
                break
            self._line[task] = None
            self._line.move_to_end(task, last=False)
            await trio.lowlevel.wait_task_rescheduled(leave)
        if not self._woken:
            self._wake_some()

    def _goes_on(self) -> bool:
        """Count a reader that was woken; return whether the budget lets it go on."""
        first = self._woken == self._group
        self._woken -= 1
        if first:
            self._begin()
        elif perf_counter() > self._ends:
            self._crowded = True
            return False
        return True

    def _wake_some(self) -> None:
        """Wake the first of the line, who run in the next pass, and so the loop never sleeps.

        More of them each time that all of them went on, since most turns take microseconds.
        """
        most = max(1, self._group // 2) if self._crowded else min(_MOST, self._group * 2)
        self._group = self._woken = min(most, len(self._line))
        self._crowded = False
        self._moving = bool(self._group)
        if not self._moving:
            self._group = 1
        for _ in range(self._woken):
            task, _none = self._line.popitem(last=False)
            trio.lowlevel.reschedule(task)
