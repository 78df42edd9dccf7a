"""The calls of a worker on its supervisor: sent over the link, and open until they are answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repeater.brokers.receipts import Receipt
from repeater.brokers.window import Window
from repeater.errors import ApplicationError, BrokerError, ErrorCode, ReplyError
from repeater.publication import StreamPosition
from repeater.workers.messages import (
    Counts,
    Denials,
    Done,
    Failed,
    Members,
    Page,
    Position,
    Refused,
)
from repeater.workers.values import info_of, publication_of

Reply = Position | Done | Failed | Refused | Page | Members | Counts | Denials


class Questions:
    """Lives inside `Calls`; ended by `fail_all`."""

    def __init__(self, window: Window) -> None:
        """Give back to `window` what answered submissions weigh."""
        self._window = window
        self._open: dict[int, tuple[Receipt[Any], int]] = {}
        self._last = 0

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
    if isinstance(reply, Failed):
        return BrokerError(reply.reason)
    assert isinstance(reply, Refused)
    return _refusal(reply)


def _refusal(reply: Refused) -> ReplyError:
    if reply.message:
        return ApplicationError(reply.number, reply.message, temporary=reply.temporary)
    return ReplyError(ErrorCode(reply.number))
