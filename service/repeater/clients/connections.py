"""What a back end may do to its users' connections on one node: the calls, and how they act.

They run in the caller's task and not in the client's. So what was true of a client before an
`await` is checked again after it: the client may have ended, or may have subscribed by itself.
`user_connections` has them act on all nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from repeater.access.grants import NOTHING_GRANTED, SubscriptionGrant
from repeater.clients.binary import fits, warn_of_binary
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
    ReplyError,
)
from repeater.protocol.centrifugo.replies import Push, RefreshResult
from repeater.publication import StreamPosition

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode

T = TypeVar("T")

_AT_ONCE: Final = 64  # connections at a time, so that one call does not delay the others


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which connections a call is for: a user's, and of these one if its id is given."""

    user: str
    client: str = ""
    session: str = ""


class SubscribeCall(Selection, frozen=True, kw_only=True):
    """Have them hear a channel."""

    channel: str
    grant: SubscriptionGrant = NOTHING_GRANTED
    since: StreamPosition | None = None


class UnsubscribeCall(Selection, frozen=True, kw_only=True):
    """End their subscriptions to a channel; to all channels if it is empty."""

    channel: str = ""


class DisconnectCall(Selection, frozen=True, kw_only=True):
    """End them, except those whose ids are in the whitelist."""

    why: Disconnect = FORCE_DISCONNECT
    whitelist: frozenset[str] = frozenset()


class RefreshCall(Selection, frozen=True, kw_only=True):
    """Give them another expiry, Unix seconds, and other JSON text as their info if it is given."""

    expire_at: int = 0
    info: bytes | None = None


async def subscribe(node: ClientNode, call: SubscribeCall) -> int:
    """Subscribe the connections of this node, and count those that were not subscribed before.

    Raises:
        BrokerError: history or presence cannot be read for some; the others are subscribed.
    """
    found: list[bool | None] = []

    async def subscribe_one(one: Client) -> None:
        found.append(await _subscribe(node, one, call))

    for group in _groups(selected(node, call)):
        async with trio.open_nursery() as nursery:
            for one in group:
                nursery.start_soon(subscribe_one, one)
    if failed := found.count(None):
        raise BrokerError(f"{failed} connections were not subscribed")
    return found.count(True)


async def unsubscribe(node: ClientNode, call: UnsubscribeCall) -> int:
    """Unsubscribe the connections of this node, and count the subscriptions that end."""

    def unsubscribe_one(one: Client) -> None:
        for name in (call.channel,) if call.channel else tuple(one.channels):
            subscription = one.channels.get(name)
            if subscription is not None:
                one.end_subscription(subscription, SERVER_UNSUBSCRIBE)
                ended.append((one, name, subscription.presence))

    ended: list[tuple[Client, str, bool]] = []
    await _for_each(selected(node, call), unsubscribe_one)
    for one, name, present in ended:
        if present:  # Read `one.id` only then: the first reading makes a UUID.
            node.attendance.depart(one.id, name)
    return len(ended)


async def disconnect(node: ClientNode, call: DisconnectCall) -> int:
    """End the connections of this node, and count those that had not ended before."""
    ended: list[Client] = []

    def disconnect_one(one: Client) -> None:
        if one.end is None and not (call.whitelist and one.id in call.whitelist):
            one.disconnect(call.why)
            ended.append(one)

    await _for_each(selected(node, call), disconnect_one)
    return len(ended)


async def refresh(node: ClientNode, call: RefreshCall) -> int:
    """Refresh the connections of this node, and count them.

    Raises:
        BrokerError: the presence of some channels does not have the new info.
    """
    chosen = [one for one in selected(node, call) if one.end is None]
    if 0 < call.expire_at <= node.unix_time():
        await _for_each(chosen, lambda one: one.disconnect(EXPIRED))
        return len(chosen)
    await _for_each(chosen, lambda one: _refresh(node, one, call.expire_at, call.info))
    if call.info is not None:
        await _renew_presence(node, chosen)
    return len(chosen)


def selected(node: ClientNode, selection: Selection) -> list[Client]:
    """The selected connections that are open now on this node."""
    client, session = selection.client, selection.session
    return [
        one
        for one in node.registry.users.get(selection.user, ())
        # Read `one.id` only if `client` is given: the first reading makes a UUID.
        if (not client or client == one.id) and session in ("", one.session)
    ]


async def _subscribe(node: ClientNode, client: Client, call: SubscribeCall) -> bool | None:
    """Subscribe one connection; False if it stays as it is, None if that failed.

    It fails if history or presence cannot be read.
    """
    channel = call.channel
    if client.end is not None or not client.ready or channel in client.channels:
        return False
    if not client.codec.pushes:
        return False
    try:
        if not fits(client.codec, node.channels.options(channel)):
            warn_of_binary(node, client, channel)
            return False
        if len(client.channels) >= node.options.channel_limit:
            client.disconnect(CHANNEL_LIMIT)
            return False
        joining = await open_subscription(
            node, client, GrantedChannel(channel, call.grant, server_side_wish(call.since))
        )
    except (BrokerError, DisconnectError, ReplyError):
        return None  # the client was told nothing, so it need not come back
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
