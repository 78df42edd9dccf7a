"""The control plane of a cluster: questions and answers between nodes, by the bus of the engine.

The bus loses messages when a connection ends. So whoever hears no answer within 0.3 s asks once
more, and a question is carried out once (`answers`). A question whose first message was lost begins
behind later ones of its asker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
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
from repeater.cluster.answers import Answers
from repeater.cluster.foreign import UNREADABLE, Foreign
from repeater.cluster.messages import Ask, Reply, decoded, encode
from repeater.cluster.roster import MemberRow
from repeater.errors import BrokerError, ReplyError
from repeater.workers.values import AnswerRow, answer_row
from repeater.workers.values import answer_of as answer_in

if TYPE_CHECKING:
    from repeater.cluster.members import Members
    from repeater.cluster.plane import Plane

_AGAIN: Final = 0.3  # seconds after which it is asked once more
_OPEN: Final = 1_024  # questions of this node that are not answered
_HELLO: Final = ":hello"  # a method of the control itself: no node's begins with a colon

_Answer = bytes | ReplyError | BrokerError

Answerer = Callable[[Member, bytes], Awaitable[bytes]]
"""Carries out one of the cluster's own methods: takes the question's body, returns the answer's."""


class _Asking:
    """One question of this node: who has not answered yet, and what the others said."""

    def __init__(self, asked: Sequence[Member]) -> None:
        self.waiting = dict.fromkeys(one.id for one in asked)
        self.answers: dict[str, _Answer] = {}
        self.done = trio.Event()

    def settle(self, member: str, answer: _Answer) -> None:
        """Take an answer, the first one of each."""
        if member in self.waiting:
            del self.waiting[member]
            self.answers[member] = answer
            if not self.waiting:
                self.done.set()


