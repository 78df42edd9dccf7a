"""The contract of the control plane: how the nodes of a server, or of several, ask each other.

A node acts on its own connections by itself. For all others there are questions: carry this out on
your connections, how many are in your channels. A control carries questions and answers as bytes
and knows no method. The node above it decides what is asked, and what an answer means.

Members are nodes. Each belongs to a server: with workers the server is their supervisor, which has
no clients and keeps what the server has only once; a server of one process is its only node.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec
import trio

from repeater.errors import BrokerError, ErrorCode, RepeaterError, ReplyError

DEADLINE: Final = 1.0
"""Seconds in which another member has to answer."""

QUESTION_LIMIT: Final = 1_048_576
"""Most bytes of a question's body: twice the largest body of a request, which it may quote."""

ANSWER_LIMIT: Final = 4_194_304
"""Most bytes of an answer: 10,000 names of channels of the usual 255 characters fit."""


class Member(msgspec.Struct, frozen=True):
    """One node, as all members know it."""

    id: str
    """Never used again by another node; clients see it, so it is not a secret."""
    name: str
    """The host's name; in a cluster the node's, `node_name`."""
    server: str
    """The id by which the member's server is asked: its supervisor's. Of one process: `id`."""
    worker: int = 0
    """The number of the worker, from 1 on; 0 for a server of one process."""


class Question(msgspec.Struct, frozen=True):
    """What a member is asked: the name of a method of the node, and its arguments."""

    method: str
    body: bytes = b""


class MemberAnswer(msgspec.Struct, frozen=True):
    """What one member answered. A `BrokerError`: it did not, or failed; it may have acted."""

    member: Member
    answer: bytes | ReplyError | BrokerError


class UnknownMemberError(RepeaterError):
    """The id belongs to no member now; nothing was asked."""


CarryOut = Callable[[Member, Question], Awaitable[bytes]]
"""Carries out the question of a member, in a task of its own, and returns the answer.

May raise `ReplyError` or `BrokerError`, which become the answer. Any other error is a bug, which
its author keeps from the control. Cancelled when the control ends.
"""


class Supervision(Protocol):
    """What a supervisor does for its members' questions to the server. Called by its control."""

    async def carry_out(self, asker: Member, question: Question) -> bytes:
        """Answer a question to the server; as a `CarryOut`."""

    def told(self, teller: Member, question: Question) -> None:
        """Take what a member tells the server. Never waits or raises."""

    def left(self, member: Member) -> None:
        """Forget a member that has ended; all that it told came before. Never waits or raises."""


class SupervisorControl(Protocol):
    """The supervisor's own end of the control plane. It gets a `Supervision`."""

    @property
    def me(self) -> Member:
        """The server, as a member that asks."""

    def members(self) -> Sequence[Member]:
        """The server's members that run now."""

    async def ask_members(
        self, question: Question, *, timeout: float = DEADLINE
    ) -> Sequence[MemberAnswer]:
        """Ask all of them at the same time, as `Control.ask_others` with another deadline."""


class Control(Protocol):
    """One member's end of the control plane. Made before its node; the node runs and ends it."""

    @property
    def me(self) -> Member:
        """The member whose control this is."""

    def members(self) -> Sequence[Member]:
        """All members known now, this one first. Those of other nodes as far as they run."""

    async def run(
        self,
        carry_out: CarryOut,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be a member until cancelled: have the questions of others carried out.

        Starts when the others know this member, so that no client comes before.

        Each question is carried out once, also if its way has repeated it. Questions of one member
        begin in the order in which it asked, and none waits for the end of an earlier one. At the
        end the others stop knowing this member. Lives in the node's nursery.
        """

    async def ask(self, member: str, question: Question) -> bytes:
        """Ask one member, or a server by its `Member.server`, and return the answer.

        A member may ask itself; this has no deadline. Cancelled, the question may be carried out.

        Raises:
            UnknownMemberError: there is no such member now.
            ReplyError: the member refused, with the member's own code; 106 for a question or an
                answer that is too long.
            BrokerError: the member failed, left, or did not answer within `DEADLINE`; or too many
                questions are open. It may have acted.
        """

    async def ask_others(self, question: Question) -> Sequence[MemberAnswer]:
        """Ask all other members that are known now, at the same time; what each answered.

        Servers are not among them. Returns at the latest after `DEADLINE`, with a `BrokerError`
        for each member that did not answer, and in the order of `members`. Without other members
        the result is empty, and this is no checkpoint. Cancelled, the question may be carried out.

        Raises:
            ReplyError: the question is too long (106).
        """

    def tell(self, question: Question) -> None:
        """Tell the server something that needs no answer, behind what this member asked it before.

        Never waits. A server of one process is told nothing: its only node knows already. The
        caller bounds what it tells, as the control keeps all of it until it is sent. It is lost
        only if this member or its server ends.
        """


def check_question(question: Question) -> None:
    """Refuse a question that is too long. For implementations of `Control`.

    Raises:
        ReplyError: the body has more than `QUESTION_LIMIT` bytes (106).
    """
    if len(question.body) > QUESTION_LIMIT:
        raise ReplyError(ErrorCode.LIMIT_EXCEEDED)


async def answer_of(
    carry_out: CarryOut, asker: Member, question: Question
) -> bytes | ReplyError | BrokerError:
    """Carry out a member's question; its error is an answer, too. For implementations."""
    try:
        answer = await carry_out(asker, question)
    except (ReplyError, BrokerError) as error:
        return error
    return answer if len(answer) <= ANSWER_LIMIT else ReplyError(ErrorCode.LIMIT_EXCEEDED)


def answered(answer: bytes | ReplyError | BrokerError) -> bytes:
    """The bytes of an answer. For implementations.

    Raises:
        ReplyError, BrokerError: the member answered with this error.
    """
    if isinstance(answer, bytes):
        return answer
    raise answer
