"""The commands that ask or tell something, and change no subscription.

Publish, presence, presence_stats and history (protocol, sections 4.3 to 4.6): whether the channel
has it, whether this client may, and then `reading`. Calls (4.7) are the back end's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.access.channel_rules import Action
from repeater.access.grants import PublicationGrant
from repeater.clients import reading
from repeater.errors import (
    BAD_REQUEST,
    BrokerError,
    DisconnectError,
    ErrorCode,
    IntakeFullError,
    ReplyError,
)
from repeater.protocol.centrifugo.commands import HistoryRequest, PublishRequest, RPCRequest
from repeater.protocol.centrifugo.replies import (
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    RPCResult,
)
from repeater.publication import ClientInfo, Publication, embedded

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.options import ChannelOptions


async def publish(client: Client, request: PublishRequest) -> None:
    """Publish in the client's name. Waits for room, which is how back-pressure reaches it.

    Raises:
        ReplyError: it may not (103), the request is wrong (102, 107, 108), later (111, 100), or
            what the back end answered.
        DisconnectError: no channel is named, or the back end says so.
    """
    if not request.channel:
        raise DisconnectError(BAD_REQUEST)
    if request.type:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    grant = await _publish_grant(client, request)
    subscription = client.channels.get(request.channel)
    if subscription is not None:
        info = subscription.info()
    else:
        info = ClientInfo(client.user, client.id, embedded(client.grant.info))
    data = bytes(request.data) if grant.data is None else grant.data
    publication = Publication(request.channel, data, info=info, tags=grant.tags)
    try:
        await client.node.publish(publication, skip_history=grant.skip_history)
    except IntakeFullError:
        raise ReplyError(ErrorCode.TOO_MANY_REQUESTS) from None
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


async def _publish_grant(client: Client, request: PublishRequest) -> PublicationGrant:
    """What the back end says of it, where it is asked; else the options (section 11)."""
    options = client.node.channels.options(request.channel)
    if not options.publish_proxy_enabled:
        _permit(client, "publish", request.channel)
        return PublicationGrant()
    backend = client.node.asks("publish")
    if backend is None:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    if not request.data:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    try:
        return await backend.publish(client.caller(), request.channel, bytes(request.data))
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


async def rpc(client: Client, request: RPCRequest) -> RPCResult:
    """Have the back end answer a call.

    Raises:
        ReplyError: 108 without a back end for it, 100 when it can't be had, or what it answered.
        DisconnectError: the back end says so.
    """
    backend = client.node.asks("rpc")
    if backend is None:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    try:
        data = await backend.rpc(client.caller(), request.method, bytes(request.data))
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None
    return RPCResult(embedded(data))


async def presence(client: Client, channel: str) -> PresenceResult:
    """Who is in a channel.

    Raises:
        ReplyError: 108 where presence is not kept, 103 for who may not know, 102, 107, 100.
    """
    reading.check_presence(client.node, channel)
    _permit(client, "presence", channel)
    try:
        return await reading.presence(client.node, channel)
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


async def presence_stats(client: Client, channel: str) -> PresenceStatsResult:
    """How many are in a channel. Raises as `presence`."""
    reading.check_presence(client.node, channel)
    _permit(client, "presence", channel)
    try:
        return await reading.presence_stats(client.node, channel)
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


async def history(client: Client, request: HistoryRequest) -> HistoryResult:
    """Past publications, at most the limit for clients, and the stream's top.

    Raises:
        ReplyError: 108 without history, 103 for who may not read it, 112 for a position of
            another epoch, 107 for a reverse read from before the first publication.
    """
    reading.check_history(client.node, request.channel)
    _permit(client, "history", request.channel)
    try:
        return await reading.history(client.node, request, client.node.options.history_limit)
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


def _permit(client: Client, action: Action, channel: str) -> ChannelOptions:
    subscribed = channel in client.channels
    return client.node.channels.check(action, channel, client.user, subscribed=subscribed)
