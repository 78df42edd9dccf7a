"""A cache of the lists of comments: in memory here, in Valkey in `valkey.py`.

Rule: every list belongs to a generation, and a new comment begins the next generation. So a list
that was read from the database before the comment was written is never taken for a newer list,
however late it is stored.

Where the database announces the comment itself, a page may hear it before this process knows that
the transaction has ended. So the cache is held around the transaction: nobody uses it meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio

from repeater.comments.problems import BUSY, ProblemError
from repeater.random_id import random_id

HOLD: Final = 30.0
"""Seconds after which a hold ends by itself, if its process ended before, or does not know whether
its transaction has ended. A transaction either ends before that or is given up: 1 for the hold, 15
until it announces (`store.py`), 5 for each of its last two statements."""

_MEMORY: Final = 16_777_216  # bytes of lists; above this limit the oldest lists are forgotten
_WAIT: Final = 6.0  # seconds until a list's turn to be loaded; the database's own timeouts are 5
_OVERHEAD: Final = 256  # bytes that a list costs beside its key and its text


class Cache(Protocol):
    """A store of lists. If its server fails, a method neither raises nor waits long."""

    async def generation(self) -> str | None:
        """The current generation; None if the cache must not be used now."""

    async def get(self, generation: str, key: str) -> bytes | None:
        """The list of this generation; None if it is not stored."""

    async def put(self, generation: str, key: str, page: bytes) -> None:
        """Store a list for the cache's time to live."""

    async def next_generation(self) -> None:
        """Begin a generation after a new comment: no list stored so far is valid any more."""

    async def hold(self, name: str) -> None:
        """Begin a generation, and let nobody use the cache until `release`, or for `HOLD`.

        Several may hold it at the same time, each by a name of its own.
        """

    async def release(self, name: str) -> None:
        """End this hold, and begin a generation."""


class MemoryCache:
    """Implements `Cache` for one process; `workers_cache.py` has it forget for several."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._generation = 0
        self._pages: dict[str, tuple[float, bytes]] = {}
        self._size = 0
        self._holds: dict[str, float] = {}  # the ends, the first one first

    async def generation(self) -> str | None:
        """A count of the new comments; None while somebody holds the cache."""
        now = trio.current_time()
        self._holds = {name: end for name, end in self._holds.items() if end > now}
        return None if self._holds else str(self._generation)

    async def get(self, generation: str, key: str) -> bytes | None:
        """As `Cache.get`."""
        expires, page = self._pages.get(key, (0.0, b""))
        if generation != str(self._generation) or expires <= trio.current_time():
            return None
        return page

    async def put(self, generation: str, key: str, page: bytes) -> None:
        """As `Cache.put`; a list of a past generation, or above the limit, is not stored."""
        if generation != str(self._generation) or _cost(key, page) > _MEMORY:
            return
        now = trio.current_time()
        self._forget(key)
        self._pages[key] = (now + self._ttl, page)
        self._size += _cost(key, page)
        # The oldest are first, and expire first.
        while self._size > _MEMORY or next(iter(self._pages.values()))[0] <= now:
            self._forget(next(iter(self._pages)))

    def _forget(self, key: str) -> None:
        if (kept := self._pages.pop(key, None)) is not None:
            self._size -= _cost(key, kept[1])

    async def next_generation(self) -> None:
        """As `Cache.next_generation`."""
        self.begin_generation()

    async def hold(self, name: str) -> None:
        """As `Cache.hold`."""
        self.begin_hold(name)

    async def release(self, name: str) -> None:
        """As `Cache.release`."""
        self.end_hold(name)

    def begin_generation(self) -> None:
        """Forget all lists of this process."""
        self._generation += 1
        self._pages.clear()
        self._size = 0

    def begin_hold(self, name: str) -> None:
        """Hold the cache of this process."""
        self._holds[name] = trio.current_time() + HOLD
        self.begin_generation()

    def end_hold(self, name: str) -> None:
        """End a hold of the cache of this process; one that is not there does not matter."""
        self._holds.pop(name, None)
        self.begin_generation()


def _cost(key: str, page: bytes) -> int:
    return len(key) + len(page) + _OVERHEAD


class Pages:
    """Answers from the cache, and fills it. One list is loaded at a time.

    So requests for the same list that wait find it in the cache.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._loading = trio.Lock()

    async def get(self, key: str, load: Callable[[], Awaitable[bytes]]) -> bytes:
        """The list of this key, from the cache or from `load`. Errors of `load` pass through.

        Raises:
            ProblemError: other lists took too long to load (503).
        """
        page = await self._kept(key)
        if page is not None:
            return page
        # If the database fails after its timeout, all who wait would fail one after the other.
        with trio.move_on_after(_WAIT) as waiting:
            await self._loading.acquire()
        if waiting.cancelled_caught:
            raise ProblemError(BUSY, retry_after=1.0)
        try:
            return await self._load(key, load)
        finally:
            self._loading.release()

    async def _load(self, key: str, load: Callable[[], Awaitable[bytes]]) -> bytes:
        page = await self._kept(key)
        if page is not None:
            return page
        generation = await self._cache.generation()
        page = await load()
        if generation is not None:
            await self._cache.put(generation, key, page)
        return page

    async def _kept(self, key: str) -> bytes | None:
        generation = await self._cache.generation()
        return None if generation is None else await self._cache.get(generation, key)

    async def forget(self) -> None:
        """Forget all lists, after a new comment."""
        await self._cache.next_generation()

    @asynccontextmanager
    async def held(self, lasting: type[Exception]) -> AsyncIterator[None]:
        """Give nobody a list of the cache during the block, and forget all lists at both ends.

        For a transaction that may be announced before the block ends. A cancelled block, and one
        that takes longer than `HOLD`, end the hold as well. After an error of the type `lasting`
        it lasts until `HOLD` is over: then the transaction may end after the block.
        """
        name = random_id()
        ends = True
        try:
            await self._cache.hold(name)
            yield
        except lasting:
            ends = False
            raise
        finally:
            if ends:
                with trio.CancelScope(shield=True):  # a cache has short timeouts
                    await self._cache.release(name)
