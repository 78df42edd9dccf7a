"""Counts of an application in the server's process, which are one number for all workers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from repeater.clients.questions import Questions, encoded

if TYPE_CHECKING:
    from repeater.brokers.control import Control, Member

Counts = dict[str, int]


class Counters:
    """The counts of one node by their names. Lives inside the node; needs no end."""

    def __init__(self, control: Control, questions: Questions) -> None:
        self._alone = control.me.server == control.me.id
        self._questions = questions
        self._here: Counter[str] = Counter()
        questions.register("counters", self._answer)
        questions.at_end("counters", lambda: encoded(self._here))

    def count(self, name: str) -> None:
        """Count one more."""
        self._here[name] += 1

    async def total(self, name: str) -> int:
        """Return what all workers have counted since the start; a checkpoint only with workers.

        What a worker counted between the last look and a sudden death is lost.

        Raises:
            BrokerError: the supervisor does not answer.
        """
        if self._alone:
            return self._here[name]
        answer = await self._questions.ask_server("counters")
        return msgspec.msgpack.decode(answer, type=Counts).get(name, 0)

    async def _answer(self, _asker: Member, _body: bytes) -> bytes:
        return encoded(self._here)
