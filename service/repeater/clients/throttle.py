"""Token buckets, and the limits of one client that use them.

This module knows no client and no setting. The caller passes the limit with each `take`, so a
changed limit holds from the next token on. The library `limits` does not fit: its in-memory storage
runs a thread of its own and uses the wall clock, which Trio's test clock cannot move.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import trio

from repeater.options import LimitOptions


class TokenBucket:
    """A bucket of `burst` tokens, refilled by `per_second`. A new bucket is full."""

    __slots__ = ("_seen", "_tokens")

    def __init__(self) -> None:
        self._tokens = math.inf
        self._seen = 0.0

    def take(self, burst: float, per_second: float) -> float:
        """Take one token. Return 0 if there was one, else the seconds until there is one."""
        now = trio.current_time()
        self._tokens = min(burst, self._tokens + (now - self._seen) * per_second)
        self._seen = now
        if self._tokens < 1:
            return (1 - self._tokens) / per_second
        self._tokens -= 1
        return 0.0


class TokenBuckets:
    """One bucket for each key. Above `memory` keys, the key unseen for longest is forgotten."""

    def __init__(self, burst: float, per_second: float, memory: int) -> None:
        self._burst = burst
        self._per_second = per_second
        self._memory = memory
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one token of a key, as `TokenBucket.take`. A new key has a full bucket."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket()
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._memory:
            self._buckets.popitem(last=False)
        return bucket.take(self._burst, self._per_second)


class Throttle:
    """The buckets of one client's commands. Lives inside its session, once there is a limit."""

    __slots__ = ("_commands", "_publishes", "_refusals")

    def __init__(self) -> None:
        self._commands = TokenBucket()
        self._publishes = TokenBucket()
        self._refusals = TokenBucket()

    def refuse(self, limits: LimitOptions, *, publish: bool) -> str:
        """Count a command, and return the name of the limit it exceeds, or the empty text."""
        commands, publishes = limits.commands_per_second, limits.publishes_per_second
        if commands and self._commands.take(limits.command_burst or commands, commands):
            return "commands_per_second"
        if not publish or not publishes:
            return ""
        if self._publishes.take(limits.publish_burst or publishes, publishes):
            return "publishes_per_second"
        return ""

    def exhausted(self, limits: LimitOptions) -> bool:
        """Count a refused command, and return whether there were too many refusals."""
        most = limits.refusals_per_minute
        return bool(most and self._refusals.take(most, most / 60))
