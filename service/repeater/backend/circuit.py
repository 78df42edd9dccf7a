"""A circuit breaker: a back end that is down is not asked again and again. Sync, by Trio's clock.

The circuit is closed until a number of failures came in a row. Then it is open and refuses every
call. After a pause it admits one probe, whose outcome closes it or opens it for another pause.
"""

from __future__ import annotations

from typing import Literal

import trio

State = Literal["closed", "open", "probing"]


class Circuit:
    """Lives inside an endpoint. Each admitted call reports one of the three outcomes, once."""

    def __init__(self, failures: int, pause: float) -> None:
        self._limit = failures
        self._pause = pause
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False
        self.opened = 0
        """The number of times that the circuit opened. A failed probe does not count again."""

    @property
    def state(self) -> State:
        """Closed, open or probing. Still open after the pause, until a probe is admitted."""
        if self._open_until is None:
            return "closed"
        return "probing" if self._probing else "open"

    @property
    def refuses(self) -> bool:
        """Whether the circuit refuses calls now."""
        if self._open_until is None:
            return False
        return self._probing or trio.current_time() < self._open_until

    def admit(self) -> bool:
        """Admit a call, and return whether the call is the probe. Check `refuses` first."""
        self._probing = self._open_until is not None
        return self._probing

    def succeeded(self) -> None:
        """Close the circuit, because there was an answer: the back end is not down."""
        self._failures, self._open_until, self._probing = 0, None, False

    def failed(self, *, probe: bool) -> None:
        """Count a call without an answer. While the circuit is open, only the probe's counts."""
        if self._open_until is None:
            self._failures += 1
            if self._failures >= self._limit:
                self.opened += 1
                self._open_until = trio.current_time() + self._pause
        elif probe:
            self._probing = False
            self._open_until = trio.current_time() + self._pause

    def abandoned(self, *, probe: bool) -> None:
        """Note a cancelled call, whose outcome is unknown. The next call probes instead."""
        if probe:
            self._probing = False
