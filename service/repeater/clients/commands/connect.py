"""The `connect` command: a connection gets its user and subscriptions (protocol, section 3).

Credentials are proven first, then every server-side subscription is opened. If one of them fails,
the connect fails, with an error after which an SDK comes back. Then one sync call answers and lets
all subscriptions go live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from repeater import __version__
from repeater.access.grants import (
    NO_KEY,
    ConnectionGrant,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
    why_no_keys,
)
from repeater.backend.contract import why_unanswered
from repeater.backend.headers import forwarded
from repeater.causes import Cause, Why
from repeater.clients.binary import BINARY_CHANNEL, NOT_FOR_TEXT, fits, warn_of_binary
from repeater.clients.denials import why_denied
from repeater.clients.joining import (
    Joining,
    Wish,
    complete_all,
    server_side_wish,
    time_left,
)
from repeater.clients.limits import LimitError, limit_reached, too_many_channels
from repeater.clients.openings import GrantedChannel, open_subscriptions
from repeater.errors import (
    BAD_REQUEST,
    CHANNEL_LIMIT,
    CONNECTION_LIMIT,
    FORCE_DISCONNECT,
    INVALID_TOKEN,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    BrokerError,
    Disconnect,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.fanout.recovery import Rooms, named_position
from repeater.json_text import embedded
from repeater.protocol.centrifugo.commands import (
    ConnectRequest,
    SubscriptionPosition,
)
from repeater.protocol.centrifugo.replies import ConnectResult

if TYPE_CHECKING:
    from repeater.access.channel_rules import ChannelRules
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.clients.limits import Place
    from repeater.protocol.centrifugo.codecs import Codec

_POSITIONS: Final = 2  # times the limit of channels; a client has had no more subscriptions
_SUB_SIZE: Final = 160  # bytes of a subscription's result without publications, data and name


# Bytes of headers in the command that are kept for a connection, as in the head of a request.
_HEADERS_LIMIT: Final = 16_384

_HEADERS_TOO_LARGE: Final = Why(
    Cause.REQUEST,
    f"the headers in the connect command have more than {_HEADERS_LIMIT} bytes",
    "send fewer, or see forward_emulated_headers",
)
_NO_CREDENTIALS: Final = Why(
    Cause.CREDENTIALS,
    "the client sent no token, the back end is not asked, and anonymous clients may not connect",
    "send a token, or set callbacks.connect_url, or allow_anonymous = true",
)
_NO_USER: Final = Why(
    Cause.CREDENTIALS,
    "the token names no user, and anonymous clients may not connect",
    "write the user's id as sub (or as token.user_id_claim says), or set allow_guest_tokens = true",
)


class Connected:
    """A client whose `connect` succeeded and was not answered yet. Made by `connect`."""

    def __init__(self, node: ClientNode, client: Client, joinings: Sequence[Joining]) -> None:
        self._node = node
        self._client = client
        self._joinings = joinings
        self.codec: Codec = client.codec
        """The codec of the answer: compressed only if the publications of all channels may be."""
        if client.codec.compresses:
            codecs = (one.subscription.codec for one in joinings)
            self.codec = next((one for one in codecs if not one.compresses), client.codec)

    def complete(self, say: Callable[[ConnectResult], bytes]) -> None:
        """Queue the answer, begin pings, and let the subscriptions go live. Nothing is flushed.

        Args:
            say: Encodes the result as the bytes of the answer.
        """

        def answer() -> bytes:
            said = say(self._result())
            self._client.became_ready()
            return said

        complete_all(self._client, self._joinings, answer)

    def _result(self) -> ConnectResult:
        node, client = self._node, self._client
        subs = {one.subscription.channel.name: one.result() for one in self._joinings}
        expires, ttl = time_left(node, client)
        ping = int(node.options.ping_interval)
        return ConnectResult(
            client.id,
            __version__,
            expires=expires,
            ttl=ttl,
            data=embedded(client.grant.data),
            subs=subs or None,
            ping=ping,
            pong=ping > 0 and client.codec.answered,
            session=client.session,
            node=node.id if client.session else "",
        )

    def announce(self) -> None:
        """Announce the joins soon, in channels that announce them. At most once."""
        for joining in self._joinings:
            self._node.attendance.announce_join(joining.subscription)


async def connect(
    node: ClientNode, client: Client, request: ConnectRequest, *, unidirectional: bool = False
) -> Connected:
    """Carry out `connect`: identify the user, and open the server-side subscriptions.

    A `unidirectional` client has no other way to ask for a channel than to name it here.

    Raises:
        ReplyError: 109 for an expired token or one that is not valid yet, 110 for an answer of
            the back end that has expired, 100 if the token's keys, the back end or the engine of
            server-side channels are not available, 107 for headers above 16 KiB, or the back
            end's own error.
        DisconnectError: 3500 for a token that proves nothing, 3501 without credentials, 3507
            for an anonymous token if they are not allowed, 3503 for a blocked user, 3504 for too
            many connections of one user, 3505 for too many channels, or too much that the
            answer would have to tell of them, 3508 for a unidirectional client that asks for a
            binary channel.
    """
    grant = await _identify(node, client, request)
    if 0 < grant.expire_at <= node.unix_time():
        # At 109 an SDK comes back with a new token. A back end's answer has no token to replace.
        code = ErrorCode.TOKEN_EXPIRED if grant.by_token else ErrorCode.EXPIRED
        raise ReplyError(code, why=expired(node, grant, "the connect callback"))
    if node.places.shared is not None and client.place is not None and grant.user:
        await _reserve(node, client.place, grant.user)
    _admit(node, client, grant)
    client.identify(grant)
    if len(request.subs) > _POSITIONS * node.options.channel_limit:
        raise _too_many(node, too_many_channels(node.options.channel_limit))
    channels = await _server_side_channels(node, client, request.subs, unidirectional)
    if not channels:
        return Connected(node, client, ())
    _check_limit(node, channels)
    rooms = Rooms(node.options.outbox_limit)  # one answer, so what was missed counts in all
    wanted = [
        GrantedChannel(channel, granted, _wish(request.subs.get(channel)))
        for channel, granted in channels.items()
        if _is_known(node, client, channel)
    ]
    try:
        joinings = await open_subscriptions(node, client, wanted, rooms)
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=error.why()) from None
    return Connected(node, client, joinings)


async def _reserve(node: ClientNode, place: Place, user: str) -> None:
    """Reserve the user's place where workers or nodes share limits; see `Place.reserve`.

    Raises:
        DisconnectError: the user has too many connections (3504).
        ReplyError: the supervisor does not answer (100).
    """
    try:
        await place.reserve(node.options.limits, user=user)
    except LimitError as error:
        raise _connection_limit(node, error) from None
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=error.why("the places of users")) from None


def _admit(node: ClientNode, client: Client, grant: ConnectionGrant) -> None:
    """The last word on a connection whose user is known; it is identified in the same breath.

    Its place is counted as the user's from here on, until the connection ends.
    """
    refuse_denied(node, grant)
    if client.place is not None:
        try:
            client.place.take_user(node.options.limits, grant.user)
        except LimitError as error:
            raise _connection_limit(node, error) from None


def _connection_limit(node: ClientNode, error: LimitError) -> DisconnectError:
    most: float = getattr(node.options.limits, error.limit)
    return DisconnectError(CONNECTION_LIMIT, limit_reached(error.limit, most))


def expired(node: ClientNode, grant: ConnectionGrant | SubscriptionGrant, by: str) -> Why:
    """Why a grant holds no more: its `expire_at` has passed. `by` gave one without a token."""
    whose = "the token" if grant.by_token else f"the answer of {by}"
    ago = node.unix_time() - grant.expire_at
    text = f"the expire_at of {whose} passed {ago:.0f} s ago, our time is {node.unix_time():.0f}"
    return Why(Cause.TOKEN_EXPIRED, text, "give a later one, in Unix seconds")


def refuse_denied(node: ClientNode, grant: ConnectionGrant) -> None:
    """Refuse a blocked user (3503) and a revoked token (3500), and count it.

    Raises:
        DisconnectError: the user is blocked, or the token is revoked.
    """
    refusal = node.denials.refusal(grant)
    if refusal is not None:
        node.limited["blocked" if refusal is FORCE_DISCONNECT else "revoked"] += 1
        raise DisconnectError(refusal, why_denied(refusal))


async def _identify(node: ClientNode, client: Client, request: ConnectRequest) -> ConnectionGrant:
    """The grant by token, HTTP request or back end, or the anonymous one (section 3.3).

    Without a verifier for tokens, the token goes to the back end, if the back end is asked.
    """
    options = node.options
    if node.backend is not None and request.headers:
        emulated = forwarded(request.headers.items(), node.backend.forward_emulated_headers)
        if sum(len(name) + len(value) for name, value in emulated.items()) > _HEADERS_LIMIT:
            raise ReplyError(ErrorCode.BAD_REQUEST, why=_HEADERS_TOO_LARGE)
        client.headers = {**emulated, **client.headers}
    backend = node.asks("connect")
    if request.token and (node.verifier is not None or backend is None):
        return await authenticate(node, request.token)
    if client.grant.user:
        return client.grant
    if backend is not None:
        try:
            return await backend.connect(client.asking(), request)
        except BrokerError as error:
            raise ReplyError(ErrorCode.INTERNAL, why=why_unanswered("connect", error)) from None
    if options.insecure or options.allow_anonymous:
        return client.grant
    raise DisconnectError(BAD_REQUEST, _NO_CREDENTIALS)


async def authenticate(node: ClientNode, token: str) -> ConnectionGrant:
    """Verify a connection token, and return its grant.

    Raises:
        ReplyError: 109 for an expired token or one that is not valid yet, 100 if its keys are not
            available.
        DisconnectError: 3500 for a token that proves nothing, 3507 for a token without a user if
            neither guests nor anonymous clients are allowed.
    """
    options, verifier = node.options, node.verifier
    if verifier is None:
        raise DisconnectError(INVALID_TOKEN, TokenInvalidError(*NO_KEY).why)
    try:
        grant = await verifier.verify_connection(token)
    except TokenExpiredError as error:
        raise ReplyError(ErrorCode.TOKEN_EXPIRED, why=error.why) from None
    except TokenInvalidError as error:
        raise DisconnectError(INVALID_TOKEN, error.why) from None
    except BrokerError as error:
        raise ReplyError(ErrorCode.INTERNAL, why=why_no_keys(error)) from None
    guests = options.insecure or options.allow_anonymous or options.allow_guest_tokens
    if not (grant.user or guests):
        raise DisconnectError(PERMISSION_DENIED, _NO_USER)
    return msgspec.structs.replace(grant, by_token=True)


def of_another_user(user: str, client: Client) -> TokenInvalidError:
    """The fault of a token that belongs to another user than its connection."""
    mine = f"the connection's is {client.user!r}" if client.user else "the connection is anonymous"
    text = f"it is for another user: its user is {user!r}, {mine}"
    return TokenInvalidError(text, "make the token for the user of the connection token")


async def _server_side_channels(
    node: ClientNode,
    client: Client,
    positions: Mapping[str, SubscriptionPosition],
    unidirectional: bool,
) -> dict[str, SubscriptionGrant]:
    """The granted channels, the personal one, and named ones the client may hear (section 3.3).

    A channel that cannot be is left out, and ends nobody: the server chose it, or a reload removed
    its namespace since the client last heard it. A message has room for thousands of names, so
    this gives way.

    Raises:
        DisconnectError: 3508 for a binary channel that a unidirectional client asks for.
    """
    rules = node.channels
    granted = dict(client.grant.channels)
    personal = rules.personal_channel(client.user)
    if personal is not None and len(granted) < node.options.channel_limit:
        granted.setdefault(personal, SubscriptionGrant())
    channels: dict[str, SubscriptionGrant] = {}
    if not (granted or positions):
        return channels  # as for most clients
    for channel, grant in granted.items():
        if not rules.grantable(channel, client.user):
            _warn_left_out(node, client, channel)
        elif not fits(client.codec, rules.options(channel)):
            warn_of_binary(node, client, channel)
        else:
            channels[channel] = grant
    for channel in positions:
        await node.turns.give_way()
        if channel in granted or not _may_subscribe(rules, channel, client.user):
            continue
        if fits(client.codec, rules.options(channel)):
            channels[channel] = SubscriptionGrant()
        elif unidirectional:
            raise DisconnectError(Disconnect(NOT_AVAILABLE.code, BINARY_CHANNEL), NOT_FOR_TEXT)
        else:
            warn_of_binary(node, client, channel)
    return channels


def _check_limit(node: ClientNode, channels: Mapping[str, SubscriptionGrant]) -> None:
    """Refuse more channels than a connection may have, or than one answer can tell of.

    Raises:
        DisconnectError: 3505.
    """
    size = sum(_SUB_SIZE + len(name) + len(grant.data) for name, grant in channels.items())
    if len(channels) > node.options.channel_limit:
        raise _too_many(node, too_many_channels(node.options.channel_limit))
    if size > node.options.outbox_limit // 2:
        text = f"the answer would tell {size} bytes of the channels, more than half an outbox"
        raise _too_many(node, Why(Cause.LIMIT, text, "grant fewer, or see outbox_limit"))


def _too_many(node: ClientNode, why: Why) -> DisconnectError:
    node.limited["channel_limit"] += 1
    return DisconnectError(CHANNEL_LIMIT, why)


def _warn_left_out(node: ClientNode, client: Client, channel: str) -> None:
    node.connection_log.warn("a channel was left out of a connect", client, channel=channel)


def _is_known(node: ClientNode, client: Client, channel: str) -> bool:
    """Whether no reload removed the channel's namespace while the others were judged."""
    try:
        node.channels.options(channel)
    except ReplyError:
        _warn_left_out(node, client, channel)
        return False
    return True


def _may_subscribe(rules: ChannelRules, channel: str, user: str) -> bool:
    try:
        return rules.may_subscribe(channel, user)
    except ReplyError:
        return False


def _wish(position: SubscriptionPosition | None) -> Wish:
    """What the client asks for in one channel.

    Raises:
        DisconnectError: 3501 for an offset that is not an unsigned number of 64 bits.
    """
    if position is None or not position.recover:
        return server_side_wish(None)
    try:
        return server_side_wish(named_position(position.offset, position.epoch))
    except ReplyError as error:
        raise DisconnectError(BAD_REQUEST, error.why) from None
