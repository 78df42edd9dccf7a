"""One denial store for all workers: a change is kept, then all other workers apply it.

Changes go one after the other, so all workers apply them in one order. A worker that does not
answer in time is not waited for: it applies the change when it runs again, or is replaced and loads
all denials anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from repeater.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.access.denial_store import DenialStore
    from repeater.access.grants import Denial

_log = get_logger("workers")

_ANSWER: Final = 1.0  # seconds


class DenialTaker(Protocol):
    """A worker, as far as the relay knows it."""

    def apply(self, number: int, denial: Denial) -> None:
        """Send the worker a change; never waits."""


class DenialRelay:
    """Lives inside an `Exchange`."""

    def __init__(self, store: DenialStore) -> None:
        self._store = store
        self._changing = trio.Lock()
        self._takers: set[DenialTaker] = set()
        self._last = 0
        self._waiting: set[DenialTaker] = set()  # workers that have not applied the last change
        self._all_applied = trio.Event()

    async def load(self) -> Sequence[Denial]:
        """All denials in force; raises as `DenialStore.load`."""
        return await self._store.load()

    async def sweep(self, now: int) -> None:
        """Forget what expired; raises as `DenialStore.sweep`."""
        await self._store.sweep(now)

    def add(self, taker: DenialTaker) -> None:
        """Have a worker told of all changes from now on. Called before the worker loads."""
        self._takers.add(taker)

    def discard(self, taker: DenialTaker) -> None:
        """Forget a worker that has ended."""
        self._takers.discard(taker)
        self._settle(taker)

    async def save(self, denial: Denial, author: DenialTaker) -> None:
        """Keep a denial and have the author's fellows apply it; waits a second for them at most.

        Raises:
            BrokerError: the store failed, and nothing was kept.
        """
        async with self._changing:
            await self._store.save(denial)
            takers = self._takers - {author}
            if not takers:
                return
            self._last += 1
            self._waiting = takers.copy()
            self._all_applied = trio.Event()
            for taker in takers:
                taker.apply(self._last, denial)
            with trio.move_on_after(_ANSWER) as waiting:
                await self._all_applied.wait()
            if waiting.cancelled_caught:
                _log.warning("workers have not applied a denial yet", workers=len(self._waiting))

    def applied(self, number: int, taker: DenialTaker) -> None:
        """Note that a worker has applied a change."""
        if number == self._last:
            self._settle(taker)

    def _settle(self, taker: DenialTaker) -> None:
        self._waiting.discard(taker)
        if not self._waiting:
            self._all_applied.set()
