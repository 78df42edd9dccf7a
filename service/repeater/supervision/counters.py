"""The counts of an application over all workers; see `clients/counters.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from repeater.clients.counters import Counts
from repeater.clients.questions import encoded
from repeater.supervision.totals import Totals

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.supervision.questions import ServerQuestions


class CounterTotals:
    """Answers `counters`. Lives inside the supervisor; needs no end."""

    def __init__(self, questions: ServerQuestions) -> None:
        self._questions = questions
        self._totals: Totals[str, int] = Totals()
        questions.register("counters", self._answer)
        questions.hear("counters", self._see)
        questions.at_end(self._totals.forget)

    async def _answer(self, _asker: Member, _body: bytes) -> bytes:
        """Answer the sums; of a worker that does not answer, what it was last seen to have."""
        for one in await self._questions.ask_each("counters"):
            if isinstance(one.answer, bytes):
                self._see(one.member, one.answer)
        return encoded(self._totals.total())

    def _see(self, worker: Member, body: bytes) -> None:
        self._totals.see(worker, msgspec.msgpack.decode(body, type=Counts))
