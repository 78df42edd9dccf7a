"""The conformance suite of `Control`."""

from __future__ import annotations

from typing import Final

import trio
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.control import ANSWER_LIMIT, QUESTION_LIMIT, Question
from repeater.errors import BrokerError, ErrorCode, ReplyError, open_service_nursery
from repeater.testing.control_bench import LATE, OpenControls, error_of, running, until, with_server
from repeater.testing.rules import expect, hold


async def check_control(open_controls: OpenControls, *, most: int, has_server: bool = True) -> None:
    """Check that a control keeps its contract.

    Args:
        open_controls: Opens the controls for each rule, and closes them at the end of the block.
        most: The number of members that can be opened: 1 for a control that knows no others,
            else at least 3.
        has_server: Whether several members have a server. Else each is a server of its own.

    Raises:
        AssertionError: a rule is broken; the text says which.
    """
    await hold(RULES, open_controls)
    if most > 1:
        await hold(RULES_OF_MANY, open_controls)
    if most > 1 and has_server:
        await hold(RULES_OF_A_SERVER, open_controls)


async def a_member_is_first_in_its_list(open_controls: OpenControls) -> None:
    """A member's list of members begins with itself."""
    async with running(open_controls, 1) as (one,):
        expect("members", list(one.control.members()), [one.control.me])


async def a_question_to_itself(open_controls: OpenControls) -> None:
    """A member can ask itself, like another."""
    async with running(open_controls, 1) as (one,):
        me = one.control.me.id
        expect("answer", await one.control.ask(me, Question("echo", b"hi")), one.echo(b"hi"))
        expect("refusal", await error_of(one.control.ask(me, Question("refuse"))), "103")
        expect("failure", await error_of(one.control.ask(me, Question("fail"))), "BrokerError")


async def a_question_to_the_server(open_controls: OpenControls) -> None:
    """A server answers to its id; a server of one process is its only member."""
    async with running(open_controls, 1) as (one,):
        me = one.control.me
        wanted = one.echo(b"hi") if me.server == me.id else b"hi from the server"
        expect("answer", await one.control.ask(me.server, Question("echo", b"hi")), wanted)
        error = await error_of(one.control.ask(me.server, Question("refuse")))
        expect("refusal", error, "103")


async def nobody_else(open_controls: OpenControls) -> None:
    """Without others there is nobody to answer, and the question to them is not its own."""
    async with running(open_controls, 1) as (one,):
        expect("answers", list(await one.control.ask_others(Question("echo"))), [])
        expect("questions", one.asked, [])


async def an_unknown_member(open_controls: OpenControls) -> None:
    """A question to an id that belongs to nobody raises UnknownMemberError, at once."""
    async with running(open_controls, 1) as (one,):
        for name in ("", "nobody", one.control.me.id + "x"):
            error = await error_of(one.control.ask(name, Question("echo")))
            expect(f"the error for {name!r}", error, "UnknownMemberError")


async def bounds(open_controls: OpenControls) -> None:
    """The longest question and the longest answer arrive; one byte more is refused (106)."""
    async with running(open_controls, 1) as (one,):
        me, body = one.control.me.id, bytes(QUESTION_LIMIT)
        found = await one.control.ask(me, Question("echo", body))
        expect("length of the answer", len(found), len(one.echo(body)))
        longer = Question("echo", body + b"1")
        expect("a longer question", await error_of(one.control.ask(me, longer)), "106")
        expect("a longer question to all", await error_of(one.control.ask_others(longer)), "106")
        asked = await one.control.ask(me, Question("long", b"%d" % ANSWER_LIMIT))
        expect("length of the longest answer", len(asked), ANSWER_LIMIT)
        more = Question("long", b"%d" % (ANSWER_LIMIT + 1))
        expect("a longer answer", await error_of(one.control.ask(me, more)), "106")


async def everybody_else_answers_once(open_controls: OpenControls) -> None:
    """A question to the others reaches each of them once, and the answers come in their order."""
    async with running(open_controls, 3) as members:
        asker, *others = members
        wanted = {one.control.me.id: one.echo(b"hi") for one in others}
        found = await asker.control.ask_others(Question("echo", b"hi"))
        expect("answers", {one.member.id: one.answer for one in found}, wanted)
        expect("order", [one.member for one in found], list(asker.control.members())[1:])
        expect("questions", [one.asked for one in members], [[], ["echo"], ["echo"]])


async def one_of_many(open_controls: OpenControls) -> None:
    """A question to one member reaches no other."""
    async with running(open_controls, 3) as members:
        first, second, third = members
        answer = await first.control.ask(second.control.me.id, Question("echo", b"hi"))
        expect("answer", answer, second.echo(b"hi"))
        expect("questions", [first.asked, third.asked], [[], []])
        expect("who asked", second.askers, [first.control.me])


async def errors_are_answers(open_controls: OpenControls) -> None:
    """A refusal and a failure arrive as such, one member's do not hide the others' answers."""
    async with running(open_controls, 3) as (first, second, _third):
        for method, kind in (("refuse", ReplyError), ("fail", BrokerError)):
            found = await first.control.ask_others(Question(method))
            expect("kinds", [isinstance(one.answer, kind) for one in found], [True, True])
        second_id = second.control.me.id
        expect("refusal", await error_of(first.control.ask(second_id, Question("refuse"))), "103")
        expect(
            "failure", await error_of(first.control.ask(second_id, Question("fail"))), "BrokerError"
        )
        many = await first.control.ask_others(Question("long", b"%d" % (ANSWER_LIMIT + 1)))
        codes = [one.answer.code for one in many if isinstance(one.answer, ReplyError)]
        expect("answers that are too long", codes, [ErrorCode.LIMIT_EXCEEDED] * 2)


