"""Warnings at a bounded rate: an outage fails very many calls, and strangers never tire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

_PAUSE: Final = 1.0  # seconds between two lines of the log with the same text


class WarningLimit:
    """Logs each text once a second at most. Lives inside the part that warns; needs no end."""

    def __init__(self, log: BoundLogger) -> None:
        self._log = log
        self._quiet_until: dict[str, float] = {}

    def warn(self, text: str, **about: object) -> None:
        """Log a warning, unless the same text was logged within the last second.

        The caller counts all of them, and says how many there were so far.
        """
        now = trio.current_time()
        if now >= self._quiet_until.get(text, now):
            self._quiet_until[text] = now + _PAUSE
            self._log.warning(text, **about)
