"""`batch`: several calls in one body, answered item by item (protocol, section 18.2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.api.answers import Failure
from repeater.api.publishing import (
    IN_FLIGHT,
    published,
    responses,
    submit,
    submit_each,
)
from repeater.api.refusals import item_failed, no_method, reply_error
from repeater.api.wrong_body import unreadable
from repeater.brokers.receipts import Receipt
from repeater.causes import Cause, Why
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError
from repeater.protocol.json_reader import reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from repeater.api.budget import Budget
    from repeater.api.method import Method
    from repeater.node import Node


class BatchBody(msgspec.Struct, frozen=True):
    """`POST /api/batch`: commands of one method each, `{"publish": {...}}`.

    Other fields of a command are ignored.
    `parallel` is accepted and changes nothing: on one processor the items would not be faster, and
    would lose their order.
    """

    commands: list[msgspec.Raw] = []
    parallel: bool = False


class BatchReplies(msgspec.Struct, frozen=True):
    """One reply for each item, in their order: `{"publish": {...}}` or `{"error": {...}}`."""

    replies: list[dict[str, object] | Failure]


_NULL: Final = msgspec.Raw(b"null")
_NO_NAME: Final = Why(
    Cause.METHOD, "the command names no method", 'a command is like {"publish": {...}}'
)
_WHOLE: Final = "the command"
BATCH_AROUND: Final = 4
"""Levels of a batch around an item's data: `{"commands":[{"publish":{"data":`."""

_decode_command = reader(dict[str, msgspec.Raw], around=2)


async def batch(
    node: Node, body: BatchBody, budget: Budget, methods: Mapping[str, Method]
) -> BatchReplies:
    """Make several calls, one after the other; a bad item fails alone.

    Events are submitted one after the other, and the back end's answers to them awaited together:
    before the next item of another method, and at the end. So the order of effects is the order of
    the items, and a back end that waits costs one wait and not one for each event. If the intake
    stays full for the publish timeout, the remaining items do not wait for it.
    """
    calls = _Calls(node, budget, methods)
    for item in body.commands:
        calls.replies.append(await calls.reply(item))
        await budget.give_way()
    await calls.finish()
    return BatchReplies(calls.replies)


class _Open(msgspec.Struct, frozen=True):
    """A reply that waits for the back end's answers."""

    number: int
    name: str
    result: Callable[[], Awaitable[object]]


class _Calls:
    """The calls of one batch and their replies. Lives inside `batch`."""

    def __init__(self, node: Node, budget: Budget, methods: Mapping[str, Method]) -> None:
        self._node = node
        self._budget = budget
        self._methods = methods
        self._open: list[_Open] = []
        self._answers = 0
        self.replies: list[dict[str, object] | Failure] = []

    async def reply(self, item: msgspec.Raw) -> dict[str, object] | Failure:
        """Make one call. The reply is empty if the back end has not answered yet."""
        name, text = "", bytes(item)
        try:
            command = _decode_command(text)
            for name, argument in command.items():
                if name in self._methods and argument != _NULL:
                    text = bytes(argument)
                    return await self._call(name, self._methods[name], text)
        except msgspec.DecodeError as error:
            why = unreadable(error, text, _WHOLE)
            return self._failed(name, ReplyError(ErrorCode.BAD_REQUEST, why=why))
        except ReplyError as error:
            return self._failed(name, error)
        unknown = [name for name in command if name not in self._methods]
        why = no_method(unknown[-1], self._methods) if unknown else _NO_NAME
        return self._failed("", ReplyError(ErrorCode.METHOD_NOT_FOUND, why=why))

    def _failed(self, name: str, error: ReplyError, number: int = -1) -> Failure:
        """The answer to a command that failed, by default to the present one."""
        at = f"commands[{len(self.replies) if number < 0 else number}]"
        return item_failed(self._node, self._budget, name or "batch", error, at)

    async def _call(self, name: str, method: Method, argument: bytes) -> dict[str, object]:
        """Make a call. Every failure of it is a `ReplyError`."""
        body = method.decode(argument)
        if self._answers >= IN_FLIGHT:
            await self.finish()
        try:
            if name == "publish":
                answer = await submit(self._node, body, body.channel, self._budget)
                if isinstance(answer, Receipt):
                    result = partial(published, self._node, answer, self._budget)
                    return await self._leave_open(name, 1, result)
                return {name: {} if answer is None else answer}
            if name == "broadcast":
                submitted = await submit_each(self._node, body, self._budget)
                receipts = sum(isinstance(one, Receipt) for one in submitted)
                together = partial(responses, self._node, submitted, self._budget)
                return await self._leave_open(name, receipts, together)
            await self.finish()
            return {name: await method.call(self._node, body, self._budget)}
        except (ReplyError, BrokerError, IntakeFullError) as fault:
            raise reply_error(fault, method, body, argument) from None

    async def _leave_open(
        self, name: str, answers: int, result: Callable[[], Awaitable[object]]
    ) -> dict[str, object]:
        """The result if no answer is awaited for it, else nothing yet."""
        if not answers:
            return {name: await result()}
        self._answers += answers
        self._open.append(_Open(len(self.replies), name, result))
        return {}

    async def finish(self) -> None:
        """Wait for the answers to all events, and fill in the replies."""
        waiting, self._open, self._answers = self._open, [], 0
        for one in waiting:
            try:
                self.replies[one.number] = {one.name: await one.result()}
            except (ReplyError, BrokerError) as error:
                self.replies[one.number] = self._failed(one.name, reply_error(error), one.number)
            await self._budget.give_way()
