"""The cache in Valkey or Redis, shared by several servers. If it is down, answers are only slower.

Rule: after any failure, and at latest after a short timeout, the list comes from the database. The
cache is then unused until all its lists have expired, since it may have missed a comment.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from repeater.comments.cache import HOLD
from repeater.comments.options import CommentsError, CommentsOptions, has_host
from repeater.log import get_logger

try:
    from coredis import Redis
    from coredis.exceptions import RedisError
except ModuleNotFoundError as error:
    raise CommentsError(
        f"the comments' cache needs {error.name}: pip install 'repeater-server[comments,valkey]'"
    ) from None

_log = get_logger("comments")

_GENERATION = "repeater:comments:generation"
_HOLDS = "repeater:comments:holds"
"""Who holds the cache, each with the end of its hold on the server's clock, in seconds."""
_PAGE = "repeater:comments:page:{}:{}"
_KEYS = (_GENERATION, _HOLDS)

# The generation; nothing while somebody holds the cache.
_USABLE = """
if redis.call('ZCOUNT', KEYS[2], redis.call('TIME')[1], '+inf') > 0 then return false end
return redis.call('GET', KEYS[1]) or '0'
"""
# Holds of those that have died are removed with the next one.
_HOLD = """
local now = redis.call('TIME')[1]
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. now)
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return redis.call('INCR', KEYS[1])
"""
_SECONDS = str(math.ceil(HOLD))
_RELEASE = """
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('INCR', KEYS[1])
"""

Result = TypeVar("Result")


class ValkeyCache:
    """Implements `Cache`. Lives inside `open_valkey_cache`, which owns the connections."""

    def __init__(self, client: Redis[bytes], ttl: float, timeout: float) -> None:
        self._client = client
        self._ttl = ttl
        self._timeout = timeout
        self._unused_until = 0.0

    async def generation(self) -> str | None:
        """As `Cache.generation`; after a failure None, for one time to live."""
        if trio.current_time() < self._unused_until:
            return None
        found = await self._try(lambda: self._client.eval(_USABLE, keys=_KEYS))
        if trio.current_time() < self._unused_until or not isinstance(found, bytes):
            return None
        return found.decode()

    async def get(self, generation: str, key: str) -> bytes | None:
        """As `Cache.get`."""
        return await self._try(lambda: self._client.get(_PAGE.format(generation, key)))

    async def put(self, generation: str, key: str, page: bytes) -> None:
        """As `Cache.put`."""
        name, ttl = _PAGE.format(generation, key), int(self._ttl * 1_000)
        await self._try(lambda: self._client.set(name, page, px=ttl))

    async def next_generation(self) -> None:
        """As `Cache.next_generation`; is tried even while the cache is unused."""
        await self._try(lambda: self._client.incr(_GENERATION))

    async def hold(self, name: str) -> None:
        """As `Cache.hold`; is tried even while the cache is unused."""
        await self._try(lambda: self._client.eval(_HOLD, keys=_KEYS, args=(name, _SECONDS)))

    async def release(self, name: str) -> None:
        """As `Cache.release`; is tried even while the cache is unused."""
        await self._try(lambda: self._client.eval(_RELEASE, keys=_KEYS, args=(name,)))

    async def _try(self, call: Callable[[], Awaitable[Result]]) -> Result | None:
        """Make a call within the timeout. If it fails, return None and leave the cache unused."""
        reason = "no answer in time"
        try:
            with trio.move_on_after(self._timeout):
                return await call()
        except (RedisError, OSError) as error:
            reason = str(error)
        if trio.current_time() >= self._unused_until:
            _log.warning("the cache failed; reading from the database", reason=reason)
        self._unused_until = trio.current_time() + self._ttl
        return None


@asynccontextmanager
async def open_valkey_cache(options: CommentsOptions) -> AsyncIterator[ValkeyCache]:
    """Open a cache at the configured URL for as long as the block lasts. Connects at first use.

    Raises:
        CommentsError: the URL is not a URL of Redis or Valkey.
    """
    scheme, _, rest = options.cache_url.partition("://")
    names = {"valkey": "redis", "valkeys": "rediss", "redis": "redis", "rediss": "rediss"}
    if scheme not in names or not has_host(options.cache_url):
        raise CommentsError("the comments' cache URL must be redis://... or valkey://...")
    try:
        client: Redis[bytes] = Redis.from_url(f"{names[scheme]}://{rest}", decode_responses=False)
    except ValueError:  # a parameter of the URL; the library's text may hold the password
        raise CommentsError("the comments' cache URL has a parameter that is not valid") from None
    async with client:
        yield ValkeyCache(client, options.cache_ttl, options.cache_timeout)
