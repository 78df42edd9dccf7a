"""The `subscribe` command: check the permission to hear a channel (protocol, section 4.1).

A token, the back end, the channel's name or its options grant it. `joining` does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.access.channel_rules import OF_ANOTHER_USER
from repeater.access.grants import (
    NO_KEY,
    NOTHING_GRANTED,
    SubscriptionClaims,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
    why_no_keys,
)
from repeater.backend.contract import why_unanswered
from repeater.causes import Cause, Why
from repeater.clients.binary import check_fits
from repeater.clients.commands.connect import expired, of_another_user
from repeater.clients.denials import why_denied
from repeater.clients.joining import Joining, Wish
from repeater.clients.limits import too_many_channels
from repeater.clients.openings import GrantedChannel, drop, open_subscription
from repeater.clients.payload import any_data
from repeater.errors import (
    BAD_REQUEST,
    INVALID_TOKEN,
    BrokerError,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.fanout.recovery import named_position
from repeater.protocol.centrifugo.commands import SubscribeRequest
from repeater.protocol.centrifugo.filters import (
    CHANNEL_NODES,
    CONNECTION_NODES,
    TagsFilter,
    check_filter,
    nodes_of,
)

if TYPE_CHECKING:
    from repeater.backend.options import CallbackKind
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.options import ChannelOptions

_SHOWN: Final = 255  # characters of a channel's name
_ALREADY: Final = Why(
    Cause.REQUEST,
    "the client is subscribed to the channel already",
    "the server may have subscribed it, by a token or the server API",
)
NO_CHANNEL: Final = Why(Cause.REQUEST, "the command names no channel")
_ODD_DELTA: Final = Why(Cause.REQUEST, "there is no such delta", 'the only one is "fossil"')
_OTHER_TYPE: Final = Why(
    Cause.NOT_OFFERED,
    "there are no map or shared poll subscriptions here",
    "use newSubscription of the SDK",
)
_FILTER_OF_DELTAS: Final = Why(Cause.REQUEST, "a subscription has a filter or deltas, not both")
_FILTERS: Final = Why(
    Cause.LIMIT,
    f"the filters have more than {CONNECTION_NODES} nodes in one connection, or {CHANNEL_NODES} "
    "different ones in one channel",
    "subscribe with simpler filters",
)
_NO_RECOVERED_FALSE: Final = 2  # in `flag`: error 112 instead of `recovered: false`


async def subscribe(node: ClientNode, client: Client, request: SubscribeRequest) -> Joining:
    """Carry out a client's `subscribe` command (protocol, section 4.1).

    Raises:
        ReplyError: the client may not hear the channel, or the request cannot be carried out; 100,
            which an SDK retries by itself, if history or presence cannot be read.
        DisconnectError: the request breaks the protocol.
    """
    name = request.channel
    if not name or request.delta not in ("", "fossil"):
        raise DisconnectError(BAD_REQUEST, _ODD_DELTA if name else NO_CHANNEL)
    if request.type:
        raise ReplyError(ErrorCode.NOT_AVAILABLE, "not offered here", why=_OTHER_TYPE)
    options = node.channels.options(name)
    if options.publication_data_format == "binary":
        check_fits(client.codec, options)
    since = named_position(request.offset, request.epoch) if request.recover else None
    if name in client.channels:
        raise ReplyError(ErrorCode.ALREADY_SUBSCRIBED, why=_ALREADY)
    if len(client.channels) >= node.options.channel_limit:
        node.limited["channel_limit"] += 1
        why = too_many_channels(node.options.channel_limit)
        raise ReplyError(ErrorCode.LIMIT_EXCEEDED, why=why)
    if request.token:
        grant = await grant_of_token(node, client, name, request.token)
    else:
        grant = await _grant_without_token(node, client, request, options)
    if name in client.channels:  # the server subscribed the client while the grant was awaited
        raise ReplyError(ErrorCode.ALREADY_SUBSCRIBED, why=_ALREADY)
    wish = Wish(
        positioned=request.positioned,
        recoverable=request.recoverable,
        join_leave=request.join_leave,
        delta=request.delta in options.allowed_delta_types,
        since=since,
        tags=_checked_filter(node, client, request, options),
    )
    try:
        joining = await open_subscription(node, client, GrantedChannel(name, grant, wish))
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=error.why()) from None
    lost = joining.joined is not None and since is not None and not joining.joined.recovered
    if lost and request.flag & _NO_RECOVERED_FALSE:
        drop(client, joining.subscription)
        raise ReplyError(ErrorCode.UNRECOVERABLE_POSITION, why=joining.why_lost())
    return joining


def _checked_filter(
    node: ClientNode, client: Client, request: SubscribeRequest, options: ChannelOptions
) -> TagsFilter | None:
    """The filter, if there is room for it: it is counted as soon as the client joins."""
    if request.tf is None:
        return None
    if not options.allow_tags_filter:
        where = node.channels.table(request.channel)
        mend = f"set allow_tags_filter = true in {where}"
        why = Why(Cause.NOT_OFFERED, "the channel takes no filters", mend)
        raise ReplyError(ErrorCode.BAD_REQUEST, why=why)
    if request.delta:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_FILTER_OF_DELTAS)
    try:
        check_filter(request.tf)
    except ValueError as error:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=Why(Cause.REQUEST, str(error))) from None
    kept = (subscription.codec.tags for subscription in client.channels.values())
    mine = nodes_of(request.tf) + sum(nodes_of(tags) for tags in kept if tags is not None)
    everybodys = node.hub.filters.nodes_with(request.channel, request.tf)
    if mine > CONNECTION_NODES or everybodys > CHANNEL_NODES:
        node.limited["filters"] += 1
        raise ReplyError(ErrorCode.LIMIT_EXCEEDED, why=_FILTERS)
    return request.tf


async def _grant_without_token(
    node: ClientNode, client: Client, request: SubscribeRequest, options: ChannelOptions
) -> SubscriptionGrant:
    """The grant of the channel's name, the back end or the options, in this order (section 11)."""
    name = request.channel
    asked = options.subscribe_proxy_enabled
    if not asked or node.channels.decided_by_name(name, client.user) is not None:
        node.channels.check_subscribe(name, client.user)
        return NOTHING_GRANTED
    backend = node.asks("subscribe")
    if backend is None:
        raise ReplyError(ErrorCode.NOT_AVAILABLE, why=not_asked(node, "subscribe", name))
    try:
        grant = await backend.subscribe(client.asking(), name, "", any_data(client, request.data))
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=why_unanswered("subscribe", error)) from None
    if 0 < grant.expire_at <= node.unix_time():
        why = expired(node, grant, "the subscribe callback")
        raise ReplyError(ErrorCode.EXPIRED, why=why)
    return grant


