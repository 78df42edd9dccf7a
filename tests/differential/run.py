"""Runs conversations with both servers at once, a difference again and more slowly."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Final

import trio

from tests.differential.compare import Verdict, compare
from tests.differential.player import play
from tests.differential.servers import Servers, both
from tests.differential.steps import Conversation, Seen

_AT_ONCE: Final = 60
"""Conversations under way; they wait more than they work."""
_PACES: Final = (1.0, 2.0, 6.0)
"""How slowly a conversation is held that differs: what a busy machine made is gone then."""


class Runner:
    """Holds conversations with two servers; lives inside `running`."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._tags = count(1)

    async def verdicts(
        self, conversations: Sequence[Conversation]
    ) -> Sequence[tuple[Conversation, Verdict]]:
        """What each conversation shows, in their order; some are held at a time."""
        found: dict[int, tuple[Conversation, Verdict]] = {}
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def hold(number: int, one: Conversation) -> None:
            async with limit:
                found[number] = (one, await self.verdict(one))

        async with trio.open_nursery() as nursery:
            for number, one in enumerate(conversations):
                nursery.start_soon(hold, number, one)
        return [found[number] for number in sorted(found)]

    async def glance(self, conversation: Conversation) -> Verdict:
        """What a conversation shows when it is held once."""
        return await self.verdict(conversation, (1.0,))

    async def verdict(self, conversation: Conversation, paces: Sequence[float] = _PACES) -> Verdict:
        """What a conversation shows with both; only a lasting difference is one."""
        for pace in paces:
            theirs, ours = await self.hold(conversation, pace)
            verdict = compare(conversation, theirs, ours)
            if verdict.difference is None:
                break
        return verdict

    async def hold(
        self, conversation: Conversation, pace: float = 1.0
    ) -> tuple[Sequence[Seen], Sequence[Seen]]:
        """What Centrifugo and Repeater said."""
        tag = f"t{next(self._tags)}t"
        seen = dict[int, Sequence[Seen]]()

        async def with_one(port: int) -> None:
            seen[port] = await play(conversation, port, tag, pace)

        async with trio.open_nursery() as nursery:
            for port in self._servers:
                nursery.start_soon(with_one, port)
        return seen[self._servers.centrifugo], seen[self._servers.repeater]


@asynccontextmanager
async def running(program: str) -> AsyncIterator[Runner]:
    """Start both servers, of which `program` is Centrifugo; they end with the block."""
    with tempfile.TemporaryDirectory() as folder:
        async with both(Path(folder), program) as servers:
            yield Runner(servers)
