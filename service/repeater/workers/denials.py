"""The denial store of a worker: its supervisor's, over the link.

A change reaches the other workers before `save` returns, as far as they answer within a second; the
caller applies its own change itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from repeater.workers.down import ApplyDenial
from repeater.workers.up import DenialApplied, LoadDenials, SaveDenial, SweepDenials

if TYPE_CHECKING:
    from repeater.access.grants import Denial
    from repeater.workers.calls import Calls


class WorkerDenials:
    """Implements `DenialStore` over the link. Made by `open_worker_link`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        # Changes of other workers; each waits for its answer, so the supervisor sends few at once.
        self._changes: deque[ApplyDenial] = deque()
        self._came = trio.Event()

    async def load(self) -> Sequence[Denial]:
        """All denials in force; changes from now on come by `run`."""
        found: Sequence[Denial] = await self._calls.ask(LoadDenials).wait()
        return found

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """Apply what other workers saved, in their order, until cancelled."""
        while True:
            await self._came.wait()
            self._came = trio.Event()
            while self._changes:
                change = self._changes.popleft()
                await apply(change.denial)
                self._calls.tell(DenialApplied(change.number))

    def receive(self, change: ApplyDenial) -> None:
        """Take another worker's change."""
        self._changes.append(change)
        self._came.set()

    async def save(self, denial: Denial) -> None:
        """Have the supervisor keep a denial and tell the other workers."""
        await self._calls.ask(SaveDenial, denial).wait()

    async def sweep(self, now: int) -> None:
        """Have the supervisor forget what expired."""
        await self._calls.ask(SweepDenials, now).wait()
