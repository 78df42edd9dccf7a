"""Counts of an application in the server's process, which are one number for all nodes."""

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
        self._has_supervisor = control.me.server != control.me.id
        self._questions = questions
        self._here: Counter[str] = Counter()
        questions.register("counters", self._answer)
        questions.at_end("counters", lambda: encoded(self._here))

    def count(self, name: str) -> None:
        """Count one more."""
        self._here[name] += 1

    async def total(self, name: str) -> int:
        """Return what all nodes have counted since the start; a checkpoint only if there are more.

        What a worker counted between the last look and a sudden death is lost. A node without a
        supervisor takes its counts with it when it ends.

        Raises:
            BrokerError: the supervisor, or another node, does not answer.
        """
        if self._has_supervisor:
            answer = await self._questions.ask_server("counters")
            return _count_in(answer, name)
        others = await self._questions.ask_others("counters", None, optional=True)
        return self._here[name] + sum(_count_in(one, name) for one in others)

    async def _answer(self, _asker: Member, _body: bytes) -> bytes:
        return encoded(self._here)


def _count_in(answer: bytes, name: str) -> int:
    return msgspec.msgpack.decode(answer, type=Counts).get(name, 0)
