"""The cache in memory where the server has workers: each has its own, and all forget together.

So do the nodes of a cluster that have no cache in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.comments.cache import MemoryCache
from repeater.errors import BrokerError
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.node import Node

_log = get_logger("comments")

# What the others are asked. Each has the name of a hold; to forget without a hold, None.
_HOLD: Final = "comments_hold"
_FORGET: Final = "comments_forget"


class WorkersCache(MemoryCache):
    """Implements `Cache` for a node and the others of its server. Lives inside `open_comments`.

    Each method that changes the cache does so here, and then has the others do the same; it waits
    for them for at most a second. One whose application has not begun yet has no lists. One that
    does not answer in time is logged; it does it when it comes to the question, and its lists
    expire in any case.
    """

    def __init__(self, ttl: float, node: Node) -> None:
        super().__init__(ttl)
        self._questions = node.questions
        self._questions.register(_HOLD, self._hold_here)
        self._questions.register(_FORGET, self._forget_here)

    async def _hold_here(self, _asker: Member, body: bytes) -> bytes:
        """Hold the cache here, because another worker stores a comment."""
        self.begin_hold(msgspec.msgpack.decode(body, type=str))
        return b""

    async def _forget_here(self, _asker: Member, body: bytes) -> bytes:
        """Begin a generation here, because another worker has a new comment."""
        name = msgspec.msgpack.decode(body, type=str | None)
        if name is None:
            self.begin_generation()
        else:
            self.end_hold(name)
        return b""

    async def next_generation(self) -> None:
        """As `Cache.next_generation`, on all workers."""
        self.begin_generation()
        await self._have_others(_FORGET, None)

    async def hold(self, name: str) -> None:
        """As `Cache.hold`, on all workers."""
        self.begin_hold(name)
        await self._have_others(_HOLD, name)

    async def release(self, name: str) -> None:
        """As `Cache.release`, on all workers."""
        self.end_hold(name)
        await self._have_others(_FORGET, name)

    async def _have_others(self, question: str, name: str | None) -> None:
        try:
            await self._questions.ask_others(question, name, optional=True)
        except BrokerError as error:
            _log.warning(
                "another process may show a list without the newest comment",
                reason=str(error),
            )