class ClusterControl:
    """Implements `Control` for a node that is a member of a cluster, and a server of its own."""

    def __init__(self, plane: Plane, members: Members) -> None:
        """Take the way to the engine, and this node's membership, which the control runs."""
        self._plane = plane
        self._members = members
        self._to_all = plane.name("control")
        self.foreign = Foreign()
        """Messages that no member has sent."""
        self._own: dict[str, Answerer] = {}
        self._at_start: list[Callable[[], None]] = []
        self._answers = Answers()
        self._asked: deque[Ask] = deque()
        self._came = trio.Event()
        self._asking: dict[int, _Asking] = {}
        self._last = 0
        self._carry_out: CarryOut | None = None
        self.answer(_HELLO, self._greeted)
        members.at_leave(self._left)
        plane.hear(self._to_all, self._heard)
        plane.hear(self._to_one(self.me.id), self._heard)

    @property
    def me(self) -> Member:
        """This node."""
        return self._members.me

    def members(self) -> Sequence[Member]:
        """All members known now, this one first."""
        return self._members.now()

    def answer(self, method: str, answerer: Answerer) -> None:
        """Have one of the cluster's own methods carried out; its name begins with a colon."""
        self._own[method] = answerer

    def at_start(self, told: Callable[[], None]) -> None:
        """Have a function called when this node has become a member: all are asked from then on.

        It never waits.
        """
        self._at_start.append(told)

    def _to_one(self, member: str) -> bytes:
        return self._plane.name("control", member)

    async def run(
        self,
        carry_out: CarryOut,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be a member until cancelled; see `Control.run`. Waits for the engine, without a deadline.

        Starts when all members that answer within a second know this one. At the end it says
        goodbye, within another second.
        """
        self._carry_out = carry_out
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer_all, carry_out)
                await nursery.start(self._members.run, self._greet)
                for told in self._at_start:
                    told()
                task_status.started()
        finally:
            self._carry_out = None
            self._asked.clear()
            await self._members.say_goodbye()

    # What this node is asked.

    def _heard(self, message: bytes) -> None:
        found = decoded(message)
        if isinstance(found, Ask):
            self._take(found)
        elif found is not None:
            asking = self._asking.get(found.number)
            if asking is not None:
                asking.settle(found.member, _answer_in(found.answer))
        else:
            self.foreign.note("control", message)

    def _take(self, ask: Ask) -> None:
        key = (ask.asker.id, ask.number)
        if ask.asker.id == self.me.id or self._carry_out is None:
            return
        if key in self._answers:
            answer = self._answers.answer(key)
            if answer is not None:
                self._say(ask, answer or _encoded(self.me, ask, BrokerError("it is not kept")))
        elif self._answers.is_full:
            full = BrokerError("too many questions are being carried out")
            self._say(ask, _encoded(self.me, ask, full))
        else:
            self._answers.begin(key, trio.current_time())
            self._asked.append(ask)
            self._came.set()

    async def _answer_all(self, carry_out: CarryOut) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                while self._asked:
                    nursery.start_soon(self._answer, carry_out, self._asked.popleft())
                    # New tasks run in any order: the next question begins after this one.
                    await trio.lowlevel.checkpoint()
                self._came = trio.Event()
                await self._came.wait()  # No deadline: nobody asks.

    async def _answer(self, carry_out: CarryOut, ask: Ask) -> None:
        own = self._own.get(ask.method)
        if own is not None:
            answer = await answer_of(lambda asker, asked: own(asker, asked.body), *_question(ask))
        else:
            answer = await answer_of(carry_out, *_question(ask))
        message = _encoded(self.me, ask, answer)
        self._answers.end((ask.asker.id, ask.number), message)
        self._say(ask, message)

    def _say(self, ask: Ask, message: bytes) -> None:
        with suppress(BrokerError):  # It is asked once more, or given up.
            self._plane.send(self._to_one(ask.asker.id), message)

    # What this node asks.

    async def ask(self, member: str, question: Question) -> bytes:
        """Ask one member; see `Control.ask`."""
        check_question(question)
        if member == self.me.id:
            if self._carry_out is None:
                raise BrokerError("the node is not running")
            return answered(await answer_of(self._carry_out, self.me, question))
        for one in self._members.now():
            if one.id == member:
                (found,) = await self._ask((one,), question, self._to_one(member))
                return answered(found.answer)
        raise UnknownMemberError(member)

    async def ask_others(self, question: Question) -> Sequence[MemberAnswer]:
        """Ask all others; see `Control.ask_others`."""
        check_question(question)
        asked = self._members.now()[1:]
        return await self._ask(asked, question, self._to_all) if asked else ()

    def tell(self, question: Question) -> None:
        """Nothing: this node is its own server."""

    async def _ask(
        self, asked: Sequence[Member], question: Question, channel: bytes
    ) -> Sequence[MemberAnswer]:
        """Ask these members, all of whom hear the channel; in time, and in their order."""
        if len(self._asking) >= _OPEN:
            return _all(asked, BrokerError("too many questions are open"))
        self._last += 1
        number, asking = self._last, _Asking(asked)
        message = encode(Ask(number, self.me, question.method, question.body))
        try:
            self._plane.send(channel, message)
        except BrokerError as error:
            return _all(asked, error)
        self._asking[number] = asking
        try:
            with trio.move_on_after(DEADLINE):
                with trio.move_on_after(_AGAIN):
                    await asking.done.wait()
                self._ask_again(asking, message)
                await asking.done.wait()
        finally:
            del self._asking[number]
        late = BrokerError("no answer in time")
        return [MemberAnswer(one, asking.answers.get(one.id, late)) for one in asked]

    def _ask_again(self, asking: _Asking, message: bytes) -> None:
        with suppress(BrokerError):  # The deadline tells the caller.
            for member in asking.waiting:
                self._plane.send(self._to_one(member), message)

    def _left(self, member: Member) -> None:
        for asking in self._asking.values():
            asking.settle(member.id, BrokerError(f"{member.name} left"))

    # Who is there.

    async def _greet(self, version: int) -> None:
        """Have all members know this one; who does not answer in time learns it by a beat."""
        asked = self._members.now()[1:]
        if asked:
            body = encode((version, self._members.row()))
            await self._ask(asked, Question(_HELLO, body), self._to_all)

    async def _greeted(self, _asker: Member, body: bytes) -> bytes:
        try:
            version, row = msgspec.msgpack.decode(body, type=tuple[int, MemberRow])
        except UNREADABLE:
            raise BrokerError("the question cannot be read") from None
        self._members.has_joined(row, version)
        return b""


def _question(ask: Ask) -> tuple[Member, Question]:
    return ask.asker, Question(ask.method, ask.body)


def _encoded(me: Member, ask: Ask, answer: _Answer) -> bytes:
    return encode(Reply(ask.number, me.id, answer_row(answer)))


def _answer_in(row: AnswerRow) -> _Answer:
    try:
        return answer_in(row)
    except ValueError:  # A code of a later version.
        return BrokerError("an unknown error")


def _all(asked: Sequence[Member], error: BrokerError) -> Sequence[MemberAnswer]:
    return [MemberAnswer(one, error) for one in asked]
