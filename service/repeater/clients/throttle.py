"""Token buckets, and what the limits of one client are made of.

Knows no client and no setting: whoever takes says how much there may be, so that a limit that was
changed holds from the next token on. A kept library (`limits`) was looked at: its in-memory storage
runs a thread of its own and goes by the wall clock, which Trio's test clock can't move.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import trio

from repeater.options import LimitOptions


class TokenBucket:
    """So many at once, then so many a second. A new one is full."""

    __slots__ = ("_seen", "_tokens")

    def __init__(self) -> None:
        self._tokens = math.inf
        self._seen = 0.0

    def take(self, burst: float, per_second: float) -> float:
        """Take one token: 0 if there was one, else the seconds until there is."""
        now = trio.current_time()
        self._tokens = min(burst, self._tokens + (now - self._seen) * per_second)
        self._seen = now
        if self._tokens < 1:
            return (1 - self._tokens) / per_second
        self._tokens -= 1
        return 0.0


class TokenBuckets:
    """One bucket for each key. The longest unseen key is forgotten when there are too many."""

    def __init__(self, burst: float, per_second: float, memory: int) -> None:
        self._burst = burst
        self._per_second = per_second
        self._memory = memory
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one token; a key never seen has a full bucket. As `TokenBucket.take`."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket()
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._memory:
            self._buckets.popitem(last=False)
        return bucket.take(self._burst, self._per_second)


class Throttle:
    """What one client may still ask for. Lives inside its session, once there is a limit."""

    __slots__ = ("_commands", "_publishes", "_refusals")

    def __init__(self) -> None:
        self._commands = TokenBucket()
        self._publishes = TokenBucket()
        self._refusals = TokenBucket()

    def refuse(self, limits: LimitOptions, *, publish: bool) -> str:
        """The name of the limit that a command runs into; empty, and counted, if it is none."""
        commands, publishes = limits.commands_per_second, limits.publishes_per_second
        if commands and self._commands.take(limits.command_burst or commands, commands):
            return "commands_per_second"
        if not publish or not publishes:
            return ""
        if self._publishes.take(limits.publish_burst or publishes, publishes):
            return "publishes_per_second"
        return ""

    def exhausted(self, limits: LimitOptions) -> bool:
        """Count a refused command; whether there were too many of them."""
        most = limits.refusals_per_minute
        return bool(most and self._refusals.take(most, most / 60))
