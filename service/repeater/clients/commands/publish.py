"""The `publish` command (protocol, section 4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.access.grants import PUBLISH_AS_IT_IS, PublicationGrant
from repeater.backend.contract import why_not_json, why_unanswered
from repeater.causes import SHUTTING_DOWN, Cause, Why
from repeater.clients.binary import check_fits
from repeater.clients.commands.subscribe import NO_CHANNEL, not_asked
from repeater.clients.payload import any_data, json_of_bytes
from repeater.errors import (
    BAD_REQUEST,
    BrokerError,
    DisconnectError,
    ErrorCode,
    IntakeFullError,
    ReplyError,
)
from repeater.json_text import JSONText, accepted, embedded, json_text
from repeater.protocol.centrifugo.commands import PublishRequest
from repeater.publication import ClientInfo, Publication

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.options import ChannelOptions


_OTHER_TYPE: Final = Why(
    Cause.NOT_OFFERED,
    "there are no map or shared poll subscriptions here, nor publications of them",
    "use publish of the SDK",
)
_NO_DATA: Final = Why(Cause.REQUEST, "the command has no data", "send JSON, null for none")
_NO_ROOM: Final = Why(
    Cause.LIMIT,
    "fan-out is behind and made no room for the event in publish_timeout",
    "publish again later, or see intake_limit",
)


async def publish(node: ClientNode, client: Client, request: PublishRequest) -> None:
    """Publish in the client's name.

    Waits for room in the intake; see `Session.receive` for the back-pressure of that.

    Raises:
        ReplyError: the client may not publish (103), the request is wrong (102, 107, 108, which
            is also for a binary channel), try later (111, 100), or the back end's own error.
        DisconnectError: the channel is missing, or the back end disconnects the client.
    """
    if not request.channel:
        raise DisconnectError(BAD_REQUEST, NO_CHANNEL)
    if request.type:
        raise ReplyError(ErrorCode.NOT_AVAILABLE, why=_OTHER_TYPE)
    options = node.channels.options(request.channel)
    binary = options.publication_data_format == "binary"
    if binary:
        check_fits(client.codec, options)
        data = any_data(client, request.data)
    elif client.codec.format.binary:
        data = json_of_bytes(request.data)
    else:
        data = accepted(request.data)
    grant = await _publish_grant(node, client, request.channel, data, options)
    subscription = client.channels.get(request.channel)
    if subscription is not None:
        await node.attendance.announce_at_once(subscription)
        info = subscription.info()
    else:
        info = ClientInfo(client.user, client.id, embedded(client.grant.info))
    if grant.data is not None:
        data = grant.data if binary else _json_of(grant.data)
    publication = Publication(request.channel, data, info=info, tags=grant.tags)
    try:
        await node.publish(publication, skip_history=grant.skip_history)
    except IntakeFullError:
        why = SHUTTING_DOWN if node.draining else _NO_ROOM
        raise ReplyError(ErrorCode.TOO_MANY_REQUESTS, why=why) from None
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=error.why()) from None


async def _publish_grant(
    node: ClientNode, client: Client, channel: str, data: bytes, options: ChannelOptions
) -> PublicationGrant:
    """The grant of the back end, if it is asked, otherwise that of the options (section 11)."""
    if not options.publish_proxy_enabled:
        node.channels.check(
            "publish",
            channel,
            client.user,
            subscribed=channel in client.channels,
        )
        return PUBLISH_AS_IT_IS
    backend = node.asks("publish")
    if backend is None:
        raise ReplyError(ErrorCode.NOT_AVAILABLE, why=not_asked(node, "publish", channel))
    if not data and options.publication_data_format != "binary":
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_NO_DATA)
    try:
        return await backend.publish(client.asking(), channel, data)
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=why_unanswered("publish", error)) from None


def _json_of(data: bytes) -> JSONText:
    """The back end's data as JSON text; it is the back end's fault if it is something else."""
    try:
        return json_text(data)
    except ValueError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=why_not_json("publish", error)) from None
