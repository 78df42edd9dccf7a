"""The conformance suite of `Control`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.control import (
    ANSWER_LIMIT,
    QUESTION_LIMIT,
    CarryOut,
    Control,
    Question,
)
from repeater.errors import BrokerError, ErrorCode, RepeaterError, ReplyError, open_service_nursery
from repeater.testing.rules import expect, hold

T = TypeVar("T")

OpenControls = Callable[[int, CarryOut], AbstractAsyncContextManager[Sequence[Control]]]
"""Opens so many controls of one server. They do not run yet; the suite runs them.

The second argument carries out questions to the server, where this is not a member itself.
"""

_LATE: Final = 1.7  # seconds after which an answer is certainly late
_POLL: Final = 0.01


async def check_control(open_controls: OpenControls, *, most: int) -> None:
    """Check that a control keeps its contract.

    Args:
        open_controls: Opens the controls for each rule, and closes them at the end of the block.
        most: The number of members that can be opened: 1 for a control that knows no others,
            else at least 3.

    Raises:
        AssertionError: a rule is broken; the text says which.
    """
    await hold(RULES, open_controls)
    if most > 1:
        await hold(RULES_OF_MANY, open_controls)


class _Bench:
    """A member: its control, the questions that it was asked, and how it answers."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.asked: list[str] = []
        self.scope = trio.CancelScope()
        self.may_answer = trio.Event()

    async def run(self) -> None:
        with self.scope:
            await self.control.run(self._carry_out)

    async def _carry_out(self, question: Question) -> bytes:
        self.asked.append(question.method)
        if question.method == "refuse":
            raise ReplyError(ErrorCode.PERMISSION_DENIED)
        if question.method == "fail":
            raise BrokerError("it failed")
        if question.method == "wait":
            await self.may_answer.wait()
        if question.method == "back":
            (other,) = [one for one in self.control.members() if one.id == question.body.decode()]
            return await self.control.ask(other.id, Question("echo", b"there"))
        if question.method == "long":
            return bytes(int(question.body))
        return question.body + b" from " + self.control.me.id.encode()

    def echo(self, body: bytes) -> bytes:
        return body + b" from " + self.control.me.id.encode()


async def _supervise(question: Question) -> bytes:
    return question.body + b" from the server"


@asynccontextmanager
async def _running(open_controls: OpenControls, count: int) -> AsyncIterator[list[_Bench]]:
    async with open_controls(count, _supervise) as controls, open_service_nursery() as nursery:
        members = [_Bench(control) for control in controls]
        for member in members:
            nursery.start_soon(member.run)
        await _until(lambda: all(len(one.control.members()) == count for one in members))
        # A control of one knows itself before it runs.
        await wait_all_tasks_blocked()
        yield members


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for it; the rule's own deadline ends the wait."""
    while not condition():  # noqa: ASYNC110  # there is no event behind a list of members
        await trio.sleep(_POLL)


async def _error(call: Awaitable[object]) -> str:
    """The kind of the error that a call raises, a `ReplyError` with its code; else empty."""
    try:
        await call
    except ReplyError as error:
        return f"{error.code.value}"
    except RepeaterError as error:
        return type(error).__name__
    return ""


async def a_member_is_first_in_its_list(open_controls: OpenControls) -> None:
    """A member's list of members begins with itself."""
    async with _running(open_controls, 1) as (one,):
        expect("members", list(one.control.members()), [one.control.me])


async def a_question_to_itself(open_controls: OpenControls) -> None:
    """A member can ask itself, like another."""
    async with _running(open_controls, 1) as (one,):
        me = one.control.me.id
        expect("answer", await one.control.ask(me, Question("echo", b"hi")), one.echo(b"hi"))
        expect("refusal", await _error(one.control.ask(me, Question("refuse"))), "103")
        expect("failure", await _error(one.control.ask(me, Question("fail"))), "BrokerError")


async def a_question_to_the_server(open_controls: OpenControls) -> None:
    """A server answers to its id; a server of one process is its only member."""
    async with _running(open_controls, 1) as (one,):
        me = one.control.me
        wanted = one.echo(b"hi") if me.server == me.id else b"hi from the server"
        expect("answer", await one.control.ask(me.server, Question("echo", b"hi")), wanted)


async def nobody_else(open_controls: OpenControls) -> None:
    """Without others there is nobody to answer, and the question to them is not its own."""
    async with _running(open_controls, 1) as (one,):
        expect("answers", list(await one.control.ask_others(Question("echo"))), [])
        expect("questions", one.asked, [])


async def an_unknown_member(open_controls: OpenControls) -> None:
    """A question to an id that belongs to nobody raises UnknownMemberError, at once."""
    async with _running(open_controls, 1) as (one,):
        for name in ("", "nobody", one.control.me.id + "x"):
            error = await _error(one.control.ask(name, Question("echo")))
            expect(f"the error for {name!r}", error, "UnknownMemberError")


async def bounds(open_controls: OpenControls) -> None:
    """The longest question and the longest answer arrive; one byte more is refused (106)."""
    async with _running(open_controls, 1) as (one,):
        me, body = one.control.me.id, bytes(QUESTION_LIMIT)
        found = await one.control.ask(me, Question("echo", body))
        expect("length of the answer", len(found), len(one.echo(body)))
        longer = Question("echo", body + b"1")
        expect("a longer question", await _error(one.control.ask(me, longer)), "106")
        expect("a longer question to all", await _error(one.control.ask_others(longer)), "106")
        asked = await one.control.ask(me, Question("long", b"%d" % ANSWER_LIMIT))
        expect("length of the longest answer", len(asked), ANSWER_LIMIT)
        more = Question("long", b"%d" % (ANSWER_LIMIT + 1))
        expect("a longer answer", await _error(one.control.ask(me, more)), "106")


