"""What wakes the task that looks for rows: the database rings, and so does whoever makes room."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Bell:
    """Rung any number of times, it wakes one task once. Lives inside a session."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake who waits, or who waits next."""
        self._rung.set()

    async def wait(self) -> None:
        """Wait until it is rung, or was since the last wait. The caller sets the deadline."""
        await self._rung.wait()
        self._rung = trio.Event()

    async def wait_for(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so, which is looked at each time that it rings."""
        while not reached():
            await self.wait()
