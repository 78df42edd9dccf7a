"""The control plane of a node without others: questions to itself come back at once."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import trio

from repeater.brokers.control import (
    CarryOut,
    Member,
    MemberAnswer,
    Question,
    UnknownMemberError,
    answer_of,
    answered,
    check_question,
)
from repeater.errors import BrokerError
from repeater.random_id import random_id


class LoopControl:
    """Implements `Control` for one node. Lives inside `open_node`."""

    def __init__(self) -> None:
        name = random_id()
        self.me = Member(name, platform.node(), server=name)
        self._carry_out: CarryOut | None = None

    def members(self) -> Sequence[Member]:
        """This one."""
        return (self.me,)

    async def run(
        self,
        carry_out: CarryOut,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Wait until cancelled: no other node asks."""
        self._carry_out = carry_out
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self._carry_out = None

    async def ask(self, member: str, question: Question) -> bytes:
        """Carry out a question to itself, in the caller's task."""
        if member != self.me.id:
            raise UnknownMemberError(member)
        if self._carry_out is None:
            raise BrokerError("the node is not running")
        check_question(question)
        return answered(await answer_of(self._carry_out, self.me, question))

    async def ask_others(self, question: Question) -> Sequence[MemberAnswer]:
        """Nobody answers: there are no others."""
        check_question(question)
        return ()

    def tell(self, question: Question) -> None:
        """Nothing: the server is this node."""
