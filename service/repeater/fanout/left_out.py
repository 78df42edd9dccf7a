"""Binary publications that listeners whose format is text did not get: counted, and logged.

Nobody subscribes to a binary channel with such a format. But a channel's format may have changed
since, on this node or on another one, and then nothing else would tell of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.fanout.channel import Channel
    from repeater.publication import Publication

_log = get_logger("fanout")

_PAUSE: Final = 1.0  # seconds between two lines


class LeftOut:
    """Lives inside the repeater; needs no end."""

    def __init__(self) -> None:
        self.count = 0
        """Deliveries that were left out so far."""
        self._logged = -math.inf

    def note(self, channel: Channel, publications: Sequence[Publication]) -> None:
        """Count what the channel's live listeners do not get of these; a line a second tells it."""
        groups = channel.listeners.items()
        listeners = sum(len(group) for codec, group in groups if not codec.takes_binary)
        if not listeners:
            return
        self.count += listeners * sum(one.binary for one in publications)
        now = trio.current_time()
        if now - self._logged >= _PAUSE:
            self._logged = now
            _log.warning(
                "binary publications were left out: these clients speak JSON",
                channel=channel.name,
                clients=listeners,
                so_far=self.count,
            )
