"""`rpc`: calls of extensions of the server. This server has no extensions, so every call fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from repeater.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node


class RPCBody(msgspec.Struct, frozen=True):
    """`POST /api/rpc`."""

    method: str = ""
    params: msgspec.Raw = msgspec.Raw()


class RPCResult(msgspec.Struct, frozen=True):
    """The result that an extension would return."""

    data: msgspec.Raw


async def rpc(_node: Node, body: RPCBody, _budget: Budget) -> RPCResult:
    """Fail, as upstream does for a method without an extension (protocol, section 18.2).

    Raises:
        ReplyError: always: 104, or 107 without a method.
    """
    raise ReplyError(ErrorCode.METHOD_NOT_FOUND if body.method else ErrorCode.BAD_REQUEST)
