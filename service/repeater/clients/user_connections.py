"""The methods of a node that act on connections by their user, on whichever node they are.

This node acts first; then the others are asked to do the same. A call has succeeded only when all
have carried it out. A connection that is opened meanwhile on a node that has acted already is not
met.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from repeater.access.grants import NOTHING_GRANTED, SubscriptionGrant
from repeater.causes import Cause, Why
from repeater.clients import connections
from repeater.clients.connections import (
    DisconnectCall,
    RefreshCall,
    SubscribeCall,
    UnsubscribeCall,
)
from repeater.clients.questions import Questions, encoded
from repeater.errors import FORCE_DISCONNECT, BrokerError, Disconnect, ErrorCode, ReplyError
from repeater.fanout.recovery import named_position
from repeater.json_text import json_text

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.clients.contract import ClientNode
    from repeater.publication import StreamPosition

T = TypeVar("T")

IN_THE_PAST: Final = Why(
    Cause.REQUEST, "expire_at: in the past", "give Unix seconds by this server's clock"
)
"""Why a permission or a denial with such an end is refused."""


class UserConnections:
    """The methods of a node that act on connections by their user (protocol, section 18.2).

    `user` selects the connections of exactly that user. The empty text selects the anonymous
    connections, those without a protocol included. `client` selects only the connection with this
    id, `session` only the connection with this session. It is not an error to select nothing.

    All raise `BrokerError` if another node did not carry the call out; the log says which.
    """

    __slots__ = ()

    async def subscribe(
        self: ClientNode,
        user: str,
        channel: str,
        *,
        client: str = "",
        session: str = "",
        grant: SubscriptionGrant = NOTHING_GRANTED,
        since: StreamPosition | None = None,
    ) -> int:
        """Have connections hear a channel from now on, as server-side subscriptions.

        Returns the number of connections that are subscribed now, and were not before.

        Each connection gets a `subscribe` push before the channel's publications. A connection
        stays as it is if it hears the channel already, if its protocol has no pushes, or if its
        `connect` is not answered yet. A connection whose format cannot carry a binary channel is
        left out, and logged. A connection at its limit of channels is closed (3505).
        Cancelled, some are subscribed and the others are not.

        Args:
            user: Selects connections, with `client` and `session`.
            channel: The channel; the connections need no permission of their own for it.
            client: See `UserConnections`.
            session: See `UserConnections`.
            grant: What goes with the subscription.
            since: The position to recover from.

        Raises:
            ReplyError: 107 or 102, for the channel's name; 107 for a grant that has expired, or
                for an offset in `since` that is not an unsigned number of 64 bits.
            BrokerError: history or presence cannot be read for some; the others are subscribed.
        """
        self.channels.options(channel)
        if 0 < grant.expire_at <= self.unix_time():
            raise ReplyError(ErrorCode.BAD_REQUEST, why=IN_THE_PAST)
        if since is not None:
            named_position(since.offset, since.epoch)
        call = SubscribeCall(
            user=user, client=client, session=session, channel=channel, grant=grant, since=since
        )
        failed: BrokerError | None = None
        here = 0
        try:
            here = await connections.subscribe(self, call)
        except BrokerError as error:
            failed = error
        others = await self.questions.ask_others("subscribe", call)
        if failed is not None:
            raise failed
        return here + _sum(others)

    async def unsubscribe(
        self: ClientNode, user: str, channel: str = "", *, client: str = "", session: str = ""
    ) -> int:
        """Unsubscribe connections from a channel, or from all of theirs, and tell each (2000).

        Returns the number of subscriptions that ended, when presence is up to date. A checkpoint
        only if that needs a wait, for more than 64 connections, or if there are other nodes.
        Cancelled, some are unsubscribed.

        Raises:
            ReplyError: 107 or 102, for the name of a channel that none of them hears.
        """
        call = UnsubscribeCall(user=user, client=client, session=session, channel=channel)
        here = await connections.unsubscribe(self, call)
        ended = here + _sum(await self.questions.ask_others("unsubscribe", call))
        if channel and not ended:
            self.channels.options(channel)  # a name that is heard may have become invalid since
        return ended

    async def disconnect(
        self: ClientNode,
        user: str,
        *,
        client: str = "",
        session: str = "",
        why: Disconnect = FORCE_DISCONNECT,
        whitelist: Collection[str] = (),
    ) -> int:
        """End connections, except those whose ids are in the whitelist; returns their number.

        Does not wait for goodbyes. A checkpoint only for more than 64 connections, or if there are
        other nodes. Cancelled, some are ended.
        """
        call = DisconnectCall(
            user=user, client=client, session=session, why=why, whitelist=frozenset(whitelist)
        )
        here = await connections.disconnect(self, call)
        return here + _sum(await self.questions.ask_others("disconnect", call))

    async def refresh(
        self: ClientNode,
        user: str,
        *,
        client: str = "",
        session: str = "",
        expire_at: int = 0,
        info: bytes | None = None,
    ) -> int:
        """Give connections another expiry, and tell each. A past expiry ends them (3005).

        Returns their number.

        Args:
            user: Selects connections, with `client` and `session`.
            client: See `UserConnections`.
            session: See `UserConnections`.
            expire_at: Unix seconds; 0 for never.
            info: New JSON text to show to other clients; None keeps the old one.

        Raises:
            ReplyError: the info is not JSON text (107).
            BrokerError: the presence of some channels does not have the new info.
        """
        if info is not None:
            info = _checked_info(info)
        call = RefreshCall(
            user=user, client=client, session=session, expire_at=expire_at, info=info
        )
        failed: BrokerError | None = None
        here = 0
        try:
            here = await connections.refresh(self, call)
        except BrokerError as error:
            failed = error
        others = await self.questions.ask_others("refresh", call)
        if failed is not None:
            raise failed
        return here + _sum(others)


def register(node: ClientNode, questions: Questions) -> None:
    """Have a node carry out these calls for others. It answers how many it has changed."""

    async def subscribe(_asker: Member, body: bytes) -> bytes:
        return encoded(await connections.subscribe(node, _decoded(body, SubscribeCall)))

    async def unsubscribe(_asker: Member, body: bytes) -> bytes:
        return encoded(await connections.unsubscribe(node, _decoded(body, UnsubscribeCall)))

    async def disconnect(_asker: Member, body: bytes) -> bytes:
        return encoded(await connections.disconnect(node, _decoded(body, DisconnectCall)))

    async def refresh(_asker: Member, body: bytes) -> bytes:
        call = _decoded(body, RefreshCall)
        if call.info is not None:
            call = msgspec.structs.replace(call, info=_checked_info(call.info))
        return encoded(await connections.refresh(node, call))

    for answerer in (subscribe, unsubscribe, disconnect, refresh):
        questions.register(answerer.__name__, answerer)


def _sum(answers: Sequence[bytes]) -> int:
    """What the others have changed, in all."""
    return sum(_decoded(one, int) for one in answers)


def _decoded(body: bytes, kind: type[T]) -> T:
    return msgspec.msgpack.decode(body, type=kind)


def _checked_info(info: bytes) -> bytes:
    try:
        return json_text(info) if info else info
    except ValueError as error:
        why = Why(Cause.REQUEST, f"info: not JSON: {error}")
        raise ReplyError(ErrorCode.BAD_REQUEST, why=why) from None
