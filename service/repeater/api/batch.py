"""`batch`: several calls in one body, answered item by item (protocol, section 18.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from repeater.api.answers import Failure, failed
from repeater.api.publishing import code_of
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from repeater.api.budget import Budget
    from repeater.api.method import Method
    from repeater.node import Node


class BatchBody(msgspec.Struct, frozen=True):
    """`POST /api/batch`: commands of one method each, `{"publish": {...}}`.

    `parallel` is accepted and changes nothing: on one processor the items would not be faster, and
    would lose their order.
    """

    commands: list[msgspec.Raw] = []
    parallel: bool = False


class BatchReplies(msgspec.Struct, frozen=True):
    """One reply for each item, in their order: `{"publish": {...}}` or `{"error": {...}}`."""

    replies: list[dict[str, object] | Failure]


_decode_command = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def batch(
    node: Node, body: BatchBody, budget: Budget, methods: Mapping[str, Method]
) -> BatchReplies:
    """Make several calls, one after the other; a bad item fails alone.

    If the intake stays full for the publish timeout, the remaining items do not wait for it.
    """
    replies = []
    for item in body.commands:
        replies.append(await _reply(node, item, budget, methods))
        await budget.give_way()
    return BatchReplies(replies)


async def _reply(
    node: Node, item: msgspec.Raw, budget: Budget, methods: Mapping[str, Method]
) -> dict[str, object] | Failure:
    try:
        command = _decode_command(item)
        name, argument = next(iter(command.items())) if command else ("", item)
        method = methods.get(name)
        if method is None:
            return failed(ErrorCode.METHOD_NOT_FOUND)
        return {name: await method.call(node, method.decode(argument), budget)}
    except (msgspec.DecodeError, RecursionError):
        return failed(ErrorCode.BAD_REQUEST)
    except (ReplyError, BrokerError, IntakeFullError) as error:
        return failed(code_of(error))
