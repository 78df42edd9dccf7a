"""Blocking calls in worker threads: so many at once, so many waiting, no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from repeater.comments.problems import BUSY, ProblemError

Result = TypeVar("Result")


class Workers:
    """A share of Trio's worker threads for one kind of call. Owns no thread; needs no end."""

    def __init__(self, threads: int, queue: int) -> None:
        self._limiter = trio.CapacityLimiter(threads)
        self._queue = queue

    async def run(self, call: Callable[..., Result], *args: object) -> Result:
        """Make a call in a thread, after those that came before.

        The calls bound themselves (the database by its timeouts, a hash by its cost), so a
        cancelled caller waits for its call to end: what it wrote is known, and no thread is lost.

        Raises:
            ProblemError: too many wait already; nothing was done.
        """
        if self._limiter.statistics().tasks_waiting >= self._queue:
            raise ProblemError(BUSY, retry_after=1.0)
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)
