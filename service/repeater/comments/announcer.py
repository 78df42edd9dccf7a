"""Takes announcements out of the outbox and publishes them, in order, each once.

A row is published with its idempotency key and then marked. If the process ends between the two,
the next start publishes the row again. No page gets it twice: a broker in another process knows the
key. A broker in this process's memory ends with the process, but every connection ends too, and
the next start publishes the rows that are left before it serves the first new connection.

With PostgreSQL the database announces comments by itself, and the outbox only has rows that an
earlier version left there. They are announced at the start.

With workers, several announcers may publish the same rows at the same time. Each publishes all rows
in their order, and the supervisor's broker takes each key once: so the order is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from repeater.comments.options import CHANNEL
from repeater.comments.problems import ProblemError
from repeater.comments.store import Announcement, Store, StoreError
from repeater.errors import BrokerError, IntakeFullError
from repeater.log import get_logger
from repeater.node import Node
from repeater.publication import Publication

_log = get_logger("comments")

_BATCH: Final = 100  # rows read and marked in one transaction
_RETRY: Final = (0.1, 5.0)  # seconds: the first pause after a failure, and the longest


class Announcer:
    """Reads the outbox. Lives inside `open_comments`, whose nursery runs and ends it."""

    def __init__(self, store: Store, node: Node) -> None:
        self._store = store
        self._node = node
        self._written = trio.Event()

    def wake(self) -> None:
        """Announce a row that was committed. Must be called after the transaction."""
        self._written.set()

    async def run(self) -> None:
        """Announce until cancelled; a failing database or broker is tried again and again.

        Waits without a deadline for `wake`, which every writer of this process calls. Rows that
        another process left are announced by the next process that starts.
        """
        while True:
            self._written = trio.Event()  # before the query, so that no row is missed
            await self.announce_all()
            await self._written.wait()

    async def announce_all(self) -> None:
        """Announce all rows, and try again after each failure. A caller may set a deadline."""
        pause, longest = _RETRY
        while True:
            try:
                while rows := await self._store.announcements(_BATCH):
                    await self._announce(rows)
                    pause = _RETRY[0]
                return
            except (StoreError, BrokerError, IntakeFullError, ProblemError) as error:
                reason = str(error) or type(error).__name__
                _log.warning("comments are announced later", reason=reason)
            await trio.sleep(pause)
            pause = min(longest, pause * 2)

    async def _announce(self, rows: Sequence[Announcement]) -> None:
        """Publish the rows, and mark those that were published, even if one row fails."""
        published = 0
        try:
            for row in rows:
                publication = Publication(CHANNEL, row.data)
                await self._node.publish(publication, idempotency_key=row.key)
                published += 1
        finally:
            # Shielded, but not endless: one transaction in a thread, with the database's timeouts.
            with trio.CancelScope(shield=True):
                await self._store.mark_announced(rows[:published])
