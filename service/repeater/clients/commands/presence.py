"""The `presence` and `presence_stats` commands (protocol, sections 4.4 and 4.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.errors import BrokerError, ErrorCode, ReplyError
from repeater.protocol.centrifugo.replies import PresenceResult, PresenceStatsResult

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode


async def presence(node: ClientNode, client: Client, channel: str) -> PresenceResult:
    """Who is in a channel.

    Raises:
        ReplyError: 108 where presence is not kept, 103 for a client that may not know, 102, 107,
            or 100 when the store failed.
    """
    _check(node, client, channel)
    try:
        return PresenceResult(dict(await node.presence(channel)))
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


async def presence_stats(node: ClientNode, client: Client, channel: str) -> PresenceStatsResult:
    """How many are in a channel. Raises as `presence`."""
    _check(node, client, channel)
    try:
        return PresenceStatsResult(*await node.presence_stats(channel))
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


def _check(node: ClientNode, client: Client, channel: str) -> None:
    """Upstream's order: whether presence is kept, then whether this client may know."""
    node.channels.check_kept("presence", channel)
    subscribed = channel in client.channels
    node.channels.check("presence", channel, client.user, subscribed=subscribed)
