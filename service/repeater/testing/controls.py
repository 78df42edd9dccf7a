"""The controls of several nodes in one process: for tests of what a node asks the others."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from repeater.brokers.control import (
    DEADLINE,
    CarryOut,
    Member,
    MemberAnswer,
    Question,
    UnknownMemberError,
    answer_of,
    answered,
    check_question,
)
from repeater.brokers.receipts import Receipt
from repeater.errors import BrokerError, ReplyError
from repeater.random_id import random_id

_Answer = bytes | ReplyError | BrokerError
_OPEN: Final = 1_024  # questions that wait for a member


class ControlGroup:
    """The members of one server, and the server itself. Each `GroupControl` is one of them."""

    def __init__(self, supervise: CarryOut | None = None) -> None:
        """Take what carries out the questions to the server."""
        self.server = random_id()
        self.running: dict[str, GroupControl] = {}
        """The members that run, by their ids, in the order in which they began."""
        self.silent: set[str] = set()
        """Members that get questions and do not answer: a test adds their ids."""
        self._supervise = supervise
        self._made = 0

    def control(self) -> GroupControl:
        """Make another member, which is one as long as its `run` runs."""
        self._made += 1
        return GroupControl(self, Member(random_id(), platform.node(), self.server, self._made))

    async def ask_server(self, question: Question) -> bytes:
        """Carry out a question to the server, in the caller's task."""
        if self._supervise is None:
            raise UnknownMemberError(self.server)
        with trio.move_on_after(DEADLINE):
            return answered(await answer_of(self._supervise, question))
        raise BrokerError("the server did not answer in time")


class GroupControl:
    """Implements `Control` for a member of a `ControlGroup`."""

    def __init__(self, group: ControlGroup, me: Member) -> None:
        self.me = me
        self._group = group
        self._questions: deque[tuple[Question, Receipt[bytes]]] = deque()
        self._open: dict[Receipt[bytes], None] = {}
        self._arrived = trio.Event()

    def members(self) -> Sequence[Member]:
        """Those that run, and this one."""
        others = [one.me for one in self._group.running.values() if one is not self]
        return (self.me, *others)

    async def run(self, carry_out: CarryOut) -> None:
        """Be a member until cancelled."""
        self._group.running[self.me.id] = self
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    while self._questions:
                        nursery.start_soon(self._carry_out, carry_out, *self._questions.popleft())
                        # New tasks run in any order: the next question begins after this one.
                        await trio.lowlevel.checkpoint()
                    self._arrived = trio.Event()
                    await self._arrived.wait()
        finally:
            del self._group.running[self.me.id]
            self._questions.clear()
            for receipt in tuple(self._open):
                self._settle(receipt, BrokerError(f"worker {self.me.worker} left"))

    async def _carry_out(
        self, carry_out: CarryOut, question: Question, receipt: Receipt[bytes]
    ) -> None:
        answer = await answer_of(carry_out, question)
        if self.me.id not in self._group.silent:
            self._settle(receipt, answer)

    def _settle(self, receipt: Receipt[bytes], answer: _Answer) -> None:
        if receipt in self._open:
            del self._open[receipt]
            receipt.settle(answer)

    async def ask(self, member: str, question: Question) -> bytes:
        """Ask a member, or the server."""
        check_question(question)
        if member == self._group.server:
            return await self._group.ask_server(question)
        asked = self._group.running.get(member)
        if asked is None:
            raise UnknownMemberError(member)
        deadline = trio.current_time() + (DEADLINE if asked is not self else float("inf"))
        return answered(await asked._answer_by(deadline, asked._put(question)))

    async def ask_others(self, question: Question) -> Sequence[MemberAnswer]:
        """Ask the others, all at once."""
        check_question(question)
        deadline = trio.current_time() + DEADLINE
        asked = [one for one in self._group.running.values() if one is not self]
        receipts = [one._put(question) for one in asked]
        return [
            MemberAnswer(one.me, await one._answer_by(deadline, receipt))
            for one, receipt in zip(asked, receipts, strict=True)
        ]

    def _put(self, question: Question) -> Receipt[bytes]:
        receipt: Receipt[bytes] = Receipt()
        if len(self._open) >= _OPEN:
            receipt.settle(BrokerError("too many questions are open"))
            return receipt
        self._open[receipt] = None
        self._questions.append((question, receipt))
        self._arrived.set()
        return receipt

    async def _answer_by(self, deadline: float, receipt: Receipt[bytes]) -> _Answer:
        try:
            with trio.CancelScope(deadline=deadline):
                return await receipt.wait()
        except (ReplyError, BrokerError) as error:
            return error
        finally:
            self._open.pop(receipt, None)
        return BrokerError(f"worker {self.me.worker} did not answer in time")
