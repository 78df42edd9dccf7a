"""The cache in memory where the server has workers: each has its own, and all forget together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.comments.cache import MemoryCache
from repeater.errors import BrokerError
from repeater.log import get_logger

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.node import Node

_log = get_logger("comments")

_FORGET = "comments_forget"


class WorkersCache(MemoryCache):
    """Implements `Cache` for a node and the others of its server. Lives inside `open_comments`."""

    def __init__(self, ttl: float, node: Node) -> None:
        super().__init__(ttl)
        self._questions = node.questions
        self._questions.register(_FORGET, self._forget_here)

    async def _forget_here(self, _asker: Member, _body: bytes) -> bytes:
        """Begin a generation here, because another worker has a new comment."""
        await super().next_generation()
        return b""

    async def next_generation(self) -> None:
        """As `Cache.next_generation`, on all workers; waits for them for at most a second.

        A worker whose application has not begun yet has no lists. One that does not answer in time
        is logged. It forgets when it comes to the question,
        and its lists expire in any case.
        """
        await super().next_generation()
        try:
            await self._questions.ask_others(_FORGET, None, optional=True)
        except BrokerError as error:
            _log.warning(
                "another process may show a list without the newest comment",
                reason=str(error),
            )
