"""The events that wait for one worker, in the supervisor. All sync.

The worker says how much its intake has taken, and no more than a window is on its way. So answers
never stand behind events that the worker has no room for.

Weights are `weight_of`, as in an intake. `lagging` asks publishers to wait. It holds only while the
worker takes something: one that takes nothing makes nobody wait, and is given up at its bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

LIMIT: Final = 8 * 1024 * 1024
"""The weight of events that a worker has not taken, at which it is given up."""
LAG: Final = LIMIT // 2
"""The same, at which publishers wait for the worker."""
WINDOW: Final = 1024 * 1024
"""The weight of events that may be on their way to a worker's intake."""
PATIENCE: Final = 2.0
"""Seconds without taking anything after which nobody waits for a worker. A worker tells what it
took at least once in a second."""


class Backlog:
    """Lives inside one `Attachment`."""

    def __init__(
        self,
        wake: Callable[[], None],
        changed: Callable[[Backlog], None],
        overflow: Callable[[], None],
    ) -> None:
        """Call `wake` when there is something to send.

        `changed` is called when `lagging` may have changed, `overflow` at `LIMIT`.
        """
        self._wake = wake
        self._changed = changed
        self._overflow = overflow
        self._rows: deque[bytes] = deque()
        self._weights: deque[int] = deque()  # of the same events
        self._flying = 0  # the weight of what was sent and not taken
        self._taken_at = trio.current_time()
        self.weight = 0
        """The weight of all events that the worker has not taken."""
        self._closed = False
        self.lagging = False
        """Whether publishers should wait for this worker."""

    def put(self, row: bytes, weight: int) -> None:
        """Add one event, encoded; drop it if the worker is gone."""
        if self._closed:
            return
        if not self._rows:
            self._wake()  # Else the writer is awake, or waits for `taken`.
        self._rows.append(row)
        self._weights.append(weight)
        self.weight += weight
        if self.weight >= LAG:
            self._judge()
            if self.weight >= LIMIT:
                self._overflow()

    def next(self, most: int) -> list[bytes]:
        """Take the rows to send now: one, and more up to so much weight, while the window is open.

        The last one may pass the window, so that every event fits.
        """
        waiting = self.weight - self._flying
        if waiting <= most and self.weight <= WINDOW:  # all of them, as nearly always
            rows = [*self._rows]
            self._rows.clear()
            self._weights.clear()
            self._flying = self.weight
            return rows
        rows = []
        weights = self._weights
        while weights and self._flying < WINDOW and (not rows or most >= weights[0]):
            weight = weights.popleft()
            rows.append(self._rows.popleft())
            self._flying += weight
            most -= weight
        return rows

    def taken(self, weight: int) -> None:
        """Note that the worker's intake has taken so much."""
        self.weight -= weight
        self._flying -= weight
        self._taken_at = trio.current_time()
        if self.lagging or self.weight >= LAG:
            self._judge()
        if self._rows:
            self._wake()

    def look(self) -> None:
        """Judge anew, once in a second: time alone ends `lagging`."""
        if self.lagging:
            self._judge()

    def close(self) -> None:
        """Drop everything, now and later, because the worker is gone."""
        self._closed = True
        self._rows.clear()
        self._weights.clear()
        self.weight = self._flying = 0
        self._judge()

    def _judge(self) -> None:
        patient = trio.current_time() < self._taken_at + PATIENCE
        lagging = self.weight >= LAG and patient
        if lagging is not self.lagging:
            self.lagging = lagging
            self._changed(self)
