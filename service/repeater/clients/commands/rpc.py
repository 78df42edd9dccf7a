"""The `rpc` command: the back end answers a client's call (protocol, section 4.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.backend.contract import why_not_json, why_unanswered
from repeater.causes import Cause, Why
from repeater.clients.payload import any_data
from repeater.errors import BrokerError, ErrorCode, ReplyError
from repeater.json_text import embedded, json_text
from repeater.protocol.centrifugo.commands import RPCRequest
from repeater.protocol.centrifugo.replies import RPCResult

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode

_NO_CALLS: Final = Why(
    Cause.NOT_OFFERED, "there is no back end that answers calls", "set callbacks.rpc_url"
)


async def rpc(node: ClientNode, client: Client, request: RPCRequest) -> RPCResult:
    """Have the back end answer a call, and return its result.

    Raises:
        ReplyError: 108 without a back end for calls, 100 if the back end is not available, or its
            result is not JSON and the client speaks JSON, or the back end's own error.
        DisconnectError: the back end disconnects the client.
    """
    backend = node.asks("rpc")
    if backend is None:
        raise ReplyError(ErrorCode.NOT_AVAILABLE, why=_NO_CALLS)
    try:
        data = await backend.rpc(client.asking(), request.method, any_data(client, request.data))
        if data and not client.codec.format.binary:
            data = json_text(data)
        return RPCResult(embedded(data))
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=why_unanswered("rpc", error)) from None
    except ValueError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=why_not_json("rpc", error)) from None