def not_asked(node: ClientNode, kind: CallbackKind, channel: str) -> Why:
    """Why nobody may, where the options say that the back end decides, and no address is set."""
    return Why(
        Cause.NOT_OFFERED,
        f"the back end decides this ({kind}_proxy_enabled), and has no address for it",
        f"set callbacks.{kind}_url, or take the option out of {node.channels.table(channel)}",
    )


async def grant_of_token(
    node: ClientNode, client: Client, channel: str, token: str
) -> SubscriptionGrant:
    """Return the grant of a subscription token for this user, connection and channel.

    Raises:
        ReplyError: 109 for a token that has expired or is not valid yet, 103 for a token that
            proves nothing or names another user's personal channel, 100 if its keys are not
            available.
        DisconnectError: 3500 for a token that is revoked, or is for another user, connection or
            channel.
    """
    claims = await _verified(node, token)
    error = _not_for(claims, client, channel)
    if error is not None:
        raise DisconnectError(INVALID_TOKEN, error.why)
    grant = msgspec.structs.replace(
        claims.grant, token_id=claims.token_id, issued_at=claims.issued_at, by_token=True
    )
    if node.denials.revoked(claims.user, grant):
        node.limited["revoked"] += 1
        raise DisconnectError(INVALID_TOKEN, why_denied(INVALID_TOKEN))
    if 0 < claims.grant.expire_at <= node.unix_time():
        raise ReplyError(ErrorCode.TOKEN_EXPIRED, why=expired(node, grant, ""))
    if node.channels.is_of_another(channel, client.user):
        raise ReplyError(ErrorCode.PERMISSION_DENIED, why=OF_ANOTHER_USER)
    return grant


async def _verified(node: ClientNode, token: str) -> SubscriptionClaims:
    """The token's claims. A bad token costs its subscription, and never the connection."""
    if node.verifier is None:
        raise ReplyError(ErrorCode.PERMISSION_DENIED, why=TokenInvalidError(*NO_KEY).why)
    try:
        return await node.verifier.verify_subscription(token)
    except TokenExpiredError as error:
        raise ReplyError(ErrorCode.TOKEN_EXPIRED, why=error.why) from None
    except TokenInvalidError as error:
        raise ReplyError(ErrorCode.PERMISSION_DENIED, why=error.why) from None
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=why_no_keys(error)) from None


def _not_for(claims: SubscriptionClaims, client: Client, channel: str) -> TokenInvalidError | None:
    """Why a subscription token is not for this user, connection and channel; None if it is."""
    if claims.user != client.user:
        return of_another_user(claims.user, client)
    if claims.client not in ("", client.id):
        text = "it is for another connection: its claim client is not this one's id"
        return TokenInvalidError(text, "leave out the claim client, or make one at each connect")
    if claims.channel != channel:
        text = f"it is for another channel: its claim channel is {claims.channel[:_SHOWN]!r}"
        return TokenInvalidError(text, "make one token for each channel")
    return None
