"""The time for which one call may use the processor, and the waits that it has left.

A call with many events publishes most of them without a checkpoint. This clock makes it give
fan-out, pings and other calls their turn. It also knows whether the log has the call's refusal.
"""

from __future__ import annotations

from time import perf_counter

import trio


class Budget:
    """The budget of one call. Lives inside one call, or one connection that makes calls."""

    __slots__ = ("_ends", "_seconds", "awaits_answers", "patient", "told")

    told: bool
    """Set when a refused item of the call is in the log: a call leaves one line. A call without
    one does not pay for it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = perf_counter() + seconds
        self.patient = True
        """Whether the call may still wait for room in the intake. False after one timeout."""
        self.awaits_answers = True
        """Whether it may still wait for the back end's answers. False after one timeout: a call
        with thousands of events must not wait for each."""

    @property
    def spent(self) -> bool:
        """Whether the turn is over, and `give_way` would checkpoint."""
        return perf_counter() >= self._ends

    async def give_way(self) -> None:
        """Checkpoint and begin a new turn if the turn is over; else no checkpoint."""
        if perf_counter() >= self._ends:
            await trio.lowlevel.checkpoint()
            self.renew()

    def renew(self) -> None:
        """Begin a new turn, because the task has just waited and others had their turn."""
        self._ends = perf_counter() + self._seconds
