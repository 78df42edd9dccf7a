"""The `presence` and `presence_stats` commands (protocol, sections 4.4 and 4.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.errors import BrokerError, ErrorCode, ReplyError
from repeater.protocol.centrifugo.replies import PresenceResult, PresenceStatsResult

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode


async def presence(node: ClientNode, client: Client, channel: str) -> PresenceResult:
    """Return the members of a channel.

    Raises:
        ReplyError: 108 if presence is not kept, 103 for a client without permission, 102 or 107
            for the channel's name, 100 if the store failed.
    """
    _check(node, client, channel)
    try:
        return PresenceResult(dict(await node.presence(channel)))
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


async def presence_stats(node: ClientNode, client: Client, channel: str) -> PresenceStatsResult:
    """Return the numbers of connections and users in a channel. Raises as `presence`."""
    _check(node, client, channel)
    try:
        return PresenceStatsResult(*await node.presence_stats(channel))
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


def _check(node: ClientNode, client: Client, channel: str) -> None:
    """Check in upstream's order: presence is kept, then this client has permission."""
    node.channels.check_kept("presence", channel)
    subscribed = channel in client.channels
    node.channels.check("presence", channel, client.user, subscribed=subscribed)
