"""The table of methods, and how one call becomes one answer."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from repeater.api.answers import (
    INTAKE_FULL,
    SHUTTING_DOWN,
    CallRefusal,
    answer_error,
    answer_result,
    encode,
)
from repeater.api.batch import BATCH_AROUND, BatchBody, batch
from repeater.api.budget import Budget
from repeater.api.channel import (
    ChannelBody,
    history,
    history_remove,
    presence,
    presence_stats,
)
from repeater.api.channel_info import ChannelInfoBody, channel_info
from repeater.api.connections import (
    DisconnectBody,
    RefreshBody,
    SubscribeBody,
    UnsubscribeBody,
    disconnect,
    refresh,
    subscribe,
    unsubscribe,
)
from repeater.api.denying import (
    BlockUserBody,
    RevokeTokenBody,
    UnblockUserBody,
    block_user,
    revoke_token,
    unblock_user,
)
from repeater.api.method import Method, method
from repeater.api.overview import ChannelsBody, InfoBody, channels, info
from repeater.api.publishing import BroadcastBody, PublishBody, broadcast, publish
from repeater.api.refusals import body_of, note, note_refusal, reply_error
from repeater.api.rpc import RPCBody, rpc
from repeater.api.wrong_body import not_json, wrong_shape
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError
from repeater.protocol.centrifugo.commands import HistoryRequest
from repeater.protocol.http.answer import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from repeater.node import Node

BODY_TIMEOUT: Final = 30.0
"""Seconds from a request's head to the end of its body. A stream's body has no such limit."""

LATE_BODY: Final = 0.5
"""Seconds of a shutdown in which the rest of a request's body may come."""

COMMANDS: Final[Mapping[str, Method]] = {
    "publish": method(PublishBody, publish, needs=("channel",)),
    "broadcast": method(BroadcastBody, broadcast, needs=("channels",)),
    "subscribe": method(SubscribeBody, subscribe, needs=("channel",)),
    "unsubscribe": method(UnsubscribeBody, unsubscribe),
    "disconnect": method(DisconnectBody, disconnect),
    "refresh": method(RefreshBody, refresh),
    "presence": method(ChannelBody, presence, needs=("channel",)),
    "presence_stats": method(ChannelBody, presence_stats, needs=("channel",)),
    "history": method(HistoryRequest, history, needs=("channel",)),
    "history_remove": method(ChannelBody, history_remove, needs=("channel",)),
    "channels": method(ChannelsBody, channels),
    "channel_info": method(ChannelInfoBody, channel_info, needs=("channel",)),
    "info": method(InfoBody, info),
    "rpc": method(RPCBody, rpc, needs=("method",)),
    "block_user": method(BlockUserBody, block_user, needs=("user",)),
    "unblock_user": method(UnblockUserBody, unblock_user, needs=("user",)),
    "revoke_token": method(RevokeTokenBody, revoke_token),
}
"""The methods that a batch may call."""

METHODS: Final[Mapping[str, Method]] = {
    **COMMANDS,
    "batch": method(
        BatchBody,
        partial(batch, methods=COMMANDS),
        wrapped=False,
        needs=("commands",),
        around=BATCH_AROUND,
    ),
}
"""The methods that may be called as `POST /api/<name>`."""


class _NotJsonError(Exception):
    """The body is not JSON text; `refusal` says why."""

    def __init__(self, refusal: CallRefusal) -> None:
        super().__init__(refusal.why.text)
        self.refusal = refusal


async def call(node: Node, name: str, text: bytes, *, transport_mode: bool = False) -> Answer:
    """Make one call of a known method.

    No body makes it raise. A refused call is logged and counted here. Checkpoints only when it
    waits, or when it has used the processor for long. Cancelled, the events published so far stay
    published.
    """
    chosen = METHODS[name]
    try:
        result = await chosen.call(node, _parse(chosen, text), Budget(node.options.fanout_budget))
    except _NotJsonError as error:
        note_refusal(node, name, error.refusal)
        return error.refusal.answer(transport_mode=transport_mode)
    except (ReplyError, BrokerError) as error:
        body = body_of(chosen, text)  # once more: a call that succeeds pays nothing for this
        told = reply_error(error, chosen, body, text)
        note(node, name, told, body)
        return answer_error(told, transport_mode=transport_mode)
    except IntakeFullError:
        refusal = SHUTTING_DOWN if node.draining else INTAKE_FULL
        note_refusal(node, name, refusal)
        return refusal.answer(transport_mode=transport_mode)
    return answer_result(result) if chosen.wrapped else Answer(200, encode(result))


def _parse(chosen: Method, text: bytes) -> Any:
    """Decode a body.

    Raises:
        ReplyError: the JSON text has another shape (107).
        _NotJsonError: the text is not UTF-8, not JSON, or nested too deeply to decode.
    """
    try:
        return chosen.decode(text)
    except msgspec.ValidationError as error:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=wrong_shape(error)) from None
    except msgspec.DecodeError as error:
        refusal = CallRefusal(HTTPStatus.BAD_REQUEST, not_json(error, text))
        raise _NotJsonError(refusal) from None
