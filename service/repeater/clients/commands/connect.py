"""How a connection becomes somebody's: the connect command and its refresh (protocol, section 3).

Credentials are proven first, then every server-side subscription is opened; a failure in any
fails the connect. The caller queues the reply, then finishes the joinings, with no await between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from repeater import __version__
from repeater.access.grants import (
    ConnectionGrant,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
)
from repeater.backend.headers import forwarded
from repeater.clients.joining import Joining, Wish, open_subscription, server_side_wish, time_left
from repeater.errors import (
    BAD_REQUEST,
    CHANNEL_LIMIT,
    CONNECTION_LIMIT,
    EXPIRED,
    FORCE_DISCONNECT,
    INSUFFICIENT_STATE,
    INVALID_TOKEN,
    PERMISSION_DENIED,
    BrokerError,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.protocol.centrifugo.commands import (
    ConnectRequest,
    RefreshRequest,
    SubscriptionPosition,
)
from repeater.protocol.centrifugo.replies import ConnectResult, RefreshResult
from repeater.publication import StreamPosition, embedded

if TYPE_CHECKING:
    from repeater.clients.client import Client


async def connect(client: Client, request: ConnectRequest) -> tuple[ConnectResult, list[Joining]]:
    """Carry out `connect`: whose connection it is, and what it hears without asking.

    Raises:
        ReplyError: 109 or 110 for a token that has expired, 100 when its keys or the back end
            can't be had, or what the back end answered.
        DisconnectError: 3500 for a token that proves nothing, 3501 without credentials, 3507
            for an anonymous token where none is allowed, 3503 for a blocked user, 3504 for too
            many connections of one user, 3505 for too many channels.
    """
    node = client.node
    grant = await _identify(client, request)
    if 0 < grant.expire_at <= node.unix_time():
        raise ReplyError(ErrorCode.EXPIRED)
    _admit(client, grant)
    client.identify(grant)
    channels = _server_side_channels(client, request.subs)
    if len(channels) > node.options.channel_limit:
        node.limited["channel_limit"] += 1
        raise DisconnectError(CHANNEL_LIMIT)
    joinings = []
    for channel, granted in channels.items():
        position = request.subs.get(channel)
        joinings.append(await open_subscription(client, channel, granted, _wish(position)))
    expires, ttl = time_left(client, client)
    ping = int(node.options.ping_interval)
    result = ConnectResult(
        client.id,
        __version__,
        expires=expires,
        ttl=ttl,
        data=embedded(grant.data),
        subs={one.subscription.channel.name: one.result() for one in joinings} or None,
        ping=ping,
        pong=ping > 0 and client.codec.answered,
        session=client.session,
        node=node.id if client.session else "",
    )
    return result, joinings


def _admit(client: Client, grant: ConnectionGrant) -> None:
    """The last word on a connection whose user is known; it is identified in the same breath."""
    node = client.node
    _refuse_denied(client, grant)
    most = node.options.limits.connections_per_user
    if most and grant.user and len(node.hub.users.get(grant.user, ())) >= most:
        node.limited["connections_per_user"] += 1
        raise DisconnectError(CONNECTION_LIMIT)


def _refuse_denied(client: Client, grant: ConnectionGrant) -> None:
    refusal = client.node.denials.refusal(grant)
    if refusal is not None:
        client.node.limited["blocked" if refusal is FORCE_DISCONNECT else "revoked"] += 1
        raise DisconnectError(refusal)


async def _identify(client: Client, request: ConnectRequest) -> ConnectionGrant:
    """Who it is: by its token, its HTTP request, the back end, or nobody (section 3.3).

    A token that nothing here can prove is the back end's to judge, if that is asked.
    """
    node, options = client.node, client.node.options
    if node.backend is not None and request.headers:
        emulated = forwarded(request.headers.items(), node.backend.forward_emulated_headers)
        client.headers = {**emulated, **client.headers}
    backend = node.asks("connect")
    if request.token and (node.verifier is not None or backend is None):
        return await _authenticate(client, request.token)
    if client.grant.user:
        return client.grant
    if backend is not None:
        try:
            return await backend.connect(client.caller(), request)
        except BrokerError:
            raise ReplyError(ErrorCode.INTERNAL) from None
    if options.insecure or options.allow_anonymous:
        return client.grant
    raise DisconnectError(BAD_REQUEST)  # no credentials


async def _authenticate(client: Client, token: str) -> ConnectionGrant:
    """Who the token says it is."""
    options, verifier = client.node.options, client.node.verifier
    if verifier is None:
        raise DisconnectError(INVALID_TOKEN)
    try:
        grant = await verifier.verify_connection(token)
    except TokenExpiredError:
        raise ReplyError(ErrorCode.TOKEN_EXPIRED) from None
    except TokenInvalidError:
        raise DisconnectError(INVALID_TOKEN) from None
    except BrokerError:
        raise ReplyError(ErrorCode.INTERNAL) from None
    if not (grant.user or options.insecure or options.allow_anonymous):
        raise DisconnectError(PERMISSION_DENIED)
    return msgspec.structs.replace(grant, by_token=True)


def _server_side_channels(
    client: Client, positions: Mapping[str, SubscriptionPosition]
) -> dict[str, SubscriptionGrant]:
    """Granted, personal, and those that the client names and may hear (section 3.3).

    Raises:
        DisconnectError: 3501 for a name that is none or of an unknown namespace.
    """
    rules = client.node.channels
    channels = dict(client.grant.channels)
    personal = rules.personal_channel(client.user)
    if personal is not None:
        channels.setdefault(personal, SubscriptionGrant())
    try:
        for channel in channels:
            rules.options(channel)
        for channel in positions:
            if channel not in channels and rules.may_subscribe(channel, client.user):
                channels[channel] = SubscriptionGrant()
    except ReplyError:
        raise DisconnectError(BAD_REQUEST) from None
    return channels


def _wish(position: SubscriptionPosition | None) -> Wish:
    since = None
    if position is not None and position.recover:
        since = StreamPosition(position.offset, position.epoch)
    return server_side_wish(since)


async def go_live(client: Client, joinings: list[Joining]) -> None:
    """The connect reply is queued: pings begin, subscriptions go live, then joins are told."""
    client.became_ready()
    for joining in joinings:
        joining.finish()
    for joining in joinings:
        await client.node.attendance.announce_join(joining.subscription)


async def refresh(client: Client, request: RefreshRequest) -> RefreshResult:
    """Carry out `refresh`: a new token in place of one that expires (section 4.8).

    Raises:
        ReplyError: 100 when the token's keys can't be had.
        DisconnectError: 3501 without a token or where the back end is asked instead, 3500 for
            one that is not this user's or is revoked, 3503 for a blocked user, 3005 for one
            that has expired, 3010 when its channels are others: the client comes back.
    """
    if not request.token or client.node.renewals.covers(client):
        raise DisconnectError(BAD_REQUEST)
    try:
        grant = await _authenticate(client, request.token)
    except ReplyError as error:
        if error.code is ErrorCode.TOKEN_EXPIRED:
            raise DisconnectError(EXPIRED) from None
        raise
    if grant.user != client.user:
        raise DisconnectError(INVALID_TOKEN)
    if 0 < grant.expire_at <= client.node.unix_time():
        raise DisconnectError(EXPIRED)
    _refuse_denied(client, grant)
    if grant.channels.keys() != client.grant.channels.keys():
        raise DisconnectError(INSUFFICIENT_STATE)
    client.grant = grant
    client.expiry_changed()
    expires, ttl = time_left(client, client)
    return RefreshResult(expires, ttl)
