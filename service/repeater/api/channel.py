"""`presence`, `presence_stats`, `history` and `history_remove`: what is kept of one channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.clients import reading
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
    reading.check_presence(node, body.channel)
    return await reading.presence(node, body.channel)


async def presence_stats(node: Node, body: ChannelBody, _budget: Budget) -> PresenceStatsResult:
    """How many are in a channel.

    Raises:
        ReplyError, BrokerError: as `presence`.
    """
    reading.check_presence(node, body.channel)
    return await reading.presence_stats(node, body.channel)


async def history(node: Node, body: HistoryRequest, _budget: Budget) -> HistoryResult:
    """Past publications, as many as asked for; a limit below 0 is for all of them.

    Raises:
        ReplyError: as `presence`, 108 where no history is kept; 112 for a position of another
            epoch.
        BrokerError: the back end failed.
    """
    reading.check_history(node, body.channel)
    return await reading.history(node, body, None)


async def history_remove(node: Node, body: ChannelBody, _budget: Budget) -> Empty:
    """Forget a channel's publications; its top and epoch stay.

    Raises:
        ReplyError, BrokerError: as `history`.
    """
    reading.check_history(node, body.channel)
    await reading.remove_history(node, body.channel)
    return _EMPTY
