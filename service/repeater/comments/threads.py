"""Blocking calls in worker threads, with a limit for running and for waiting calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from repeater.comments.problems import BUSY, ProblemError

Result = TypeVar("Result")


class Workers:
    """A share of Trio's worker threads for one kind of call. Owns no thread; is never closed."""

    def __init__(self, threads: int, queue: int) -> None:
        self._limiter = trio.CapacityLimiter(threads)
        self._queue = queue

    async def run(self, call: Callable[..., Result], *args: object) -> Result:
        """Make a call in a thread, after the calls that came before.

        A cancelled caller waits until its call ends, so that the call's effect is known and no
        thread is lost. Each call has its own limit: a database's timeouts, or the cost of a hash.

        Raises:
            ProblemError: too many calls wait already; this call was not made.
        """
        if self._limiter.statistics().tasks_waiting >= self._queue:
            raise ProblemError(BUSY, retry_after=1.0)
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)
