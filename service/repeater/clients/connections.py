"""What a back end may do to its users' connections: subscribe, unsubscribe, disconnect, refresh.

These are methods of `Node`, in a file of their own because they are an idea of their own. They
run in the caller's task and not in the client's. So what was true of a client before an `await` is
checked again after it: the client may have ended, or may have subscribed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from repeater.access.grants import NOTHING_GRANTED, SubscriptionGrant
from repeater.clients.joining import server_side_wish, time_left
from repeater.clients.openings import GrantedChannel, open_subscription
from repeater.errors import (
    CHANNEL_LIMIT,
    EXPIRED,
    FORCE_DISCONNECT,
    SERVER_UNSUBSCRIBE,
    BrokerError,
    Disconnect,
    DisconnectError,
    ErrorCode,
    ReplyError,
)
from repeater.fanout.recovery import named_position
from repeater.json_text import json_text
from repeater.protocol.centrifugo.replies import Push, RefreshResult

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.publication import StreamPosition

T = TypeVar("T")

_AT_ONCE: Final = 64  # connections at a time, so that one call does not delay the others


class UserConnections:
    """The methods of a node that act on connections by their user (protocol, section 18.2).

    `user` selects the connections of exactly that user. The empty text selects the anonymous
    connections, those without a protocol included. `client` selects only the connection with this
    id, `session` only the connection with this session. It is not an error to select nothing.
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
    ) -> None:
        """Have connections hear a channel from now on, as server-side subscriptions.

        Each connection gets a `subscribe` push before the channel's publications. A connection
        stays as it is if it hears the channel already, if its protocol has no pushes, or if its
        `connect` is not answered yet. A connection at its limit of channels is closed (3505).
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
            raise ReplyError(ErrorCode.BAD_REQUEST)
        if since is not None:
            named_position(since.offset, since.epoch)
        failed: list[Client] = []

        async def subscribe_one(one: Client) -> None:
            if not await _subscribe(self, one, channel, grant, since):
                failed.append(one)

        for group in _groups(selected(self, user, client, session)):
            async with trio.open_nursery() as nursery:
                for one in group:
                    nursery.start_soon(subscribe_one, one)
        if failed:
            raise BrokerError(f"{len(failed)} connections were not subscribed")

    async def unsubscribe(
        self: ClientNode, user: str, channel: str = "", *, client: str = "", session: str = ""
    ) -> None:
        """Unsubscribe connections from a channel, or from all of theirs, and tell each (2000).

        Returns when presence is up to date. A checkpoint only if that needs a wait, or for more
        than 64 connections. Cancelled, some are unsubscribed.

        Raises:
            ReplyError: 107 or 102, for the name of a channel that none of them hears.
        """
        chosen = selected(self, user, client, session)
        if channel and not any(channel in one.channels for one in chosen):
            self.channels.options(channel)  # a name that is heard may have become invalid since

        def unsubscribe_one(one: Client) -> None:
            for name in (channel,) if channel else tuple(one.channels):
                subscription = one.channels.get(name)
                if subscription is not None:
                    one.end_subscription(subscription, SERVER_UNSUBSCRIBE)
                    if subscription.presence:
                        present.append((one.id, name))

        present: list[tuple[str, str]] = []
        await _for_each(chosen, unsubscribe_one)
        for client_id, name in present:
            self.attendance.depart(client_id, name)

    async def disconnect(
        self: ClientNode,
        user: str,
        *,
        client: str = "",
        session: str = "",
        why: Disconnect = FORCE_DISCONNECT,
        whitelist: Collection[str] = (),
    ) -> None:
        """End connections, except those whose ids are in the whitelist.

        Does not wait for goodbyes. A checkpoint only for more than 64 connections. Cancelled, some
        are ended.
        """

        def disconnect_one(one: Client) -> None:
            if not whitelist or one.id not in whitelist:
                one.disconnect(why)

        await _for_each(selected(self, user, client, session), disconnect_one)

    async def refresh(
        self: ClientNode,
        user: str,
        *,
        client: str = "",
        session: str = "",
        expire_at: int = 0,
        info: bytes | None = None,
    ) -> None:
        """Give connections another expiry, and tell each. A past expiry ends them (3005).

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
        chosen = selected(self, user, client, session)
        if 0 < expire_at <= self.unix_time():
            await _for_each(chosen, lambda one: one.disconnect(EXPIRED))
            return
        await _for_each(chosen, lambda one: _refresh(self, one, expire_at, info))
        if info is not None:
            await _renew_presence(self, chosen)


def _checked_info(info: bytes) -> bytes:
    try:
        return json_text(info) if info else info
    except ValueError:
        raise ReplyError(ErrorCode.BAD_REQUEST) from None


def selected(node: ClientNode, user: str, client: str, session: str) -> list[Client]:
    """The selected connections that are open now."""
    return [
        one
        for one in node.registry.users.get(user, ())
        # Read `one.id` only if `client` is given: the first reading makes a UUID.
        if (not client or client == one.id) and session in ("", one.session)
    ]


async def _subscribe(
    node: ClientNode,
    client: Client,
    channel: str,
    grant: SubscriptionGrant,
    since: StreamPosition | None,
) -> bool:
    """Subscribe one connection; False if history or presence cannot be read."""
    if client.end is not None or not client.ready or channel in client.channels:
        return True
    if not client.codec.pushes:
        return True
    if len(client.channels) >= node.options.channel_limit:
        client.disconnect(CHANNEL_LIMIT)
        return True
    try:
        joining = await open_subscription(
            node, client, GrantedChannel(channel, grant, server_side_wish(since))
        )
    except (DisconnectError, ReplyError):
        return False  # the client was told nothing, so it need not come back
    joining.tell()
    node.attendance.announce_join(joining.subscription)
    return True


def _refresh(node: ClientNode, client: Client, expire_at: int, info: bytes | None) -> None:
    if client.end is not None:
        return
    info = client.grant.info if info is None else info
    client.grant = msgspec.structs.replace(client.grant, expire_at=expire_at, info=info)
    if not client.ready:
        return  # its `connect` is not answered yet
    client.expiry_changed()
    if client.codec.pushes:
        result = RefreshResult(*time_left(node, client))
        client.outbox.send(client.codec.push(Push(refresh=result)))


async def _renew_presence(node: ClientNode, clients: Sequence[Client]) -> None:
    present = [one for client in clients for one in client.channels.values()]
    if not await node.attendance.renew(present):
        raise BrokerError("presence does not have the new info of some")


async def _for_each(clients: Sequence[Client], act: Callable[[Client], None]) -> None:
    """Call `act` for each client; pings and fan-out get their turn between groups."""
    for group in _groups(clients):
        for client in group:
            act(client)
        if len(clients) > _AT_ONCE:
            await trio.lowlevel.checkpoint()


def _groups(members: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(members), _AT_ONCE):
        yield members[start : start + _AT_ONCE]
