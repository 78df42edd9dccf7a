"""The `publish` command (protocol, section 4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.access.grants import PublicationGrant
from repeater.errors import (
    BAD_REQUEST,
    BrokerError,
    DisconnectError,
    ErrorCode,
    IntakeFullError,
    ReplyError,
)
from repeater.protocol.centrifugo.commands import PublishRequest
from repeater.publication import ClientInfo, Publication, embedded

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode


async def publish(node: ClientNode, client: Client, request: PublishRequest) -> None:
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
    grant = await _publish_grant(node, client, request)
    subscription = client.channels.get(request.channel)
    if subscription is not None:
        info = subscription.info()
    else:
        info = ClientInfo(client.user, client.id, embedded(client.grant.info))
    data = bytes(request.data) if grant.data is None else grant.data
    publication = Publication(request.channel, data, info=info, tags=grant.tags)
    try:
        await node.publish(publication, skip_history=grant.skip_history)
    except IntakeFullError:
        raise ReplyError(ErrorCode.TOO_MANY_REQUESTS) from None
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


async def _publish_grant(
    node: ClientNode, client: Client, request: PublishRequest
) -> PublicationGrant:
    """What the back end says of it, where it is asked; else the options (section 11)."""
    options = node.channels.options(request.channel)
    if not options.publish_proxy_enabled:
        node.channels.check(
            "publish",
            request.channel,
            client.user,
            subscribed=request.channel in client.channels,
        )
        return PublicationGrant()
    backend = node.asks("publish")
    if backend is None:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    if not request.data:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    try:
        return await backend.publish(client.caller(), request.channel, bytes(request.data))
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None
