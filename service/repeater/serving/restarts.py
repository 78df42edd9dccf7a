"""When a worker that has died is started again, and when a server gives up. No clock, no wait."""

from __future__ import annotations

from collections import deque
from typing import Final

_FIRST: Final = 0.1  # seconds before a worker is started again; doubled with each of its deaths
_LONGEST: Final = 5.0
_WINDOW: Final = 60.0  # seconds
_MOST: Final = 5  # deaths of all workers together within the window


class Restarts:
    """The deaths of all workers that nobody asked for. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._pauses: dict[int, tuple[float, float]] = {}  # the last one, and when its death was

    def after_death(self, number: int, now: float) -> float:
        """The pause before this worker is started again, in seconds."""
        self._deaths.append(now)
        while self._deaths[0] <= now - _WINDOW:
            self._deaths.popleft()
        pause, last = self._pauses.get(number, (0.0, now))
        pause = min(2 * pause, _LONGEST) if pause and now - last < _WINDOW else _FIRST
        self._pauses[number] = pause, now
        return pause

    @property
    def too_many(self) -> bool:
        """Whether the server gives up: what is wrong does not pass."""
        return len(self._deaths) >= _MOST
