"""The summary of a server with workers: what `info` shows of all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from repeater import __version__
from repeater.clients.overview import Counts, Summary
from repeater.clients.questions import encoded
from repeater.supervision.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from repeater.brokers.control import Member
    from repeater.supervision.questions import ServerQuestions
    from repeater.supervision.users import Users


class Summaries:
    """Answers `summary`. Lives inside the supervisor; needs no end."""

    def __init__(
        self, questions: ServerQuestions, me: Member, users: Users, channels: Callable[[], int]
    ) -> None:
        """Take the server as its members know it, and what counts the channels they hold."""
        self._questions = questions
        self._me = me
        self._users = users
        self._channels = channels
        self._since = trio.current_time()
        self._done: Totals[str, int] = Totals()
        questions.register("summary", self._answer)
        questions.at_end(self._done.forget)

    async def _answer(self, _asker: Member, _body: bytes) -> bytes:
        clients = subscriptions = 0
        for worker, answer in await self._questions.ask_members("counts"):
            counts = msgspec.msgpack.decode(answer, type=Counts)
            self._done.see(worker, counts.done)
            clients += counts.clients
            subscriptions += counts.subscriptions
        summary = Summary(
            id=self._me.id,
            name=self._me.name,
            version=__version__,
            counts=Counts(clients, subscriptions, self._done.total()),
            users=len(self._users.connections),
            channels=self._channels(),
            uptime=trio.current_time() - self._since,
        )
        return encoded(summary)
