"""The calls of a worker on its supervisor: sent over the link, and open until they are answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from repeater.brokers.control import MemberAnswer
from repeater.brokers.receipts import Receipt
from repeater.brokers.window import Window
from repeater.errors import BrokerError
from repeater.publication import StreamPosition
from repeater.workers.down import (
    AllAnswered,
    Answered,
    Counts,
    Denials,
    Done,
    Failed,
    Members,
    Page,
    Position,
    Refused,
    Unknown,
)
from repeater.workers.values import answer_of, info_of, publication_of, refusal_of

Reply = (
    Position
    | Done
    | Failed
    | Refused
    | Page
    | Members
    | Counts
    | Denials
    | Answered
    | AllAnswered
    | Unknown
)

UNKNOWN: Final = object()
"""The value of a question to a member that is not there."""


class Questions:
    """Lives inside `Calls`; ended by `fail_all`."""

    def __init__(self, window: Window) -> None:
        """Give back to `window` what answered submissions weigh."""
        self._window = window
        self._open: dict[int, tuple[Receipt[Any], int]] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, weight: int = 0) -> tuple[int, Receipt[Any]]:
        """The serial and the receipt of a new call; a weight takes so much of the window."""
        self._last += 1
        receipt: Receipt[Any] = Receipt()
        self._open[self._last] = receipt, weight
        if weight:
            self._window.take(weight)
        return self._last, receipt

    def answer(self, reply: Reply) -> None:
        """Settle the call's receipt. Does nothing if the call was failed meanwhile."""
        receipt, weight = self._open.pop(reply.serial, (None, 0))
        if receipt is None:
            return
        if weight:
            self._window.give_back(weight)
        receipt.settle(_value(reply))

    def fail_all(self, error: BrokerError) -> None:
        """Fail every open call. Answers that come later are dropped."""
        failed, self._open = self._open, {}
        for receipt, weight in failed.values():
            if weight:
                self._window.give_back(weight)
            receipt.settle(error)


def _value(reply: Reply) -> object:
    """What a reply says, as the caller of the broker or store gets it."""
    if type(reply) is Position:
        return StreamPosition(reply.offset, reply.epoch)
    if type(reply) is Done:
        return None
    if isinstance(reply, Page):
        found = [publication_of(one) for one in reply.publications]
        return found, StreamPosition(reply.offset, reply.epoch)
    if isinstance(reply, Members):
        members: Mapping[str, object] = {one.client: info_of(one) for one in reply.infos}
        return members
    if isinstance(reply, Counts):
        return reply.clients, reply.users
    if isinstance(reply, Denials):
        return reply.denials
    if isinstance(reply, Answered):
        return answer_of(reply.answer)
    if isinstance(reply, AllAnswered):
        return [MemberAnswer(member, answer_of(row)) for member, row in reply.answers]
    if isinstance(reply, Unknown):
        return UNKNOWN
    if isinstance(reply, Failed):
        return BrokerError(reply.reason)
    assert isinstance(reply, Refused)
    return refusal_of(reply.number, reply.message, temporary=reply.temporary)
