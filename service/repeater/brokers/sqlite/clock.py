"""The clock of the lifetimes: Unix time, which a step of the machine's clock does not move.

What is stored has Unix times, since the file outlives every other clock. But while the process
runs, its lifetimes follow a clock that nobody sets: a step forwards forgets nothing early, and a
step backwards keeps nothing for ever. Small corrections are followed, so that the two clocks do not
drift apart. The next start begins with the machine's clock as it is then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from repeater.log import get_logger

_log = get_logger("history")

_STEP: Final = 0.5  # seconds; clocks that run wrong differ by less in a second


class LifetimeClock:
    """Gives Unix seconds when it is called. Lives inside a broker, which calls `follow`."""

    def __init__(
        self, wall: Callable[[], float], steady: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with the machine's clock, `wall`, and go on with `steady`."""
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()
        self.steps = 0.0
        """Seconds by which the machine's clock was set since: what is stored is later by them."""

    def __call__(self) -> float:
        """The time now."""
        return self._steady() + self._offset

    def follow(self) -> None:
        """Take over a small correction of the machine's clock, and note a step. Once a second."""
        ahead = self._wall() - self() - self.steps
        if abs(ahead) < _STEP:
            self._offset += ahead
        else:
            _log.info("the clock was set: lifetimes go on as before", seconds=round(ahead, 1))
            self.steps += ahead
