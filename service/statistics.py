"""What a node looks like at one moment, for health checks, metrics and tests alike."""

from __future__ import annotations

import msgspec

from service.repeater import RepeaterStatistics


class NodeStatistics(msgspec.Struct, frozen=True):
    """A snapshot. `ended` counts the connections that ended, by disconnect code."""

    clients: int
    channels: int
    subscriptions: int
    backlogged: int
    draining: bool
    ended: dict[int, int]
    repeater: RepeaterStatistics
