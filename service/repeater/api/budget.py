"""How long one call may hold the processor, and how often it may wait for a full intake.

A call of many events publishes most of them without a checkpoint; fan-out, pings and other calls
get their turn by this clock.
"""

from __future__ import annotations

from time import perf_counter

import trio


class Budget:
    """One call's share. Lives inside one call, or one connection that makes calls."""

    __slots__ = ("_ends", "_seconds", "patient")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = perf_counter() + seconds
        self.patient = True
        """Whether it may still wait for room in the intake: once in vain is enough."""

    @property
    def spent(self) -> bool:
        """Whether the turn is over, and `give_way` would checkpoint."""
        return perf_counter() >= self._ends

    async def give_way(self) -> None:
        """Checkpoint if the turn is over; none otherwise."""
        if self.spent:
            await trio.lowlevel.checkpoint()
            self.renew()

    def renew(self) -> None:
        """Begin a turn: the task has just waited for something."""
        self._ends = perf_counter() + self._seconds
