"""`rpc`: calls of extensions of the server. This server has no extensions, so every call fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.causes import Cause, Why
from repeater.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node


_NO_EXTENSIONS: Final = Why(
    Cause.METHOD, "method: this server has no extensions, so it has no such method"
)


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
    if not body.method:
        raise ReplyError(ErrorCode.BAD_REQUEST)  # the caller of a method says what is missing
    raise ReplyError(ErrorCode.METHOD_NOT_FOUND, why=_NO_EXTENSIONS)
