"""The lists of comments, kept for a while: in memory here, in Valkey in `valkey.py`.

Rule: every list belongs to a generation, and a new comment begins the next one. A list that was
read from the database before the comment was written therefore can't be mistaken for a newer one,
however late it is put in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

_MEMORY: Final = 16_777_216  # bytes of lists; past it all are forgotten


class Cache(Protocol):
    """Where lists are kept. No method raises for a back end that fails, or waits long for it."""

    async def generation(self) -> str | None:
        """The one in force; None if the cache is not to be used now."""

    async def get(self, generation: str, key: str) -> bytes | None:
        """The list of this generation, if it is kept."""

    async def put(self, generation: str, key: str, page: bytes) -> None:
        """Keep a list for the cache's time to live."""

    async def next_generation(self) -> None:
        """There is a new comment: nothing kept so far counts any more."""


class MemoryCache:
    """Implements `Cache` for one process."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._generation = 0
        self._pages: dict[str, tuple[float, bytes]] = {}
        self._size = 0

    async def generation(self) -> str | None:
        """A count of this process's comments."""
        return str(self._generation)

    async def get(self, generation: str, key: str) -> bytes | None:
        """As `Cache.get`."""
        expires, page = self._pages.get(key, (0.0, b""))
        if generation != str(self._generation) or expires <= trio.current_time():
            return None
        return page

    async def put(self, generation: str, key: str, page: bytes) -> None:
        """As `Cache.put`; of a past generation, or too long, it is not kept."""
        if generation != str(self._generation) or len(page) > _MEMORY:
            return
        self._size += len(page)
        if self._size > _MEMORY:
            self._pages.clear()
            self._size = len(page)
        self._pages[key] = (trio.current_time() + self._ttl, page)

    async def next_generation(self) -> None:
        """As `Cache.next_generation`."""
        self._generation += 1
        self._pages.clear()
        self._size = 0


class Pages:
    """Answers from the cache, and fills it. One list is loaded at a time: who waited finds it."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._loading = trio.Lock()

    async def get(self, key: str, load: Callable[[], Awaitable[bytes]]) -> bytes:
        """The list of this key, from the cache or from `load`, whose errors pass through."""
        page = await self._kept(key)
        if page is not None:
            return page
        async with self._loading:
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
        """There is a new comment."""
        await self._cache.next_generation()
