"""Token buckets, and the limits of one client that use them.

The buckets know no client and no setting. The caller passes the limit with each `take`, so a
changed limit holds from the next token on. The library `limits` does not fit: its in-memory storage
runs a thread of its own and uses the wall clock, which Trio's test clock cannot move.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec
import trio

from repeater.options import LimitOptions


class TokenBucket:
    """A bucket of `burst` tokens, refilled by `per_second`. A new bucket is full.

    It is one number, the time at which the bucket will be full again, because there are as many
    buckets as clients ("generic cell rate algorithm").
    """

    __slots__ = ("_full_at",)

    def __init__(self) -> None:
        self._full_at = 0.0

    def take(self, burst: float, per_second: float) -> float:
        """Take one token. Return 0 if there was one, else the seconds until there is one."""
        wait, self._full_at = _take(self._full_at, burst, per_second)
        return wait

    def take_some(self, burst: float, per_second: float, most: int) -> int:
        """Take as many tokens as there are, up to `most`; return their number."""
        now = trio.current_time()
        self._full_at = max(self._full_at, now)
        left = burst - (self._full_at - now) * per_second
        taken = max(0, min(most, int(left + 1e-9)))
        self._full_at += taken / per_second
        return taken

    def give_back(self, per_second: float) -> None:
        """Give back a token that was taken."""
        self._full_at -= 1 / per_second


def _take(full_at: float, burst: float, per_second: float) -> tuple[float, float]:
    """Take a token of a bucket; return the seconds to wait for one, and when it is full again."""
    now = trio.current_time()
    if full_at < now:
        full_at = now
    wait = full_at - now - (burst - 1) / per_second
    return (wait, full_at) if wait > 1e-9 else (0.0, full_at + 1 / per_second)


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

    def give_back(self, key: str) -> None:
        """Give a token back that `take` has given; nothing if the key was forgotten meanwhile."""
        if bucket := self._buckets.get(key):
            bucket.give_back(self._per_second)


class Throttle(msgspec.Struct, eq=False, gc=False):
    """The buckets of one client. Lives inside its client, from the first thing that counts on.

    A struct without the collector's header, because nearly every client has one.
    """

    # Each as `TokenBucket`.
    _commands: float = 0.0
    _publishes: float = 0.0
    _refusals: float = 0.0

    def refuse(self, limits: LimitOptions, *, publish: bool) -> str:
        """Count a command, and return the name of the limit it exceeds, or the empty text."""
        if commands := limits.commands_per_second:
            burst = limits.command_burst or commands
            wait, self._commands = _take(self._commands, burst, commands)
            if wait:
                return "commands_per_second"
        if publish and (publishes := limits.publishes_per_second):
            burst = limits.publish_burst or publishes
            wait, self._publishes = _take(self._publishes, burst, publishes)
            if wait:
                return "publishes_per_second"
        return ""

    def exhausted(self, limits: LimitOptions) -> bool:
        """Count a refused command, and return whether there were too many refusals."""
        most = limits.refusals_per_minute
        wait = 0.0
        if most:
            wait, self._refusals = _take(self._refusals, most, most / 60)
        return wait > 0
