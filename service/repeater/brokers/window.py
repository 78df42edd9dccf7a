"""Bounds what an engine has under way, in submissions and in bytes, first come first served.

A submission takes its place without waiting, or is refused by `trio.WouldBlock`. Whoever was
refused waits in one line. When the line's first has been served, its next call of `check` is let
through; whoever did not wait stands behind the line.
"""

from __future__ import annotations

import trio


class Window:
    """Lives inside a broker; ended by `close`, which lets every waiter go on."""

    def __init__(self, limit: int, byte_limit: int) -> None:
        """One more submission fits while both are below their limits."""
        self._limit = limit
        self._byte_limit = byte_limit
        self._line = trio.StrictFIFOLock()
        self._room = trio.Event()
        self._waits = False  # somebody waits for `_room`, or has waited until cancelled
        self._empty = trio.Event()
        self._served: trio.lowlevel.Task | None = None
        self._closed = False
        self.count = 0
        """Submissions under way."""
        self.bytes = 0
        """Their weight."""

    @property
    def full(self) -> bool:
        """Whether no more submission fits."""
        return self.count >= self._limit or self.bytes >= self._byte_limit

    def check(self) -> None:
        """Refuse a submission that does not fit, or that others wait in front of.

        Raises:
            trio.WouldBlock: see above.
            trio.ClosedResourceError: the window is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self.full or (self._line.locked() and not self._was_served()):
            raise trio.WouldBlock

    def take(self, weight: int) -> None:
        """Note a submission of so many bytes, which `check` has let through."""
        self.count += 1
        self.bytes += weight

    def give_back(self, weight: int, count: int = 1) -> None:
        """Note that a submission was answered, or so many of so many bytes in all."""
        self.count -= count
        self.bytes -= weight
        if self._waits and not self.full:
            self._room.set()
        if not self.count:
            self._empty.set()

    async def wait(self) -> None:
        """Wait until one more submission fits and all who came earlier were served.

        The caller sets the deadline, and submits before it awaits anything. Cancelled, it leaves
        the line.

        Raises:
            trio.ClosedResourceError: the window was closed.
        """
        async with self._line:
            while self.full and not self._closed:
                self._room = trio.Event()
                self._waits = True
                await self._room.wait()
            self._waits = False
            if self._closed:
                raise trio.ClosedResourceError
            self._served = trio.lowlevel.current_task()

    async def wait_empty(self) -> None:
        """Wait until every submission under way was answered. The caller sets the deadline."""
        while self.count:
            self._empty = trio.Event()
            await self._empty.wait()

    def _was_served(self) -> bool:
        served, self._served = self._served, None
        return served is trio.lowlevel.current_task()

    def close(self) -> None:
        """Take no more submissions."""
        self._closed = True
        self._room.set()
