"""Errors of our own code that cost one connection: counted, and logged at a bounded rate.

What runs for one connection has one boundary around it, at which such an error ends: a stranger's
bytes may find a mistake of ours, and must not end everybody with it. The node's own tasks have no
such boundary, and crash loudly.
"""

from __future__ import annotations

import math
from collections import Counter

import trio

from repeater.log import get_logger

_log = get_logger("failures")

_PAUSE = 1.0  # seconds between two tracebacks of one place: whoever found a mistake will repeat it


class Failures:
    """Lives inside the node; needs no end."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Errors by the place that they cost: `connection`, `heartbeat`, `outbox`..."""
        self._logged: dict[str, float] = {}

    def note(self, place: str, error: BaseException) -> None:
        """Count an error, and log it with its traceback; at most one a second for each place."""
        self.counts[place] += 1
        now = trio.current_time()
        if now - self._logged.get(place, -math.inf) >= _PAUSE:
            self._logged[place] = now
            _log.error(
                "a connection failed", place=place, so_far=self.counts[place], exc_info=error
            )