async def a_late_member_is_named(open_controls: OpenControls) -> None:
    """A member that does not answer within a second is named; the others' answers are there."""
    async with running(open_controls, 3) as (first, second, third):
        third.may_answer.set()
        began = trio.current_time()
        found = await first.control.ask_others(Question("wait", b"hi"))
        expect("in time", trio.current_time() - began < LATE, True)
        answers = {one.member.id: one.answer for one in found}
        expect("answer of the other", answers.pop(third.control.me.id), third.echo(b"hi"))
        late = answers.pop(second.control.me.id)
        expect("the late one's is a BrokerError", isinstance(late, BrokerError), True)
        error = await error_of(first.control.ask(second.control.me.id, Question("wait")))
        expect("asked alone", error, "BrokerError")
        second.may_answer.set()
        answer = await first.control.ask(second.control.me.id, Question("echo", b"ho"))
        expect("answer after the late ones", answer, second.echo(b"ho"))


async def questions_overlap(open_controls: OpenControls) -> None:
    """A question does not wait for the end of an earlier one; they begin in their order."""
    async with running(open_controls, 3) as (first, second, _third):
        asked = second.control.me.id
        names = ["wait", *(f"number {number}" for number in range(20))]
        async with open_service_nursery() as nursery:
            for name in names:
                nursery.start_soon(first.control.ask, asked, Question(name))
                await wait_all_tasks_blocked()
            await until(lambda: len(second.asked) == len(names))
        expect("questions", second.asked, names)


async def an_answer_may_need_a_question(open_controls: OpenControls) -> None:
    """A member that is asked may ask the asker before it answers."""
    async with running(open_controls, 3) as (first, second, _third):
        me = first.control.me.id
        question = Question("back", me.encode())
        answer = await first.control.ask(second.control.me.id, question)
        expect("answer", answer, first.echo(b"there"))


async def a_cancelled_question(open_controls: OpenControls) -> None:
    """After a question that was cancelled, other questions get their own answers."""
    async with running(open_controls, 3) as (first, second, _third):
        asked = second.control.me.id
        with trio.move_on_after(0.05):
            await first.control.ask(asked, Question("wait", b"1"))
        with trio.move_on_after(0.05):
            await first.control.ask_others(Question("wait", b"2"))
        second.may_answer.set()
        expect("answer", await first.control.ask(asked, Question("echo", b"3")), second.echo(b"3"))


async def a_member_leaves(open_controls: OpenControls) -> None:
    """A member that has ended is forgotten by the others; what it was asked fails in time."""
    async with running(open_controls, 3) as (first, second, third):
        asked, began = second.control.me.id, trio.current_time()
        errors: list[str] = []

        async def ask() -> None:
            errors.append(await error_of(first.control.ask(asked, Question("wait"))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: second.asked == ["wait"])
            second.scope.cancel()
        expect("in time", trio.current_time() - began < LATE, True)
        expect("the open question", errors, ["BrokerError"])
        both = (first.control, third.control)
        await until(lambda: all(len(one.members()) == 2 for one in both))
        error = await error_of(first.control.ask(asked, Question("echo")))
        expect("a question to who left", error, "UnknownMemberError")
        found = await first.control.ask_others(Question("echo"))
        expect("who answers", [one.member for one in found], [third.control.me])


async def the_server_is_told(open_controls: OpenControls) -> None:
    """A server hears what a member asks and tells in its order, and of a member's end behind it."""
    async with with_server(open_controls, 3) as ((first, second, _third), server):
        me, other = first.control.me, second.control.me
        for method in ("one", "two", "three"):
            first.control.tell(Question(method))
        await first.control.ask(me.server, Question("four"))
        told = [("told", me, "one"), ("told", me, "two"), ("told", me, "three")]
        expect("what happened", server.happened, [*told, ("asked", me, "four")])
        del server.happened[:]
        second.control.tell(Question("last"))
        second.scope.cancel()
        await until(lambda: len(server.happened) == 2)
        expect("at the end", server.happened, [("told", other, "last"), ("left", other, "")])


async def the_server_asks(open_controls: OpenControls) -> None:
    """A server may ask its members, also before it answers one of them; the late ones are named."""
    async with with_server(open_controls, 3) as (members, server):
        first, second, third = members
        wanted = b",".join(one.echo(b"hi") for one in members)
        answer = await first.control.ask(first.control.me.server, Question("all"))
        expect("answers", sorted(answer.split(b",")), sorted(wanted.split(b",")))
        for one in (first, third):
            one.may_answer.set()
        began = trio.current_time()
        found = await server.ask_members(Question("wait", b"hi"), timeout=0.2)
        expect("in time", trio.current_time() - began < LATE, True)
        errors = [one.member for one in found if isinstance(one.answer, BrokerError)]
        expect("the late one", errors, [second.control.me])


async def a_late_server(open_controls: OpenControls) -> None:
    """A server that does not answer within a second has failed."""
    async with running(open_controls, 3) as (first, *_others):
        began = trio.current_time()
        error = await error_of(first.control.ask(first.control.me.server, Question("wait")))
        expect("the error", error, "BrokerError")
        expect("in time", trio.current_time() - began < LATE, True)


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
RULES_OF_A_SERVER: Final = (
    the_server_is_told,
    the_server_asks,
    a_late_server,
)
