"""Delivers events: one batch after the other, each until it is accepted.

One task sends one request at a time. This keeps the order of all events, also over retries. Events
are delivered at least once: if the answer to a batch is lost, the batch is sent again.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx
import trio

from repeater.backend.endpoint import UnansweredError, UnusableError, post
from repeater.backend.events import EventQueue
from repeater.backend.options import CallbackOptions
from repeater.errors import open_service_nursery
from repeater.log import get_logger

_log = get_logger("events")

_FIRST_PAUSE: Final = 0.5  # longest pause before the first retry, seconds; doubled with each retry
_LAST_PAUSE: Final = 0.5  # the longest pause at shutdown, when time is short
_DOUBLINGS: Final = 20  # enough for any longest pause; without a bound the number would overflow


class Delivery:
    """Sends the queue's batches. Lives inside `open_events`, whose nursery runs it."""

    def __init__(
        self, queue: EventQueue, options: CallbackOptions, client: httpx.AsyncClient
    ) -> None:
        self._queue = queue
        self._options = options
        self._client = client

    async def run(self) -> None:
        """Deliver until the queue is closed and empty. Cancelled, the rest stays in the queue."""
        while await self._queue.wait_noted():
            if len(self._queue) < self._options.event_batch:
                with trio.move_on_after(self._options.event_delay):
                    await self._queue.closing.wait()
            self._queue.take(self._options.event_batch)
            await self._deliver()

    async def _deliver(self) -> None:
        """Send the batch until it is accepted. No deadline: the queue behind it has a bound."""
        failures = 0
        while reason := await self._try():
            if not failures:
                _log.warning("events are not accepted", reason=reason)
            await self._pause(failures)
            failures += 1
        if failures:
            _log.info("events are accepted again", failures=failures)

    async def _try(self) -> str:
        """Send the batch once, and return why it was not accepted, or the empty text."""
        reason = await self._send()
        self._queue.tried(accepted=not reason)
        return reason

    async def _send(self) -> str:
        try:
            answer = await post(
                self._client,
                self._options.event_url,
                self._queue.body(),
                kind="events",
                headers={},
                secret=self._options.secret,
                timeout=self._options.event_timeout,
                limit=self._options.response_limit,
            )
        except UnansweredError as error:
            return str(error)
        except UnusableError:
            return ""  # Accepted, with an answer that is too long to read.
        return "" if 200 <= answer.status < 300 else f"answered {answer.status}"

    async def _pause(self, failures: int) -> None:
        """Wait before a retry, for a random time, so that many servers do not retry at once.

        The end of the queue cuts the pause short.
        """
        closing = self._queue.closing
        longest = _LAST_PAUSE if closing.is_set() else self._options.event_retry_max
        pause = random.uniform(0, min(longest, _FIRST_PAUSE * 2 ** min(failures, _DOUBLINGS)))
        with trio.move_on_after(pause):
            if closing.is_set():
                await trio.sleep_forever()
            await closing.wait()


@asynccontextmanager
async def open_events(
    options: CallbackOptions, *, client: httpx.AsyncClient, node: str = "", run: str = ""
) -> AsyncIterator[EventQueue]:
    """Deliver events for as long as the block lasts, and then those that are left.

    The end, also of a cancelled block, takes until the deadline of the node's shutdown at most.
    Without that deadline, it takes as long as one batch may take. Events that are not accepted by
    then are dropped.

    Args:
        options: The kinds of events, their address and their secret.
        client: Posts the events. Its owner outlives this.
        node: The node's name in each batch; see `EventQueue`.
        run: The name of the run; see `EventQueue`.
    """
    queue = EventQueue(options, node, run)
    delivering = trio.CancelScope(shield=True)
    async with open_service_nursery() as nursery:
        nursery.start_soon(_run_within, delivering, Delivery(queue, options, client))
        try:
            yield queue
        finally:
            queue.close()
            latest = trio.current_time() + options.event_timeout
            delivering.deadline = latest if queue.deadline == math.inf else queue.deadline
    if lost := queue.give_up():
        _log.warning("events were not delivered", events=lost)


async def _run_within(scope: trio.CancelScope, delivery: Delivery) -> None:
    """Deliver until the scope's deadline, even if the code around it is cancelled."""
    with scope:
        await delivery.run()