async def everybody_else_answers_once(open_controls: OpenControls) -> None:
    """A question to the others reaches each of them once, and the answers come in their order."""
    async with _running(open_controls, 3) as members:
        asker, *others = members
        wanted = {one.control.me.id: one.echo(b"hi") for one in others}
        found = await asker.control.ask_others(Question("echo", b"hi"))
        expect("answers", {one.member.id: one.answer for one in found}, wanted)
        expect("order", [one.member for one in found], list(asker.control.members())[1:])
        expect("questions", [one.asked for one in members], [[], ["echo"], ["echo"]])


async def one_of_many(open_controls: OpenControls) -> None:
    """A question to one member reaches no other."""
    async with _running(open_controls, 3) as members:
        first, second, third = members
        answer = await first.control.ask(second.control.me.id, Question("echo", b"hi"))
        expect("answer", answer, second.echo(b"hi"))
        expect("questions", [first.asked, third.asked], [[], []])


async def errors_are_answers(open_controls: OpenControls) -> None:
    """A refusal and a failure arrive as such, one member's do not hide the others' answers."""
    async with _running(open_controls, 3) as (first, second, _third):
        for method, kind in (("refuse", ReplyError), ("fail", BrokerError)):
            found = await first.control.ask_others(Question(method))
            expect("kinds", [isinstance(one.answer, kind) for one in found], [True, True])
        second_id = second.control.me.id
        expect("refusal", await _error(first.control.ask(second_id, Question("refuse"))), "103")
        expect(
            "failure", await _error(first.control.ask(second_id, Question("fail"))), "BrokerError"
        )
        many = await first.control.ask_others(Question("long", b"%d" % (ANSWER_LIMIT + 1)))
        codes = [one.answer.code for one in many if isinstance(one.answer, ReplyError)]
        expect("answers that are too long", codes, [ErrorCode.LIMIT_EXCEEDED] * 2)


async def a_late_member_is_named(open_controls: OpenControls) -> None:
    """A member that does not answer within a second is named; the others' answers are there."""
    async with _running(open_controls, 3) as (first, second, third):
        third.may_answer.set()
        began = trio.current_time()
        found = await first.control.ask_others(Question("wait", b"hi"))
        expect("in time", trio.current_time() - began < _LATE, True)
        answers = {one.member.id: one.answer for one in found}
        expect("answer of the other", answers.pop(third.control.me.id), third.echo(b"hi"))
        late = answers.pop(second.control.me.id)
        expect("the late one's is a BrokerError", isinstance(late, BrokerError), True)
        error = await _error(first.control.ask(second.control.me.id, Question("wait")))
        expect("asked alone", error, "BrokerError")
        second.may_answer.set()
        answer = await first.control.ask(second.control.me.id, Question("echo", b"ho"))
        expect("answer after the late ones", answer, second.echo(b"ho"))


async def questions_overlap(open_controls: OpenControls) -> None:
    """A question does not wait for the end of an earlier one; they begin in their order."""
    async with _running(open_controls, 3) as (first, second, _third):
        asked = second.control.me.id
        names = ["wait", *(f"number {number}" for number in range(20))]
        async with open_service_nursery() as nursery:
            for name in names:
                nursery.start_soon(first.control.ask, asked, Question(name))
                await wait_all_tasks_blocked()
            await _until(lambda: len(second.asked) == len(names))
        expect("questions", second.asked, names)


async def an_answer_may_need_a_question(open_controls: OpenControls) -> None:
    """A member that is asked may ask the asker before it answers."""
    async with _running(open_controls, 3) as (first, second, _third):
        me = first.control.me.id
        question = Question("back", me.encode())
        answer = await first.control.ask(second.control.me.id, question)
        expect("answer", answer, first.echo(b"there"))


async def a_cancelled_question(open_controls: OpenControls) -> None:
    """After a question that was cancelled, other questions get their own answers."""
    async with _running(open_controls, 3) as (first, second, _third):
        asked = second.control.me.id
        with trio.move_on_after(0.05):
            await first.control.ask(asked, Question("wait", b"1"))
        with trio.move_on_after(0.05):
            await first.control.ask_others(Question("wait", b"2"))
        second.may_answer.set()
        expect("answer", await first.control.ask(asked, Question("echo", b"3")), second.echo(b"3"))


async def a_member_leaves(open_controls: OpenControls) -> None:
    """A member that has ended is forgotten by the others; what it was asked fails in time."""
    async with _running(open_controls, 3) as (first, second, third):
        asked, began = second.control.me.id, trio.current_time()
        errors: list[str] = []

        async def ask() -> None:
            errors.append(await _error(first.control.ask(asked, Question("wait"))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await _until(lambda: second.asked == ["wait"])
            second.scope.cancel()
        expect("in time", trio.current_time() - began < _LATE, True)
        expect("the open question", errors, ["BrokerError"])
        both = (first.control, third.control)
        await _until(lambda: all(len(one.members()) == 2 for one in both))
        error = await _error(first.control.ask(asked, Question("echo")))
        expect("a question to who left", error, "UnknownMemberError")
        found = await first.control.ask_others(Question("echo"))
        expect("who answers", [one.member for one in found], [third.control.me])


RULES: Final = (
    a_member_is_first_in_its_list,
    a_question_to_itself,
    a_question_to_the_server,
    nobody_else,
    an_unknown_member,
    bounds,
)
RULES_OF_MANY: Final = (
    everybody_else_answers_once,
    one_of_many,
    errors_are_answers,
    a_late_member_is_named,
    questions_overlap,
    an_answer_may_need_a_question,
    a_cancelled_question,
    a_member_leaves,
)
