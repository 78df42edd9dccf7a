"""A circuit breaker: whoever is down is not asked again and again. Sync, by Trio's clock.

Closed, until so many failures came in a row; then open, and nobody gets through; after a pause
one probe does, and its outcome closes the circuit or opens it for another pause.
"""

from __future__ import annotations

from typing import Literal

import trio

State = Literal["closed", "open", "probing"]


class Circuit:
    """Lives inside an endpoint. Whoever is admitted calls one of the three outcomes, once."""

    def __init__(self, failures: int, pause: float) -> None:
        self._limit = failures
        self._pause = pause
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False
        self.opened = 0
        """How often it did."""

    @property
    def state(self) -> State:
        """Closed, open or probing. Open also stands for a pause that is over, with no probe yet."""
        if self._open_until is None:
            return "closed"
        return "probing" if self._probing else "open"

    @property
    def refuses(self) -> bool:
        """Whether nobody gets through now."""
        if self._open_until is None:
            return False
        return self._probing or trio.current_time() < self._open_until

    def admit(self) -> bool:
        """Let one through, which is not refused; whether it is the probe."""
        self._probing = self._open_until is not None
        return self._probing

    def succeeded(self) -> None:
        """There was an answer: whoever gives one is not down."""
        self._failures, self._open_until, self._probing = 0, None, False

    def failed(self, *, probe: bool) -> None:
        """There was none. Of those let through before it opened, nobody cares any more."""
        if self._open_until is None:
            self._failures += 1
            if self._failures >= self._limit:
                self.opened += 1
                self._open_until = trio.current_time() + self._pause
        elif probe:
            self._probing = False
            self._open_until = trio.current_time() + self._pause

    def abandoned(self, *, probe: bool) -> None:
        """Nobody knows: whoever asked was cancelled. The next one probes in its place."""
        if probe:
            self._probing = False
