"""The `refresh` and `sub_refresh` commands: a new token in place of one that expires.

A client must not refresh a target that the back end renews (see `renewals`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.causes import Cause, Why
from repeater.clients.commands.connect import (
    authenticate,
    expired,
    of_another_user,
    refuse_denied,
)
from repeater.clients.commands.subscribe import grant_of_token
from repeater.clients.joining import time_left
from repeater.errors import (
    BAD_REQUEST,
    EXPIRED,
    INSUFFICIENT_STATE,
    INVALID_TOKEN,
    UNSUBSCRIBED_EXPIRED,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.protocol.centrifugo.commands import RefreshRequest, SubRefreshRequest
from repeater.protocol.centrifugo.replies import RefreshResult

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode

_NO_TOKEN: Final = Why(
    Cause.REQUEST, "the command has no token", "give the SDK a function getToken that returns one"
)
_RENEWED: Final = Why(
    Cause.NOT_OFFERED,
    "the back end renews this (refresh_url or sub_refresh_url), so the client cannot",
    "give the SDK no function getToken",
)
_NOT_SUBSCRIBED: Final = Why(Cause.PERMISSION, "the client is not subscribed to the channel")
_OTHER_CHANNELS: Final = Why(
    Cause.TOKEN,
    "the new token has other channels than the connection",
    "nothing to do: the client comes back and has them",
)
_ENDING: Final = (ErrorCode.TOKEN_EXPIRED, ErrorCode.PERMISSION_DENIED)


async def refresh(node: ClientNode, client: Client, request: RefreshRequest) -> RefreshResult:
    """Carry out `refresh`: a new token in place of one that expires (section 4.8).

    Raises:
        ReplyError: 100 if the token's keys are not available.
        DisconnectError: 3501 without a token or if the back end renews instead, 3500 for a
            token that belongs to another user or is revoked, 3503 for a blocked user, 3005 for
            an expired token, 3010 for a token with other channels: the client comes back.
    """
    if not request.token or node.renewals.covers(client):
        why = _RENEWED if request.token else _NO_TOKEN
        raise DisconnectError(BAD_REQUEST, why)
    try:
        grant = await authenticate(node, request.token)
    except ReplyError as error:
        if error.code is ErrorCode.TOKEN_EXPIRED:
            raise DisconnectError(EXPIRED, error.why) from None
        raise
    if grant.user != client.user:
        raise DisconnectError(INVALID_TOKEN, of_another_user(grant.user, client).why)
    if 0 < grant.expire_at <= node.unix_time():
        raise DisconnectError(EXPIRED, expired(node, grant, ""))
    refuse_denied(node, grant)
    if grant.channels.keys() != client.grant.channels.keys():
        raise DisconnectError(INSUFFICIENT_STATE, _OTHER_CHANNELS)
    old, client.grant = client.grant, grant
    client.expiry_changed()
    if old.info != grant.info:
        await node.attendance.renew(tuple(client.channels.values()))
    expires, ttl = time_left(node, client)
    return RefreshResult(expires, ttl)


async def sub_refresh(
    node: ClientNode, client: Client, request: SubRefreshRequest
) -> RefreshResult:
    """Carry out `sub_refresh`: a new token in place of one that expires (section 4.9).

    Raises:
        ReplyError: 103 for a channel that is not subscribed, 107 without a token, 108 if the
            back end renews instead, 100 if the token's keys are not available; 109 for a token
            that has expired or is not valid yet, and 103 for one that proves nothing. These two
            end the subscription (2501) before they are answered, and are temporary.
        DisconnectError: 3500 for a token that is revoked, or of another user, client or channel.
    """
    subscription = client.channels.get(request.channel)
    if subscription is None:
        raise ReplyError(ErrorCode.PERMISSION_DENIED, why=_NOT_SUBSCRIBED)
    if not request.token:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_NO_TOKEN)
    if node.renewals.covers(subscription):
        raise ReplyError(ErrorCode.NOT_AVAILABLE, why=_RENEWED)
    try:
        grant = await grant_of_token(node, client, request.channel, request.token)
    except ReplyError as error:
        if error.code in _ENDING and not subscription.ended:
            # Before the reply: a permanent error alone is final for an SDK, which after this push
            # subscribes again, with a new token. The Go SDK looks at the reply even then, so the
            # error is a temporary one.
            client.end_subscription(subscription, UNSUBSCRIBED_EXPIRED)
            raise ReplyError(error.code, temporary=True, why=error.why) from None
        raise
    if subscription.ended:  # the server ended the subscription while the token was proven
        raise ReplyError(ErrorCode.PERMISSION_DENIED, why=_NOT_SUBSCRIBED)
    old, subscription.grant = subscription.grant, grant
    subscription.expire_at = grant.expire_at
    client.expiry_changed()
    if old.info != grant.info:
        await node.attendance.renew((subscription,))
    expires, ttl = time_left(node, subscription)
    return RefreshResult(expires, ttl)
