"""`subscribe`, `unsubscribe`, `disconnect`, `refresh`: calls that change users' connections.

`user` selects the connections of exactly that user, and an empty `user` the anonymous ones.
`client` and `session` select one of them (protocol, section 18.2). It is not an error to select
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from repeater.access.grant_json import OverrideClaims, data_of, info_of, overrides_of
from repeater.access.grants import SubscriptionGrant
from repeater.causes import Cause, Why
from repeater.errors import EXPIRED, FORCE_DISCONNECT, Disconnect, ErrorCode, ReplyError
from repeater.protocol.centrifugo.commands import SincePosition
from repeater.publication import StreamPosition

if TYPE_CHECKING:
    from collections.abc import Callable

    from repeater.api.budget import Budget
    from repeater.json_text import JSONText
    from repeater.node import Node

_REASON_LIMIT: Final = 123  # bytes in a close frame, beside the code
_UINT64: Final = 2**64 - 1
_NO_OFFSET: Final = Why(
    Cause.REQUEST, "recover_since.offset: must be a whole number from 0 to 2^64 - 1"
)
_WRONG_CODE: Final = Why(Cause.REQUEST, "disconnect.code: must be 3000 to 4999")
_LONG_REASON: Final = Why(
    Cause.REQUEST, f"disconnect.reason: it has more than {_REASON_LIMIT} bytes"
)
_JSON_REASON: Final = Why(
    Cause.REQUEST, "disconnect.reason: it is JSON text", "clients would take it for advice"
)

UnixTime = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Seconds; 0 for never."""


class TargetBody(msgspec.Struct, frozen=True):
    """The selection of connections, which the bodies of these methods share."""

    user: str = ""
    client: str = ""
    session: str = ""


class SubscribeBody(TargetBody, frozen=True):
    """`POST /api/subscribe`."""

    channel: str = ""
    info: msgspec.Raw = msgspec.Raw()
    b64info: str = ""
    data: msgspec.Raw = msgspec.Raw()
    b64data: str = ""
    expire_at: UnixTime = 0
    recover_since: SincePosition | None = None
    override: OverrideClaims | None = None


class UnsubscribeBody(TargetBody, frozen=True):
    """`POST /api/unsubscribe`. Without a channel, all channels are unsubscribed."""

    channel: str = ""


class CloseCode(msgspec.Struct, frozen=True):
    """The code and the reason for the end of a connection."""

    code: int = 0
    reason: str = ""


class DisconnectBody(TargetBody, frozen=True):
    """`POST /api/disconnect`."""

    disconnect: CloseCode | None = None
    whitelist: list[str] = []


class RefreshBody(TargetBody, frozen=True):
    """`POST /api/refresh`."""

    expired: bool = False
    expire_at: UnixTime = 0
    info: msgspec.Raw = msgspec.Raw()


class Connections(msgspec.Struct, frozen=True):
    """How many connections the call has changed, over all workers and nodes; perhaps none."""

    num_clients: int


class Subscriptions(msgspec.Struct, frozen=True):
    """How many subscriptions the call has ended, over all workers and nodes; perhaps none."""

    num_subs: int


async def subscribe(node: Node, body: SubscribeBody, _budget: Budget) -> Connections:
    """Subscribe connections to a channel. Those that hear it already stay as they are.

    Raises:
        ReplyError: the channel, the grant or the position is missing or wrong (107), or the
            namespace is unknown (102).
        BrokerError: history or presence cannot be read for some.
    """
    grant = SubscriptionGrant(
        info=_checked("info", info_of, body.info, body.b64info),
        data=_checked("data", data_of, body.data, body.b64data),
        expire_at=body.expire_at,
        overrides=overrides_of(body.override),
    )
    since = None
    if body.recover_since is not None:
        since = StreamPosition(body.recover_since.offset, body.recover_since.epoch)
        if not 0 <= since.offset <= _UINT64:
            raise ReplyError(ErrorCode.BAD_REQUEST, why=_NO_OFFSET)
    changed = await node.subscribe(
        body.user,
        body.channel,
        client=body.client,
        session=body.session,
        grant=grant,
        since=since,
    )
    return Connections(changed)


async def unsubscribe(node: Node, body: UnsubscribeBody, _budget: Budget) -> Subscriptions:
    """Unsubscribe connections from a channel, or from all of theirs.

    Raises:
        ReplyError: the channel's name is wrong (107), or its namespace unknown (102).
    """
    ended = await node.unsubscribe(
        body.user, body.channel, client=body.client, session=body.session
    )
    return Subscriptions(ended)


async def disconnect(node: Node, body: DisconnectBody, _budget: Budget) -> Connections:
    """End connections, by default with 3503, so that the clients do not reconnect.

    Raises:
        ReplyError: 107 for a code that SDKs do not act on, or a reason that is too long or JSON.
    """
    why = FORCE_DISCONNECT if body.disconnect is None else _close_of(body.disconnect)
    ended = await node.disconnect(
        body.user,
        client=body.client,
        session=body.session,
        why=why,
        whitelist=frozenset(body.whitelist),
    )
    return Connections(ended)


async def refresh(node: Node, body: RefreshBody, _budget: Budget) -> Connections:
    """Give connections another expiry, or end them as expired.

    Raises:
        ReplyError: the info is not JSON (107).
        BrokerError: the presence of some channels does not have the new info.
    """
    if body.expired:
        ended = await node.disconnect(
            body.user, client=body.client, session=body.session, why=EXPIRED
        )
        return Connections(ended)
    info = _checked("info", info_of, body.info) or None
    changed = await node.refresh(
        body.user,
        client=body.client,
        session=body.session,
        expire_at=body.expire_at,
        info=info,
    )
    return Connections(changed)


def _checked(
    field: str,
    text_of: Callable[[msgspec.Raw, str | None], JSONText],
    plain: msgspec.Raw,
    b64: str = "",
) -> JSONText:
    try:
        return text_of(plain, b64)
    except ValueError as error:
        why = Why(Cause.REQUEST, f"{'b64' if b64 else ''}{field}: {error}")
        raise ReplyError(ErrorCode.BAD_REQUEST, why=why) from None


def _close_of(close: CloseCode) -> Disconnect:
    """The disconnect, if SDKs act on its code and can read its reason (section 8.2)."""
    code = close.code or FORCE_DISCONNECT.code
    reason = close.reason or FORCE_DISCONNECT.reason
    for wrong, why in (
        (not 3_000 <= code < 5_000, _WRONG_CODE),
        (len(reason.encode()) > _REASON_LIMIT, _LONG_REASON),
        (_is_json(reason), _JSON_REASON),
    ):
        if wrong:
            raise ReplyError(ErrorCode.BAD_REQUEST, why=why)
    return Disconnect(code, reason)


def _is_json(reason: str) -> bool:
    """Whether a reason is JSON text."""
    # The JavaScript SDK would read such a reason as reconnect advice of an older protocol.
    try:
        msgspec.json.decode(reason)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
