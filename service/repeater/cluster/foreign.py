"""What no member has sent or written: counted, and logged at a bounded rate.

Whoever can write into the engine can write anything. Nothing of it is repeated in the log.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import trio

from repeater.log import get_logger

_log = get_logger("cluster")

_PAUSE: Final = 1.0  # seconds between two lines of the log

UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What a decoder raises for bytes that no member has written. It goes as deep as they do."""


class Foreign:
    """Lives inside the part that hears the messages; needs no end."""

    def __init__(self) -> None:
        self.count = 0
        """How many there were."""
        self._logged = -math.inf

    def note(self, channel: str, message: bytes) -> None:
        """Count a message of a channel; the name of the channel is what it is for."""
        if self._counted(1):
            _log.warning(
                "a message that no member has sent",
                channel=channel,
                bytes=len(message),
                so_far=self.count,
            )

    def note_rows(self, what: str, rows: int) -> None:
        """Count rows of a table, maybe none."""
        if rows and self._counted(rows):
            _log.warning("rows that no member has written", what=what, so_far=self.count)

    def _counted(self, more: int) -> bool:
        """Count so many, and say whether a line of the log may be written."""
        self.count += more
        now = trio.current_time()
        if now - self._logged < _PAUSE:
            return False
        self._logged = now
        return True
