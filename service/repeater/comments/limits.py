"""Rate limits: a token bucket for each address or account."""

from __future__ import annotations

from repeater.clients.throttle import TokenBuckets
from repeater.comments.options import Rate
from repeater.comments.problems import TOO_MANY, ProblemError


class RateLimit:
    """The buckets of one limit. If there are too many, the least recently used is forgotten."""

    def __init__(self, rate: Rate, memory: int) -> None:
        self._buckets = TokenBuckets(rate.burst, rate.per_second, memory)

    def take(self, key: str) -> None:
        """Take one token from the key's bucket; the bucket of a new key is full.

        Raises:
            ProblemError: the bucket is empty (429), with the time until its next token.
        """
        wait = self._buckets.take(key)
        if wait:
            raise ProblemError(TOO_MANY, retry_after=wait)
