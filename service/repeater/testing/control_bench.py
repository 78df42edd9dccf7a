"""What the rules of a control work on: its members, and what the server hears."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import trio

from repeater.brokers.control import (
    Control,
    Member,
    MemberAnswer,
    Question,
    Supervision,
    SupervisorControl,
    UnknownMemberError,
)
from repeater.errors import BrokerError, ErrorCode, ReplyError, open_service_nursery

Controls = tuple[Sequence[Control], SupervisorControl | None]
OpenControls = Callable[[int, Supervision], AbstractAsyncContextManager[Controls]]
"""Opens so many controls of one server. They do not run yet; the suite runs them.

With them comes the server's own, which gets the `Supervision`; None for a server of one process.
"""

LATE: Final = 1.7  # seconds after which an answer is certainly late
_POLL: Final = 0.01


class ControlBench:
    """A member: its control, the questions that it was asked, and how it answers."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.asked: list[str] = []
        self.askers: list[Member] = []
        self.scope = trio.CancelScope()
        self.may_answer = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Be a member until `scope` is cancelled."""
        with self.scope:
            await self.control.run(self._carry_out, task_status=task_status)

    async def _carry_out(self, asker: Member, question: Question) -> bytes:
        self.asked.append(question.method)
        self.askers.append(asker)
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
        """What this member answers to a question with this body."""
        return body + b" from " + self.control.me.id.encode()


class ServerBench:
    """Implements `Supervision`: what happened, in its order."""

    def __init__(self) -> None:
        self.happened: list[tuple[str, Member, str]] = []
        self.control: SupervisorControl | None = None

    async def carry_out(self, asker: Member, question: Question) -> bytes:
        """Note the question, and answer it."""
        self.happened.append(("asked", asker, question.method))
        if question.method == "refuse":
            raise ReplyError(ErrorCode.PERMISSION_DENIED)
        if question.method == "wait":
            await trio.sleep_forever()
        if question.method == "all":
            found = await self.ask_members(Question("echo", b"hi"))
            return b",".join(one.answer for one in found if isinstance(one.answer, bytes))
        return question.body + b" from the server"

    async def ask_members(
        self, question: Question, *, timeout: float = 1.0
    ) -> Sequence[MemberAnswer]:
        """Ask the members."""
        assert self.control is not None
        return await self.control.ask_members(question, timeout=timeout)

    def told(self, teller: Member, question: Question) -> None:
        """Note it."""
        self.happened.append(("told", teller, question.method))

    def left(self, member: Member) -> None:
        """Note it."""
        self.happened.append(("left", member, ""))


@asynccontextmanager
async def running(open_controls: OpenControls, count: int) -> AsyncIterator[list[ControlBench]]:
    """Members that run and know each other, for as long as the block lasts."""
    async with with_server(open_controls, count) as (members, _server):
        yield members


@asynccontextmanager
async def with_server(
    open_controls: OpenControls, count: int
) -> AsyncIterator[tuple[list[ControlBench], ServerBench]]:
    """The same, and their server."""
    server = ServerBench()
    async with (
        open_controls(count, server) as (controls, server.control),
        open_service_nursery() as nursery,
    ):
        members = [ControlBench(control) for control in controls]
        for member in members:
            await nursery.start(member.run)
        await until(lambda: all(len(one.control.members()) == count for one in members))
        yield members, server


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; the rule's own deadline ends the wait."""
    while not condition():  # noqa: ASYNC110  # there is no event behind a list of members
        await trio.sleep(_POLL)


async def error_of(call: Awaitable[object]) -> str:
    """The kind of the error that a call raises: the code of a `ReplyError`, else its class."""
    try:
        await call
    except ReplyError as error:
        return f"{error.code.value}"
    except (UnknownMemberError, BrokerError) as error:
        return "BrokerError" if isinstance(error, BrokerError) else "UnknownMemberError"
    return "nothing"
