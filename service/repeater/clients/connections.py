"""What a back end may do to its users' connections: subscribe, unsubscribe, disconnect, refresh.

Nothing here runs in a client's own task, so whatever is known of a client before an `await` is
looked at again behind it: it may have ended, or have done the same by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import msgspec
import trio

from repeater.clients.joining import open_subscription, server_side_wish, time_left
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
from repeater.protocol.centrifugo.replies import Push, RefreshResult

if TYPE_CHECKING:
    from repeater.access.grants import SubscriptionGrant
    from repeater.clients.client import Client
    from repeater.node import Node
    from repeater.publication import StreamPosition

T = TypeVar("T")

_AT_ONCE: Final = 64  # connections at a time, so that one call does not delay the others


@attrs.frozen(kw_only=True)
class Target:
    """Which connections: those of exactly this user, or one of them (protocol, section 18.2)."""

    user: str = ""
    """Empty for anonymous connections, those without a protocol included."""
    client: str = ""
    """Only the connection with this id; empty for any."""
    session: str = ""
    """Only the connection with this session; empty for any."""

    def connections(self, node: Node) -> list[Client]:
        """Those that are there now; none is no error."""
        return [client for client in node.hub.users.get(self.user, ()) if self._covers(client)]

    def _covers(self, client: Client) -> bool:
        # The id is asked for only where it matters: it is made when it is.
        return (not self.client or self.client == client.id) and (
            self.session in ("", client.session)
        )


async def subscribe(
    node: Node,
    target: Target,
    channel: str,
    grant: SubscriptionGrant,
    since: StreamPosition | None = None,
) -> None:
    """Have connections hear a channel from now on, as server-side subscriptions.

    Each is told by a `subscribe` push, before anything of the channel. Left as they are: those
    that hear it already, by whoever's doing; those without a protocol to be told by; and those
    whose `connect` is not answered yet. A connection at its limit of channels is closed (3505).
    Cancelled, some are subscribed and the others are not.

    Args:
        node: Where the connections are.
        target: Which they are.
        channel: What they are to hear, whatever they may hear by themselves.
        grant: What goes with it.
        since: Where to recover from.

    Raises:
        ReplyError: 107 or 102, for the channel's name; 107 for a grant that has expired.
        BrokerError: history or presence can't be had for some; the others are subscribed.
    """
    node.channels.options(channel)
    if 0 < grant.expire_at <= node.unix_time():
        raise ReplyError(ErrorCode.BAD_REQUEST)
    failed: list[Client] = []

    async def subscribe_one(client: Client) -> None:
        if not await _subscribe(client, channel, grant, since):
            failed.append(client)

    for group in _groups(target.connections(node)):
        async with trio.open_nursery() as nursery:
            for client in group:
                nursery.start_soon(subscribe_one, client)
    if failed:
        raise BrokerError(f"{len(failed)} connections were not subscribed")


async def _subscribe(
    client: Client, channel: str, grant: SubscriptionGrant, since: StreamPosition | None
) -> bool:
    """One connection; False if history or presence can't be had."""
    if client.end is not None or not client.ready or channel in client.channels:
        return True
    if not client.codec.pushes:
        return True
    if len(client.channels) >= client.node.options.channel_limit:
        client.disconnect(CHANNEL_LIMIT)
        return True
    try:
        joining = await open_subscription(client, channel, grant, server_side_wish(since))
    except (DisconnectError, ReplyError):
        return False  # it was told nothing, so it need not come back
    joining.tell()
    await client.node.attendance.announce_join(joining.subscription)
    return True


async def unsubscribe(node: Node, target: Target, channel: str = "") -> None:
    """Stop connections' hearing of a channel, or of all of them, and tell each (2000).

    A checkpoint only where they are many. Cancelled, some are unsubscribed.

    Raises:
        ReplyError: 107 or 102, for the channel's name.
    """
    if channel:
        node.channels.options(channel)

    def unsubscribe_one(client: Client) -> None:
        for name in (channel,) if channel else tuple(client.channels):
            subscription = client.channels.get(name)
            if subscription is not None:
                client.end_subscription(subscription, SERVER_UNSUBSCRIBE)

    await _for_each(target.connections(node), unsubscribe_one)


async def disconnect(
    node: Node,
    target: Target,
    why: Disconnect = FORCE_DISCONNECT,
    whitelist: Collection[str] = (),
) -> None:
    """End connections, but those whose ids are in the whitelist. Does not wait for goodbyes.

    A checkpoint only where they are many. Cancelled, some are ended.
    """

    def disconnect_one(client: Client) -> None:
        if not whitelist or client.id not in whitelist:
            client.disconnect(why)

    await _for_each(target.connections(node), disconnect_one)


async def refresh(
    node: Node, target: Target, *, expire_at: int = 0, info: bytes | None = None
) -> None:
    """Give connections another expiry, and tell each; one in the past ends them (3005).

    Args:
        node: Where the connections are.
        target: Which they are.
        expire_at: Unix seconds; 0 for never.
        info: JSON text in place of what is shown to others; None to leave it.

    Raises:
        BrokerError: the new info did not get into the presence of some channels.
    """
    if 0 < expire_at <= node.unix_time():
        await disconnect(node, target, EXPIRED)
        return
    clients = target.connections(node)
    await _for_each(clients, lambda client: _refresh(client, expire_at, info))
    if info is not None:
        await _renew_presence(node, clients)


def _refresh(client: Client, expire_at: int, info: bytes | None) -> None:
    if client.end is not None:
        return
    info = client.grant.info if info is None else info
    client.grant = msgspec.structs.replace(client.grant, expire_at=expire_at, info=info)
    if not client.ready:
        return  # its `connect` is not answered yet
    client.expiry_changed()
    if client.codec.pushes:
        result = RefreshResult(*time_left(client, client))
        client.outbox.send(client.codec.push(Push(refresh=result)))


async def _renew_presence(node: Node, clients: Sequence[Client]) -> None:
    present = [
        subscription
        for client in clients
        for subscription in client.channels.values()
        if subscription.presence
    ]
    errors: list[BrokerError] = []

    async def renew(client: Client, channel: str) -> None:
        subscription = client.channels.get(channel)
        if subscription is None or not subscription.presence:
            return
        try:
            await node.attendance.enter(subscription)
        except BrokerError as error:
            errors.append(error)

    for group in _groups(present):
        async with trio.open_nursery() as nursery:
            for one in group:
                nursery.start_soon(renew, one.client, one.channel.name)
    if errors:
        raise errors[0]


async def _for_each(clients: Sequence[Client], act: Callable[[Client], None]) -> None:
    """Do it to each; pings and fan-out get their turn between groups of many."""
    for group in _groups(clients):
        for client in group:
            act(client)
        if len(clients) > _AT_ONCE:
            await trio.lowlevel.checkpoint()


def _groups(members: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(members), _AT_ONCE):
        yield members[start : start + _AT_ONCE]
