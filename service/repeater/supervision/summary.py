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
    from repeater.brokers.control import Member
    from repeater.supervision.questions import ServerQuestions
    from repeater.supervision.users import Users


class Summaries:
    """Answers `summary`. Lives inside the supervisor; needs no end."""

    def __init__(self, questions: ServerQuestions, users: Users) -> None:
        self._questions = questions
        self._users = users
        self._since = trio.current_time()
        self._done: Totals[str, int] = Totals()
        questions.register("summary", self._answer)
        questions.hear("counts", self._hear)
        questions.at_end(self._done.forget)

    def _hear(self, worker: Member, body: bytes) -> None:
        """Take the last counts of a worker that ends in order."""
        self._done.see(worker, msgspec.msgpack.decode(body, type=Counts).done)

    async def _answer(self, _asker: Member, _body: bytes) -> bytes:
        clients = subscriptions = 0
        for worker, answer in await self._questions.ask_members("counts"):
            counts = msgspec.msgpack.decode(answer, type=Counts)
            self._done.see(worker, counts.done)
            clients += counts.clients
            subscriptions += counts.subscriptions
        # A publication reaches every worker that holds its channel, and none if nobody listens.
        done = {**self._done.total(), "publications": self._questions.count_publications()}
        me = self._questions.control.me
        summary = Summary(
            id=me.id,
            name=me.name,
            version=__version__,
            counts=Counts(clients, subscriptions, done),
            users=len(self._users.connections),
            channels=self._questions.count_channels(),
            uptime=trio.current_time() - self._since,
        )
        return encoded(summary)
