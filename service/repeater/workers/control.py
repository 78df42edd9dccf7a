"""A worker's end of the control plane: the supervisor carries questions from worker to worker.

The supervisor knows who is there, so it asks all others; this end has a copy of its list. A worker
that joined within the last millisecond may be missing in the copy: no client of it is older.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

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
from repeater.errors import BrokerError
from repeater.workers import down, up
from repeater.workers.questions import UNKNOWN
from repeater.workers.values import answer_row

if TYPE_CHECKING:
    from repeater.workers.calls import Calls

_WAY: Final = 0.3  # seconds beside `DEADLINE` for the way of all members' answers


class WorkerControl:
    """Implements `Control` over the link. Made by `open_worker_link`."""

    def __init__(self, calls: Calls, me: Member) -> None:
        self.me = me
        self._calls = calls
        self._others: Sequence[Member] = ()
        self._carry_out: CarryOut | None = None
        self._asked: deque[down.CarryOut] = deque()
        self._arrived = trio.Event()

    def members(self) -> Sequence[Member]:
        """This one, and the others that the supervisor told of."""
        return (self.me, *self._others)

    async def run(
        self,
        carry_out: CarryOut,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be a member until cancelled; see `Control.run`.

        Raises:
            BrokerError: the supervisor ended before this worker was a member.
        """
        self._carry_out = carry_out
        try:
            # No deadline: the supervisor bounds the start of its workers.
            await self._calls.ask(up.Join, self.me).wait()
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    while self._asked:
                        nursery.start_soon(self._answer, carry_out, self._asked.popleft())
                        # New tasks run in any order: the next question begins after this one.
                        await trio.lowlevel.checkpoint()
                    self._arrived = trio.Event()
                    await self._arrived.wait()
        finally:
            self._carry_out = None
            self._asked.clear()
            self._calls.tell(up.Leave())

    async def _answer(self, carry_out: CarryOut, asked: down.CarryOut) -> None:
        answer = await answer_of(carry_out, asked.asker, asked.question)
        self._calls.tell(up.CarriedOut(asked.number, answer_row(answer)))

    def receive(self, message: down.CarryOut | down.MembersNow) -> None:
        """Take a question, or the members that run now."""
        if isinstance(message, down.MembersNow):
            self._others = [one for one in message.members if one.id != self.me.id]
        elif self._carry_out is not None:
            self._asked.append(message)
            self._arrived.set()

    async def ask(self, member: str, question: Question) -> bytes:
        """Ask a member or the server; see `Control.ask`."""
        check_question(question)
        if member == self.me.id:
            if self._carry_out is None:
                raise BrokerError("the node is not running")
            return answered(await answer_of(self._carry_out, self.me, question))
        with trio.move_on_after(DEADLINE):
            answer = await self._calls.ask(up.Ask, member, question).wait()
            if answer is UNKNOWN:
                raise UnknownMemberError(member)
            return bytes(answer)
        raise BrokerError("no answer in time")

    async def ask_others(self, question: Question) -> Sequence[MemberAnswer]:
        """Ask all others; see `Control.ask_others`."""
        check_question(question)
        asked = self._others
        if not asked:
            return ()
        error = BrokerError("no answer in time")
        with trio.move_on_after(DEADLINE + _WAY):
            try:
                answers: Sequence[MemberAnswer] = await self._calls.ask(
                    up.AskOthers, question
                ).wait()
            except BrokerError as failure:
                error = failure
            else:
                return answers
        return [MemberAnswer(one, error) for one in asked]

    def tell(self, question: Question) -> None:
        """Tell the supervisor; see `Control.tell`."""
        self._calls.tell(up.Tell(question))
