"""`batch`: several calls in one body, answered item by item (protocol, section 18.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.api.answers import Failure, failed
from repeater.api.publishing import code_of
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
BATCH_AROUND: Final = 4
"""Levels of a batch around an item's data: `{"commands":[{"publish":{"data":`."""

_decode_command = reader(dict[str, msgspec.Raw], around=2)


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
        for name, argument in _decode_command(bytes(item)).items():
            if name in methods and argument != _NULL:
                method = methods[name]
                body = method.decode(bytes(argument))
                return {name: await method.call(node, body, budget)}
    except msgspec.DecodeError:
        return failed(ErrorCode.BAD_REQUEST)
    except (ReplyError, BrokerError, IntakeFullError) as error:
        return failed(code_of(error))
    return failed(ErrorCode.METHOD_NOT_FOUND)
