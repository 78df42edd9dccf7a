"""The calls of a worker on its supervisor: sent over the link, and open until they are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from repeater.brokers.control import MemberAnswer
from repeater.brokers.receipts import Receipt
from repeater.brokers.source_rows import AfterError, DeposedError
from repeater.brokers.window import Window
from repeater.errors import BrokerError
from repeater.publication import StreamPosition
from repeater.workers.down import (
    AllAnswered,
    Answered,
    Behind,
    Counts,
    Denials,
    Deposed,
    Done,
    Failed,
    Members,
    Page,
    Position,
    Refused,
    Rows,
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
    | Rows
    | Deposed
    | Behind
)

OTHER: Final = -1
"""In place of a weight: a call that is not the broker's, and does not end with it."""

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

    def add(self, weight: int) -> tuple[int, Receipt[Any]]:
        """The serial and the receipt of a new call.

        A weight takes so much of the window: that of a submission. Other calls of the broker have
        none (0), and calls of other parts are `OTHER`.
        """
        self._last += 1
        receipt: Receipt[Any] = Receipt()
        self._open[self._last] = receipt, weight
        if weight > 0:
            self._window.take(weight)
        return self._last, receipt

    def answer(self, reply: Reply) -> None:
        """Settle the call's receipt. Does nothing if the call was failed meanwhile."""
        receipt, weight = self._open.pop(reply.serial, (None, 0))
        if receipt is None:
            return
        if weight > 0:
            self._window.give_back(weight)
        if type(reply) is Position:  # by far the most
            receipt.settle(StreamPosition(reply.offset, reply.epoch))
        else:
            receipt.settle(_value(reply))

    def fail_brokers(self, error: BrokerError) -> None:
        """Fail the open calls of the broker. Answers that come later are dropped."""
        self._fail([serial for serial, (_, weight) in self._open.items() if weight >= 0], error)

    def fail_all(self, error: BrokerError) -> None:
        """Fail every open call."""
        self._fail(tuple(self._open), error)

    def _fail(self, serials: Sequence[int], error: BrokerError) -> None:
        for serial in serials:
            receipt, weight = self._open.pop(serial)
            if weight > 0:
                self._window.give_back(weight)
            receipt.settle(error)


def _value(reply: Reply) -> object:
    """What a reply says, as the caller of the broker or store gets it; no `Position`."""
    if isinstance(reply, Done):
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
    if isinstance(reply, Rows):
        return reply.names
    if isinstance(reply, Deposed):
        return DeposedError(reply.term)
    if isinstance(reply, Behind):
        return AfterError()
    if isinstance(reply, Failed):
        return BrokerError(reply.reason)
    assert isinstance(reply, Refused)
    return refusal_of(reply.number, reply.message, temporary=reply.temporary)
