"""The `refresh` and `sub_refresh` commands: a new token in place of one that expires.

A client must not refresh a target that the back end renews (see `renewals`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.clients.commands.connect import authenticate, refuse_denied
from repeater.clients.commands.subscribe import grant_of_token
from repeater.clients.joining import time_left
from repeater.errors import (
    BAD_REQUEST,
    EXPIRED,
    INSUFFICIENT_STATE,
    INVALID_TOKEN,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.protocol.centrifugo.commands import RefreshRequest, SubRefreshRequest
from repeater.protocol.centrifugo.replies import RefreshResult

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode


async def refresh(node: ClientNode, client: Client, request: RefreshRequest) -> RefreshResult:
    """Carry out `refresh`: a new token in place of one that expires (section 4.8).

    Raises:
        ReplyError: 100 if the token's keys are not available.
        DisconnectError: 3501 without a token or if the back end renews instead, 3500 for a
            token that belongs to another user or is revoked, 3503 for a blocked user, 3005 for
            an expired token, 3010 for a token with other channels: the client comes back.
    """
    if not request.token or node.renewals.covers(client):
        raise DisconnectError(BAD_REQUEST)
    try:
        grant = await authenticate(node, request.token)
    except ReplyError as error:
        if error.code is ErrorCode.TOKEN_EXPIRED:
            raise DisconnectError(EXPIRED) from None
        raise
    if grant.user != client.user:
        raise DisconnectError(INVALID_TOKEN)
    if 0 < grant.expire_at <= node.unix_time():
        raise DisconnectError(EXPIRED)
    refuse_denied(node, grant)
    if grant.channels.keys() != client.grant.channels.keys():
        raise DisconnectError(INSUFFICIENT_STATE)
    client.grant = grant
    client.expiry_changed()
    expires, ttl = time_left(node, client)
    return RefreshResult(expires, ttl)


async def sub_refresh(
    node: ClientNode, client: Client, request: SubRefreshRequest
) -> RefreshResult:
    """Carry out `sub_refresh`: a new token in place of one that expires (section 4.9).

    Raises:
        ReplyError: 103 for a channel that is not subscribed, 107 without a token, 108 if the
            back end renews instead, 109 for a token that has itself expired.
        DisconnectError: 3500 for a token that does not belong to this subscription.
    """
    subscription = client.channels.get(request.channel)
    if subscription is None:
        raise ReplyError(ErrorCode.PERMISSION_DENIED)
    if not request.token:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    if node.renewals.covers(subscription):
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    grant = await grant_of_token(node, client, request.channel, request.token)
    subscription.grant, subscription.expire_at = grant, grant.expire_at
    client.expiry_changed()
    expires, ttl = time_left(node, subscription)
    return RefreshResult(expires, ttl)
