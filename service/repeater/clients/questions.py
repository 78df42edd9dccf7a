"""What nodes ask each other: the table of methods that a node carries out for others.

A node acts on its own connections first, by a direct call. Then it asks the others, and each looks
the question's method up in this table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import trio

from repeater.brokers.control import (
    Control,
    Member,
    MemberAnswer,
    Question,
    UnknownMemberError,
)
from repeater.errors import BrokerError, ErrorCode, ReplyError
from repeater.failures import Failures
from repeater.json_text import JSONText
from repeater.log import get_logger

_log = get_logger("control")

Answerer = Callable[[Member, bytes], Awaitable[bytes]]
"""Carries out one method for a member: takes the question's body, returns the answer's."""


def _plain(value: Any) -> bytes:
    """What the encoder does not know: JSON text is bytes."""
    if isinstance(value, JSONText):
        return bytes(value)
    raise NotImplementedError(type(value))


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_plain)


def encoded(value: object) -> bytes:
    """The bytes of a question's or an answer's values."""
    return _encoder.encode(value)


async def guarded(answer: Awaitable[bytes], failures: Failures, who: str) -> bytes:
    """An answer that `who` makes; an error of our own costs this question only, and is noted.

    Raises:
        ReplyError: it is refused.
        BrokerError: it failed, or the question cannot be read.
    """
    try:
        return await answer
    except (ReplyError, BrokerError):
        raise
    except msgspec.DecodeError:
        raise BrokerError("the question cannot be read") from None
    except Exception as error:  # the boundary around one question
        failures.note("control", error)
        raise BrokerError(f"an error of the {who}'s own") from None


class Questions:
    """The questions of one node. Lives inside the node, whose nursery runs and ends `run`."""

    def __init__(self, control: Control, failures: Failures, errors: Counter[str]) -> None:
        """Take where errors of our own are noted, and where members that fail are counted."""
        self._control = control
        self._failures = failures
        self._errors = errors
        self._answerers: dict[str, Answerer] = {}
        self._last: dict[str, Callable[[], bytes]] = {}

    @property
    def has_supervisor(self) -> bool:
        """Whether the node is one of several of its server, which can be asked."""
        return self._control.me.server != self._control.me.id

    def register(self, method: str, answerer: Answerer) -> None:
        """Have a method carried out for others. A later one of the same name takes its place."""
        self._answerers[method] = answerer

    def at_end(self, method: str, news: Callable[[], bytes]) -> None:
        """Have the server told this, when the node ends in order."""
        self._last[method] = news

    def say_goodbye(self) -> None:
        """Tell the server what `at_end` took. Called when no client is left; idempotent."""
        last, self._last = self._last, {}
        for method, news in last.items() if self.has_supervisor else ():
            self._control.tell(Question(method, news()))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a member, and carry out what others ask, until cancelled; see `Control.run`."""
        await self._control.run(self._carry_out, task_status=task_status)

    async def _carry_out(self, asker: Member, question: Question) -> bytes:
        answerer = self._answerers.get(question.method)
        if answerer is None:  # of another version, or of an application that has not begun here
            raise ReplyError(ErrorCode.METHOD_NOT_FOUND)
        return await guarded(answerer(asker, question.body), self._failures, "member")

    async def ask_server(self, method: str, values: object = None) -> bytes:
        """Ask the supervisor, and return its answer. Only for a node that has one.

        Raises:
            ReplyError: it refused.
            BrokerError: it failed, or did not answer in time.
        """
        server = self._control.me.server
        try:
            return await self._control.ask(server, Question(method, encoded(values)))
        except UnknownMemberError:
            error = BrokerError("the supervisor does not know this worker")
        except BrokerError as one:
            error = one
        self._errors["control"] += 1
        raise error

    async def ask_others(
        self, method: str, values: object, *, optional: bool = False
    ) -> Sequence[bytes]:
        """Ask all other members the same, and return their answers.

        Without other members the result is empty; this is no checkpoint, and nothing is encoded. A
        member that does not know the method counts as one that failed, unless it is `optional`.

        Raises:
            ReplyError: one refused.
            BrokerError: one failed, or did not answer in time. The log says which.
        """
        if len(self._control.members()) == 1:
            return ()
        question = Question(method, encoded(values))
        try:
            answers = await self._control.ask_others(question)
            if optional:
                answers = [one for one in answers if not _is_unknown(one)]
            return all_of(method, answers)
        except BrokerError:
            self._errors["control"] += 1
            raise

    async def ask_those_there(self, method: str, values: object = None) -> Sequence[bytes]:
        """Ask all other members the same, and return the answers of those that answer in time.

        For what is only shown. The log says who did not answer.
        """
        answers = await self._control.ask_others(Question(method, encoded(values)))
        _log_failed(method, [one for one in answers if not isinstance(one.answer, bytes)])
        return [one.answer for one in answers if isinstance(one.answer, bytes)]


def _is_unknown(one: MemberAnswer) -> bool:
    """Whether the member does not know the method."""
    error = one.answer
    return isinstance(error, ReplyError) and error.code is ErrorCode.METHOD_NOT_FOUND


def all_of(method: str, answers: Sequence[MemberAnswer]) -> Sequence[bytes]:
    """The bytes of all answers to a question, in their order.

    Raises:
        ReplyError: one refused.
        BrokerError: one failed, or did not answer in time. The log says which.
    """
    refusals = [
        one.answer for one in answers if isinstance(one.answer, ReplyError) and not _is_unknown(one)
    ]
    failed = [one for one in answers if isinstance(one.answer, BrokerError) or _is_unknown(one)]
    _log_failed(method, failed)
    if refusals:
        raise refusals[0]
    if failed:
        raise BrokerError(f"{len(failed)} of {len(answers)} members did not carry out a call")
    return [one.answer for one in answers if isinstance(one.answer, bytes)]


def _log_failed(method: str, failed: Sequence[MemberAnswer]) -> None:
    for one in failed:
        _log.warning(
            "a member did not carry out a call",
            method=method,
            member=one.member.id,
            node=one.member.name,
            worker=one.member.worker,
            reason=str(one.answer),
        )
