"""The `presence` and `presence_stats` commands (protocol, sections 4.4 and 4.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.causes import Cause, Why
from repeater.errors import BrokerError, ErrorCode, ReplyError
from repeater.protocol.centrifugo.replies import PresenceResult, PresenceStatsResult

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.publication import ClientInfo

_TOO_MANY: Final = Why(
    Cause.LIMIT, "the channel has more members than one answer holds", "ask for presence_stats"
)
_MEMBER_SIZE: Final = 130
"""The bytes of a member without its user and infos: twice a client's id, and names of fields."""


async def presence(node: ClientNode, client: Client, channel: str) -> PresenceResult:
    """Return the members of a channel.

    Raises:
        ReplyError: 108 if presence is not kept, 103 for a client without permission, 102 or 107
            for the channel's name, 100 if the store failed, 106 if the members take more than
            half an outbox, some 3,500 of them: `presence_stats` counts them.
    """
    await _check(node, client, channel)
    try:
        return await read(node, channel, node.options.outbox_limit // 2)
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=error.why()) from None


async def read(node: ClientNode, channel: str, limit: int) -> PresenceResult:
    """Return the members of a channel, in an answer of about `limit` bytes at most.

    Raises:
        ReplyError: as `Node.presence`; 106 if the members do not fit.
        BrokerError: as `Node.presence`.
    """
    members = await node.presence(channel)
    # Counted before it is summed up, so that the sum has an end.
    if len(members) * _MEMBER_SIZE > limit or sum(map(_size, members.values())) > limit:
        raise ReplyError(ErrorCode.LIMIT_EXCEEDED, why=_TOO_MANY)
    return PresenceResult(dict(members))


def _size(info: ClientInfo) -> int:
    infos = len(info.conn_info or b"") + len(info.chan_info or b"")
    return _MEMBER_SIZE + len(info.user) + infos


async def presence_stats(node: ClientNode, client: Client, channel: str) -> PresenceStatsResult:
    """Return the numbers of connections and users in a channel. Raises as `presence`."""
    await _check(node, client, channel)
    try:
        return PresenceStatsResult(*await node.presence_stats(channel))
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=error.why()) from None


async def _check(node: ClientNode, client: Client, channel: str) -> None:
    """Check in upstream's order: presence is kept, then this client has permission.

    The client itself, if it has just unsubscribed, is not present any more.
    """
    node.channels.check_kept("presence", channel)
    subscribed = channel in client.channels
    node.channels.check("presence", channel, client.user, subscribed=subscribed)
    node.attendance.depart(client.id, channel)
