"""The results of publishes that had an idempotency key, within a bound in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from repeater.publication import StreamPosition

_OVERHEAD: Final = 512  # bytes of a result beside its texts: the objects that hold them, about
_SWEPT: Final = 1_000  # results dropped in one turn of the scheduler: about 0.5 ms

_Key = tuple[str, str]


class FirstResults:
    """What the first publish with each key returned, by channel and key. Lives inside a broker.

    Each is kept for the same time, so the oldest are first in the dictionary. When the results pass
    the bound, the oldest are forgotten early: a publish that repeats their key publishes again.
    """

    def __init__(
        self, *, ttl: float, byte_limit: int, now: Callable[[], float] = trio.current_time
    ) -> None:
        """Keep each for `ttl` seconds of the clock `now`, and all in so many bytes."""
        self._ttl = ttl
        self._now = now
        self._byte_limit = byte_limit
        self._results: OrderedDict[_Key, tuple[float, StreamPosition | None]] = OrderedDict()
        self.bytes = 0
        """The weight of all results that are kept."""
        self.dropped = 0
        """Results that were forgotten before their time, because of the bound."""

    def __len__(self) -> int:
        return len(self._results)

    def find(self, key: _Key) -> tuple[StreamPosition | None] | None:
        """The first result, which may itself be None, in a tuple; None if nobody published."""
        found = self._results.get(key)
        if found is None or found[0] <= self._now():
            return None
        return (found[1],)

    def end_of_life(self) -> float:
        """When a result that is kept now is forgotten."""
        return self._now() + self._ttl

    def keep(self, key: _Key, result: StreamPosition | None, until: float | None = None) -> None:
        """Keep a result that `find` did not find, for its time or until then."""
        if self._results.pop(key, None) is not None:  # an expired one
            self.bytes -= _weight(key)
        self._results[key] = (self.end_of_life() if until is None else until, result)
        self.bytes += _weight(key)
        while self.bytes > self._byte_limit and len(self._results) > 1:
            self._drop_first()
            self.dropped += 1

    async def sweep(self) -> None:
        """Forget the results whose time is over."""
        now = self._now()
        swept = 0
        while self._results and next(iter(self._results.values()))[0] <= now:
            self._drop_first()
            swept += 1
            if swept % _SWEPT == 0:
                await trio.lowlevel.checkpoint()

    def _drop_first(self) -> None:
        key, _ = self._results.popitem(last=False)
        self.bytes -= _weight(key)
        self.gone(key)

    def gone(self, key: _Key) -> None:
        """For results that are kept elsewhere, too: this one was forgotten."""


def _weight(key: _Key) -> int:
    channel, idempotency_key = key
    return _OVERHEAD + 4 * (len(channel) + len(idempotency_key))
