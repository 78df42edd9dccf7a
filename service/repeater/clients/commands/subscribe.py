"""What a client's `subscribe` and `sub_refresh` commands do: who may hear a channel, and why not.

A token, the back end, the channel's name or its options grant it; `joining` does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.access.grants import (
    SubscriptionClaims,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
)
from repeater.clients.joining import Joining, Wish, drop, open_subscription, time_left
from repeater.errors import (
    BAD_REQUEST,
    INVALID_TOKEN,
    BrokerError,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.protocol.centrifugo.commands import SubRefreshRequest, SubscribeRequest
from repeater.protocol.centrifugo.filters import TagsFilter, check_filter
from repeater.protocol.centrifugo.replies import RefreshResult
from repeater.publication import StreamPosition

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.options import ChannelOptions

_NO_RECOVERED_FALSE: Final = 2  # in `flag`: error 112 instead of `recovered: false`


async def subscribe(client: Client, request: SubscribeRequest) -> Joining:
    """Carry out a client's `subscribe` command (protocol, section 4.1).

    Raises:
        ReplyError: it may not, or the request can't be served.
        DisconnectError: the request breaks the protocol, or the history can't be read.
    """
    name, node = request.channel, client.node
    if not name or request.delta not in ("", "fossil"):
        raise DisconnectError(BAD_REQUEST)
    if request.type:
        raise ReplyError(ErrorCode.PERMISSION_DENIED)
    options = node.channels.options(name)
    if name in client.channels:
        raise ReplyError(ErrorCode.ALREADY_SUBSCRIBED)
    if len(client.channels) >= node.options.channel_limit:
        node.limited["channel_limit"] += 1
        raise ReplyError(ErrorCode.LIMIT_EXCEEDED)
    if request.token:
        grant = await _grant_of_token(client, name, request.token)
    else:
        grant = await _grant_without_token(client, request, options)
    if name in client.channels:  # by now: somebody else's doing
        raise ReplyError(ErrorCode.ALREADY_SUBSCRIBED)
    since = StreamPosition(request.offset, request.epoch) if request.recover else None
    wish = Wish(
        positioned=request.positioned,
        recoverable=request.recoverable,
        join_leave=request.join_leave,
        delta=request.delta in options.allowed_delta_types,
        since=since,
        tags=_checked_filter(request, options),
    )
    joining = await open_subscription(client, name, grant, wish)
    lost = joining.joined is not None and since is not None and not joining.joined.recovered
    if lost and request.flag & _NO_RECOVERED_FALSE:
        drop(joining.subscription)
        raise ReplyError(ErrorCode.UNRECOVERABLE_POSITION)
    return joining


def _checked_filter(request: SubscribeRequest, options: ChannelOptions) -> TagsFilter | None:
    if request.tf is None:
        return None
    if not options.allow_tags_filter or request.delta:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    try:
        check_filter(request.tf)
    except ValueError:
        raise ReplyError(ErrorCode.BAD_REQUEST) from None
    return request.tf


async def _grant_without_token(
    client: Client, request: SubscribeRequest, options: ChannelOptions
) -> SubscriptionGrant:
    """What the name, the back end or the options grant, whoever comes first (section 11)."""
    node, name = client.node, request.channel
    asked = options.subscribe_proxy_enabled
    if not asked or node.channels.decided_by_name(name, client.user) is not None:
        node.channels.check_subscribe(name, client.user)
        return SubscriptionGrant()
    backend = node.asks("subscribe")
    if backend is None:
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    try:
        grant = await backend.subscribe(client.caller(), name, "", bytes(request.data))
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None
    if 0 < grant.expire_at <= node.unix_time():
        raise ReplyError(ErrorCode.EXPIRED)
    return grant


async def _grant_of_token(client: Client, channel: str, token: str) -> SubscriptionGrant:
    """What a subscription token grants, if it is for this user, connection and channel."""
    try:
        claims = await _verified(client, token)
    except TokenExpiredError:
        raise ReplyError(ErrorCode.TOKEN_EXPIRED) from None
    if not _is_for(claims, client, channel):
        raise DisconnectError(INVALID_TOKEN)
    grant = msgspec.structs.replace(
        claims.grant, token_id=claims.token_id, issued_at=claims.issued_at, by_token=True
    )
    if client.node.denials.revoked(claims.user, grant):
        client.node.limited["revoked"] += 1
        raise DisconnectError(INVALID_TOKEN)
    if 0 < claims.grant.expire_at <= client.node.unix_time():
        raise ReplyError(ErrorCode.EXPIRED)
    return grant


async def _verified(client: Client, token: str) -> SubscriptionClaims:
    if client.node.verifier is None:
        raise DisconnectError(INVALID_TOKEN)
    try:
        return await client.node.verifier.verify_subscription(token)
    except TokenInvalidError:
        raise DisconnectError(INVALID_TOKEN) from None
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None


def _is_for(claims: SubscriptionClaims, client: Client, channel: str) -> bool:
    mine = claims.user == client.user and claims.client in ("", client.id)
    return mine and claims.channel == channel


async def refresh(client: Client, request: SubRefreshRequest) -> RefreshResult:
    """Carry out `sub_refresh`: a new token in place of one that expires (section 4.9).

    Raises:
        ReplyError: 103 for a channel that is not subscribed, 107 without a token, 108 where the
            back end is asked instead, 109 for a token that has expired itself.
        DisconnectError: 3500 for a token that is not this subscription's.
    """
    subscription = client.channels.get(request.channel)
    if subscription is None:
        raise ReplyError(ErrorCode.PERMISSION_DENIED)
    if not request.token:
        raise ReplyError(ErrorCode.BAD_REQUEST)
    if client.node.renewals.covers(subscription):
        raise ReplyError(ErrorCode.NOT_AVAILABLE)
    grant = await _grant_of_token(client, request.channel, request.token)
    subscription.grant, subscription.expire_at = grant, grant.expire_at
    client.expiry_changed()
    expires, ttl = time_left(client, subscription)
    return RefreshResult(expires, ttl)
