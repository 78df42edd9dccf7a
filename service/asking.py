"""The commands that ask or tell something, and change no subscription.

Publish, presence, presence_stats and history (protocol, sections 4.3 to 4.6): whether the channel
has it, whether this client may, and then the node. Calls (4.7) are the back end's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.channels import Action
from service.credentials import PublicationGrant
from service.errors import (
    BAD_REQUEST,
    BrokerError,
    DisconnectError,
    ErrorCode,
    IntakeFullError,
    ReplyError,
)
from service.protocol.commands import HistoryRequest, PublishRequest, RPCRequest
from service.protocol.replies import (
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    RPCResult,
    publication_result,
)
from service.publication import ClientInfo, Publication, StreamPosition, embedded

if TYPE_CHECKING:
    from service.client import Client
    from service.options import ChannelOptions


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
    _permit_presence(client, channel)
    try:
        return PresenceResult(dict(await client.node.presence.members(channel)))
    except BrokerError:
        client.node.broker_errors["presence"] += 1
        raise ReplyError(ErrorCode.INTERNAL) from None


async def presence_stats(client: Client, channel: str) -> PresenceStatsResult:
    """How many are in a channel. Raises as `presence`."""
    _permit_presence(client, channel)
    try:
        return PresenceStatsResult(*await client.node.presence.count(channel))
    except BrokerError:
        client.node.broker_errors["presence"] += 1
        raise ReplyError(ErrorCode.INTERNAL) from None


def _permit_presence(client: Client, channel: str) -> None:
    if not client.node.channels.options(channel).presence:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    _permit(client, "presence", channel)


async def history(client: Client, request: HistoryRequest) -> HistoryResult:
    """Past publications, at most the limit for clients, and the stream's top.

    Raises:
        ReplyError: 108 without history, 103 for who may not read it, 112 for a position of
            another epoch, 107 for a reverse read from before the first publication.
    """
    node = client.node
    options = node.channels.options(request.channel)
    if not options.history_size:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    _permit(client, "history", request.channel)
    most = node.options.history_limit
    limit = most if request.limit < 0 else min(request.limit, most)
    since = None
    if request.since is not None:
        since = StreamPosition(request.since.offset, request.since.epoch)
        if request.reverse and not since.offset:
            raise ReplyError(ErrorCode.BAD_REQUEST)
    try:
        publications, top = await node.broker.history(
            request.channel, options, since=since, limit=limit, reverse=request.reverse
        )
    except BrokerError:
        node.broker_errors["history"] += 1
        raise ReplyError(ErrorCode.INTERNAL) from None
    if since is not None and since.epoch not in ("", top.epoch):
        raise ReplyError(ErrorCode.UNRECOVERABLE_POSITION)
    return HistoryResult([publication_result(one) for one in publications], top.epoch, top.offset)


def _permit(client: Client, action: Action, channel: str) -> ChannelOptions:
    subscribed = channel in client.channels
    return client.node.channels.check(action, channel, client.user, subscribed=subscribed)
