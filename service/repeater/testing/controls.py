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
    Supervision,
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
    """The members of one server. Each `GroupControl` is one; the group is the supervisor's end."""

    def __init__(self, supervision: Supervision | None = None) -> None:
        """Take what answers the questions to the server; None if a test asks none."""
        self.server = random_id()
        self.me = Member(self.server, platform.node(), self.server)
        self.running: dict[str, GroupControl] = {}
        """The members that run, by their ids, in the order in which they began."""
        self.silent: set[str] = set()
        """Members that get questions and do not answer: a test adds their ids."""
        self.supervision = supervision
        self._made = 0

    def control(self) -> GroupControl:
        """Make another member, which is one as long as its `run` runs."""
        self._made += 1
        return GroupControl(self, Member(random_id(), platform.node(), self.server, self._made))

    def members(self) -> Sequence[Member]:
        """Those that run now."""
        return [one.me for one in self.running.values()]

    async def ask_members(
        self, question: Question, *, timeout: float = DEADLINE
    ) -> Sequence[MemberAnswer]:
        """Ask all of them, as the server."""
        return await self.ask_each(self.me, tuple(self.running.values()), question, timeout)

    async def ask_each(
        self, asker: Member, asked: Sequence[GroupControl], question: Question, timeout: float
    ) -> Sequence[MemberAnswer]:
        """Ask these members, all at once; give their answers in this order."""
        check_question(question)
        deadline = trio.current_time() + timeout
        receipts = [one.put(asker, question) for one in asked]
        return [
            MemberAnswer(one.me, await one.answer_by(deadline, receipt))
            for one, receipt in zip(asked, receipts, strict=True)
        ]

    async def ask_server(self, asker: Member, question: Question) -> bytes:
        """Carry out a question to the server, in the caller's task."""
        if self.supervision is None:
            raise UnknownMemberError(self.server)
        with trio.move_on_after(DEADLINE):
            return answered(await answer_of(self.supervision.carry_out, asker, question))
        raise BrokerError("the server did not answer in time")


class GroupControl:
    """Implements `Control` for a member of a `ControlGroup`."""

    def __init__(self, group: ControlGroup, me: Member) -> None:
        self.me = me
        self._group = group
        self._questions: deque[tuple[Member, Question, Receipt[bytes]]] = deque()
        self._open: dict[Receipt[bytes], None] = {}
        self._arrived = trio.Event()

    def members(self) -> Sequence[Member]:
        """Those that run, and this one."""
        others = [one.me for one in self._group.running.values() if one is not self]
        return (self.me, *others)

    async def run(
        self,
        carry_out: CarryOut,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be a member until cancelled."""
        self._group.running[self.me.id] = self
        task_status.started()
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
            if self._group.supervision is not None:
                self._group.supervision.left(self.me)

    async def _carry_out(
        self, carry_out: CarryOut, asker: Member, question: Question, receipt: Receipt[bytes]
    ) -> None:
        answer = await answer_of(carry_out, asker, question)
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
            return await self._group.ask_server(self.me, question)
        asked = self._group.running.get(member)
        if asked is None:
            raise UnknownMemberError(member)
        deadline = trio.current_time() + (DEADLINE if asked is not self else float("inf"))
        return answered(await asked.answer_by(deadline, asked.put(self.me, question)))

    async def ask_others(self, question: Question) -> Sequence[MemberAnswer]:
        """Ask the others, all at once."""
        asked = [one for one in self._group.running.values() if one is not self]
        return await self._group.ask_each(self.me, asked, question, DEADLINE)

    def tell(self, question: Question) -> None:
        """Tell the server at once."""
        if self._group.supervision is not None:
            self._group.supervision.told(self.me, question)

    def put(self, asker: Member, question: Question) -> Receipt[bytes]:
        """Ask this member; its answer, or error, settles the receipt."""
        receipt: Receipt[bytes] = Receipt()
        if len(self._open) >= _OPEN:
            receipt.settle(BrokerError("too many questions are open"))
            return receipt
        self._open[receipt] = None
        self._questions.append((asker, question, receipt))
        self._arrived.set()
        return receipt

    async def answer_by(self, deadline: float, receipt: Receipt[bytes]) -> _Answer:
        """Wait for an answer until the deadline."""
        try:
            with trio.CancelScope(deadline=deadline):
                return await receipt.wait()
        except (ReplyError, BrokerError) as error:
            return error
        finally:
            self._open.pop(receipt, None)
        return BrokerError(f"worker {self.me.worker} did not answer in time")
