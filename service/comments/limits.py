"""Rate limits: a token bucket for each address or account.

A kept library (`limits`) was looked at: its in-memory storage runs a thread of its own and goes
by the wall clock, which Trio's test clock can't move.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

import trio

from service.comments.options import Rate
from service.comments.problems import TOO_MANY, ProblemError


class RateLimit:
    """The buckets of one limit. The longest unseen key is forgotten when there are too many."""

    def __init__(self, rate: Rate, memory: int) -> None:
        self._rate = rate
        self._memory = memory
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> None:
        """Take one token; a key never seen has a full bucket.

        Raises:
            ProblemError: the bucket is empty (429), with the time until its next token.
        """
        now = trio.current_time()
        tokens, seen = self._buckets.get(key, (float(self._rate.burst), now))
        tokens = min(self._rate.burst, tokens + (now - seen) * self._rate.per_second)
        if tokens < 1:
            raise ProblemError(TOO_MANY, retry_after=(1 - tokens) / self._rate.per_second)
        self._buckets[key] = (tokens - 1, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._memory:
            self._buckets.popitem(last=False)


def address_key(address: str | None) -> str:
    """The peer as limits count it: an IPv6 one by its /64, which is one customer's."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return "local"  # a Unix socket
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)
