"""`rpc`: calls of extensions of the server, of which there are none."""

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
    """What an extension would answer."""

    data: msgspec.Raw


async def rpc(_node: Node, body: RPCBody, _budget: Budget) -> RPCResult:
    """Fail, as upstream does where nobody has registered the method (protocol, section 18.2).

    Raises:
        ReplyError: 104; without a method 107.
    """
    raise ReplyError(ErrorCode.METHOD_NOT_FOUND if body.method else ErrorCode.BAD_REQUEST)
