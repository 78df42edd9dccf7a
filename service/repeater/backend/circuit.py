"""A circuit breaker: a back end that is down is not asked again and again. Sync, by Trio's clock.

The circuit is closed until calls of a number of *parties* (see `turns`) failed, with no success in
between: a party counts once, so that one client cannot open the circuit by calls that it knows to
fail. Then it is open and refuses every call. After a pause it admits one probe, whose outcome
closes it or opens it for another pause; a party whose calls have not failed yet need not wait for
this other pause.
"""

from __future__ import annotations

from typing import Final, Literal

import trio

State = Literal["closed", "open", "probing"]

_REMEMBERED: Final = 1_024  # parties whose calls failed; beyond, every party counts as one of them


class Circuit:
    """Lives inside an endpoint. Each admitted call reports one of the three outcomes, once."""

    def __init__(self, failures: int, pause: float) -> None:
        self._limit = failures
        self._pause = pause
        self._failed = set[str]()
        self._open_until: float | None = None
        self._first_probe = 0.0
        self._probing = False
        self.opened = 0
        """The number of times that the circuit opened. A failed probe does not count again."""

    @property
    def state(self) -> State:
        """Closed, open or probing. Still open after the pause, until a probe is admitted."""
        if self._open_until is None:
            return "closed"
        return "probing" if self._probing else "open"

    def refuses(self, party: str) -> bool:
        """Whether the circuit refuses a call of this party now."""
        if self._open_until is None:
            return False
        new = party not in self._failed and len(self._failed) < _REMEMBERED
        until = self._first_probe if new else self._open_until
        return self._probing or trio.current_time() < until

    def admit(self) -> bool:
        """Admit a call, and return whether the call is the probe. Check `refuses` first."""
        self._probing = self._open_until is not None
        return self._probing

    def succeeded(self) -> None:
        """Close the circuit, because there was an answer: the back end is not down."""
        self._open_until, self._probing = None, False
        self._failed.clear()

    def failed(self, party: str, *, probe: bool) -> None:
        """Count a call without an answer. While the circuit is open, only the probe's counts."""
        if len(self._failed) < _REMEMBERED:
            self._failed.add(party)
        if self._open_until is None:
            if len(self._failed) >= self._limit:
                self.opened += 1
                self._open_until = self._first_probe = trio.current_time() + self._pause
        elif probe:
            self._probing = False
            self._open_until = trio.current_time() + self._pause

    def abandoned(self, *, probe: bool) -> None:
        """Note a cancelled call, whose outcome is unknown. The next call probes instead."""
        if probe:
            self._probing = False
