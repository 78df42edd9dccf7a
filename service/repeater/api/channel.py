"""`presence`, `presence_stats`, `history` and `history_remove`: what is kept of one channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.clients.commands.history import read
from repeater.protocol.centrifugo.commands import HistoryRequest
from repeater.protocol.centrifugo.replies import (
    Empty,
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
)

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node

_EMPTY: Final = Empty()


class ChannelBody(msgspec.Struct, frozen=True):
    """A call about one channel and nothing more."""

    channel: str = ""


async def presence(node: Node, body: ChannelBody, _budget: Budget) -> PresenceResult:
    """Who is in a channel.

    Raises:
        ReplyError: no channel or a wrong name (107), an unknown namespace (102), or one where
            presence is not kept (108).
        BrokerError: the store failed.
    """
    return PresenceResult(dict(await node.presence(body.channel)))


async def presence_stats(node: Node, body: ChannelBody, _budget: Budget) -> PresenceStatsResult:
    """How many are in a channel.

    Raises:
        ReplyError, BrokerError: as `presence`.
    """
    return PresenceStatsResult(*await node.presence_stats(body.channel))


async def history(node: Node, body: HistoryRequest, _budget: Budget) -> HistoryResult:
    """Past publications, as many as asked for; a limit below 0 is for all of them.

    Raises:
        ReplyError: as `presence`, 108 where no history is kept; 112 for a position of another
            epoch.
        BrokerError: the back end failed.
    """
    return await read(node, body, None if body.limit < 0 else body.limit)


async def history_remove(node: Node, body: ChannelBody, _budget: Budget) -> Empty:
    """Forget a channel's publications; its top and epoch stay.

    Raises:
        ReplyError, BrokerError: as `history`.
    """
    await node.remove_history(body.channel)
    return _EMPTY
