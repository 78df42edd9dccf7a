"""`subscribe`, `unsubscribe`, `disconnect`, `refresh`: what is done to users' connections.

`user` selects the connections of exactly that user, none given those of nobody in particular;
`client` and `session` narrow it down (protocol, section 18.2). No such connection is no error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from repeater.access.grant_json import OverrideClaims, json_of, overrides_of
from repeater.access.grants import SubscriptionGrant
from repeater.errors import EXPIRED, FORCE_DISCONNECT, Disconnect, ErrorCode, ReplyError
from repeater.protocol.centrifugo.commands import SincePosition
from repeater.protocol.centrifugo.replies import Empty
from repeater.publication import StreamPosition

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.node import Node

_EMPTY: Final = Empty()
_REASON_LIMIT: Final = 123  # bytes in a close frame, beside the code
_UINT64: Final = 2**64 - 1

UnixTime = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Seconds; 0 for never."""


class TargetBody(msgspec.Struct, frozen=True):
    """Whose connections; the part that these methods share."""

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
    """`POST /api/unsubscribe`; no channel is every channel."""

    channel: str = ""


class CloseCode(msgspec.Struct, frozen=True):
    """What a connection is ended with."""

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


async def subscribe(node: Node, body: SubscribeBody, _budget: Budget) -> Empty:
    """Have connections hear a channel.

    Raises:
        ReplyError: the channel, the grant or the position is missing or wrong (107), or the
            namespace is unknown (102).
        BrokerError: history or presence can't be had for some.
    """
    grant = SubscriptionGrant(
        info=_json(body.info, body.b64info),
        data=_json(body.data, body.b64data),
        expire_at=body.expire_at,
        overrides=overrides_of(body.override),
    )
    since = None
    if body.recover_since is not None:
        since = StreamPosition(body.recover_since.offset, body.recover_since.epoch)
        if not 0 <= since.offset <= _UINT64:
            raise ReplyError(ErrorCode.BAD_REQUEST)
    await node.subscribe(
        body.user,
        body.channel,
        client=body.client,
        session=body.session,
        grant=grant,
        since=since,
    )
    return _EMPTY


async def unsubscribe(node: Node, body: UnsubscribeBody, _budget: Budget) -> Empty:
    """Stop connections' hearing of a channel, or of all.

    Raises:
        ReplyError: the channel's name is wrong (107), or its namespace unknown (102).
    """
    await node.unsubscribe(body.user, body.channel, client=body.client, session=body.session)
    return _EMPTY


async def disconnect(node: Node, body: DisconnectBody, _budget: Budget) -> Empty:
    """End connections, by default with 3503, so that they stay away.

    Raises:
        ReplyError: 107 for a code or reason that no close frame could carry.
    """
    why = FORCE_DISCONNECT if body.disconnect is None else _checked(body.disconnect)
    await node.disconnect(
        body.user,
        client=body.client,
        session=body.session,
        why=why,
        whitelist=frozenset(body.whitelist),
    )
    return _EMPTY


async def refresh(node: Node, body: RefreshBody, _budget: Budget) -> Empty:
    """Let connections expire at another time, or now.

    Raises:
        ReplyError: the info is not JSON (107).
        BrokerError: the new info did not get into the presence of some channels.
    """
    if body.expired:
        await node.disconnect(body.user, client=body.client, session=body.session, why=EXPIRED)
        return _EMPTY
    info = _json(body.info, "") if body.info else None
    await node.refresh(
        body.user,
        client=body.client,
        session=body.session,
        expire_at=body.expire_at,
        info=info,
    )
    return _EMPTY


def _json(plain: msgspec.Raw, b64: str) -> bytes:
    try:
        return json_of(plain, b64)
    except ValueError:
        raise ReplyError(ErrorCode.BAD_REQUEST) from None


def _checked(close: CloseCode) -> Disconnect:
    """A code that SDKs take advice from, and a reason that they can read (section 8.2)."""
    code = close.code or FORCE_DISCONNECT.code
    reason = close.reason or FORCE_DISCONNECT.reason
    if not 3_000 <= code < 5_000 or len(reason.encode()) > _REASON_LIMIT or _is_json(reason):
        raise ReplyError(ErrorCode.BAD_REQUEST)
    return Disconnect(code, reason)


def _is_json(reason: str) -> bool:
    """The JavaScript SDK would take it for advice of an older protocol."""
    try:
        msgspec.json.decode(reason)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
