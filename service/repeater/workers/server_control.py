"""The supervisor's end of the control plane: it carries questions between workers, and asks itself.

A `ServerControl` knows all members. A `ControlEnd` is one worker's: what it is asked and has not
answered, and what it asks and tells the server, which keeps its order.
"""

from __future__ import annotations

import platform
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.control import DEADLINE, Member, MemberAnswer, answer_of, check_question
from repeater.brokers.receipts import Receipt
from repeater.errors import BrokerError, ReplyError
from repeater.random_id import random_id
from repeater.workers import down, up, values
from repeater.workers.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from repeater.brokers.control import Question, Supervision

_Answer = bytes | ReplyError | BrokerError
_OPEN: Final = 1_024  # questions that one worker has not answered
_KEPT: Final = 10.0  # seconds after which one is not waited for; whoever asked it has given up


class ServerControl:
    """Implements `SupervisorControl`. Lives inside an `Exchange`."""

    def __init__(self, supervision: Supervision | None) -> None:
        """Take what answers the questions to the server; None if nobody asks any."""
        name = random_id()
        self.me = Member(name, platform.node(), server=name)
        """The server as a member: the asker of the server's questions."""
        self.supervision = supervision
        self.ends: dict[str, ControlEnd] = {}
        """The members that run, by their ids, in the order in which they joined."""

    def members(self) -> Sequence[Member]:
        """Those that run now."""
        return [one.me for one in self.ends.values() if one.me is not None]

    async def ask_members(
        self, question: Question, *, timeout: float = DEADLINE
    ) -> Sequence[MemberAnswer]:
        """Ask all of them at the same time; see `SupervisorControl.ask_members`."""
        check_question(question)
        return await ask_each(self.me, tuple(self.ends.values()), question, timeout)

    def joined(self, end: ControlEnd, member: Member) -> None:
        """Have a worker's end be this member, and tell all."""
        self.ends[member.id] = end
        self._tell_members()

    def left(self, member: Member) -> None:
        """Forget a member, and tell all others."""
        if self.ends.pop(member.id, None) is not None:
            self._tell_members()

    def _tell_members(self) -> None:
        message = down.MembersNow(list(self.members()))
        for end in self.ends.values():
            end.send(message)


class ControlEnd:
    """One worker's place in the control plane. Lives inside its `Attachment`; ended by `end`."""

    def __init__(self, control: ServerControl, send: Callable[[Message], None]) -> None:
        self.me: Member | None = None
        """The member, as long as it runs."""
        self.send = send
        self._control = control
        self._open: dict[int, tuple[float, Receipt[bytes]]] = {}
        self._last = 0
        self._to_server: deque[up.Ask | up.Tell] = deque()
        self._came = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Carry out what the worker asks and tells the server, in its order, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                while self._to_server:
                    message = self._to_server.popleft()
                    if isinstance(message, up.Tell):
                        self._hear(message)
                    else:
                        nursery.start_soon(self._ask_server, self.me, message)
                        # New tasks run in any order: what follows begins after this one.
                        await trio.lowlevel.checkpoint()
                self._came = trio.Event()
                await self._came.wait()

    def end(self) -> None:
        """Forget the member: what it was asked fails, and the supervision hears that it left."""
        me, self.me = self.me, None
        if me is None:
            return
        for message in self._to_server:
            if isinstance(message, up.Tell):
                self._hear(message, me)
        self._to_server.clear()
        self._control.left(me)
        receipts, self._open = self._open, {}
        for _asked_at, receipt in receipts.values():
            receipt.settle(BrokerError(f"worker {me.worker} left"))
        if self._control.supervision is not None:
            self._control.supervision.left(me)

    # What the worker says.

    def join(self, call: up.Join) -> None:
        """The worker's node runs."""
        self.me = call.member
        self._control.joined(self, call.member)
        self.send(down.Done(call.serial))

    def leave(self, _message: up.Leave) -> None:
        """The worker's node has ended."""
        self.end()

    def tell(self, message: up.Tell) -> None:
        """The worker tells the server."""
        if self._to_server:
            self._to_server.append(message)
        else:
            self._hear(message)

    def _hear(self, message: up.Tell, teller: Member | None = None) -> None:
        teller = teller or self.me
        if self._control.supervision is not None and teller is not None:
            self._control.supervision.told(teller, message.question)

    def ask(self, call: up.Ask) -> None:
        """The worker asks one member, or the server."""
        asked = self._control.ends.get(call.member)
        if asked is not None and self.me is not None:
            receipt = asked.put(self.me, call.question)
            receipt.when_settled(partial(self._say, call.serial))
        elif call.member == self._control.me.id and self._control.supervision is not None:
            self._to_server.append(call)
            self._came.set()
        else:
            self.send(down.Unknown(call.serial))

    def _say(self, serial: int, answer: _Answer) -> None:
        self.send(down.Answered(serial, values.answer_row(answer)))

    async def _ask_server(self, asker: Member | None, call: up.Ask) -> None:
        supervision = self._control.supervision
        if supervision is None or asker is None:
            return
        with trio.move_on_after(DEADLINE):
            self._say(call.serial, await answer_of(supervision.carry_out, asker, call.question))

    def ask_others(self, call: up.AskOthers) -> None:
        """The worker asks all other members."""
        if self._nursery is not None and self.me is not None:
            self._nursery.start_soon(self._ask_others, self.me, call)

    async def _ask_others(self, asker: Member, call: up.AskOthers) -> None:
        others = [one for one in self._control.ends.values() if one is not self]
        found = await ask_each(asker, others, call.question, DEADLINE)
        rows = [(one.member, values.answer_row(one.answer)) for one in found]
        self.send(down.AllAnswered(call.serial, rows))

    def carried_out(self, message: up.CarriedOut) -> None:
        """The worker has answered a question."""
        _asked_at, receipt = self._open.pop(message.number, (0.0, None))
        if receipt is not None:
            receipt.settle(values.answer_of(message.answer))

    # What the worker is asked.

    def put(self, asker: Member, question: Question) -> Receipt[bytes]:
        """Ask the worker; its answer, or error, settles the receipt."""
        receipt: Receipt[bytes] = Receipt()
        if len(self._open) >= _OPEN:
            receipt.settle(BrokerError("too many questions are open"))
            return receipt
        self._last += 1
        self._open[self._last] = trio.current_time(), receipt
        self.send(down.CarryOut(self._last, asker, question))
        return receipt

    def look(self) -> None:
        """Fail old questions. Called once in a second."""
        old = trio.current_time() - _KEPT
        while self._open:
            number, (asked_at, receipt) = next(iter(self._open.items()))
            if asked_at > old:
                return
            del self._open[number]
            receipt.settle(BrokerError("no answer in time"))


async def ask_each(
    asker: Member, ends: Iterable[ControlEnd], question: Question, timeout: float
) -> Sequence[MemberAnswer]:
    """Ask these workers, all at once; their answers in this order."""
    deadline = trio.current_time() + timeout
    asked = [(one.me, one.put(asker, question)) for one in ends if one.me is not None]
    return [
        MemberAnswer(member, await _answer_by(deadline, member, receipt))
        for member, receipt in asked
    ]


async def _answer_by(deadline: float, member: Member, receipt: Receipt[bytes]) -> _Answer:
    try:
        with trio.CancelScope(deadline=deadline):
            return await receipt.wait()
    except (ReplyError, BrokerError) as error:
        return error
    return BrokerError(f"worker {member.worker} did not answer in time")
