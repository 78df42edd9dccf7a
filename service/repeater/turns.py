"""Who goes on next: how the readers of all connections share the one event loop.

A *pass* of the loop runs every task that can run. A thousand connections that all have a full
buffer must not make one pass a second long: fan-out, pings and health checks run once a pass, too.

Rule: all readers together have one budget in each pass (1 ms, as fan-out has). A reader asks
`over` between two steps of its work: frames, commands, a request's head. When the budget is used
up, the reader waits in one line for all connections, and each pass lets one reader of the line go
on. So a pass costs fan-out's budget, and at most two of the readers' budgets and one step,
whatever the number of connections and whatever they send.
"""

from __future__ import annotations

from collections import OrderedDict
from time import perf_counter

import trio


class Turns(trio.abc.Instrument):
    """The line of one node. An instrument of Trio's, since it must see where a pass begins.

    `open_node` adds it to the run and removes it. Without that, every reader waits in the line:
    slower, and correct.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = 0.0
        self._line: OrderedDict[trio.lowlevel.Task, None] = OrderedDict()
        self._moving = False

    def after_io_wait(self, timeout: float) -> None:  # Trio's signature
        """Begin a pass: Trio calls this before it runs the tasks of a pass."""
        self._ends = perf_counter() + self._seconds

    @property
    def over(self) -> bool:
        """Whether the readers' budget of this pass is used up, so that `next` is to be awaited."""
        return perf_counter() > self._ends

    async def give_way(self) -> None:
        """Wait for the next turn if the budget is used up; else no checkpoint."""
        if perf_counter() > self._ends:
            await self.next()

    async def next(self) -> None:
        """Wait for a turn: first come, first served, one in each pass of the loop.

        No deadline: each pass serves one of the line, and nothing in the line waits for a peer.
        Cancelled, the caller leaves the line.
        """
        if self._moving:
            task = trio.lowlevel.current_task()
            self._line[task] = None

            def leave(_raise_cancel: object) -> trio.lowlevel.Abort:
                del self._line[task]
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(leave)
            self._move()
        else:
            self._moving = True
            try:
                await trio.lowlevel.checkpoint()
            finally:
                self._move()
        self._ends = perf_counter() + self._seconds

    def _move(self) -> None:
        """Wake the first of the line; it runs in the next pass, and so the loop never sleeps."""
        if self._line:
            task, _ = self._line.popitem(last=False)
            trio.lowlevel.reschedule(task)
        else:
            self._moving = False
