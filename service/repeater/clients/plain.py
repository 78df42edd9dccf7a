"""A plain subscriber that can come back: it gets all events that it missed, or a `reset`.

All its channels go live at one moment. Histories are read one after the other while publications
gather. Then, with no await between, the missed events are queued and the channels go live.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.clients.joining import Joining, complete_all, open_subscription, server_side_wish
from repeater.errors import PERMISSION_DENIED, DisconnectError, ReplyError
from repeater.protocol.sse.event_id import UNKNOWN, event_id, parse_event_id
from repeater.protocol.sse.event_stream import (
    EVENT_STREAM_CHANNEL,
    EventStreamCodec,
    SetCodec,
    event,
    reset,
    silent_id,
)
from repeater.publication import Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode

_PATIENCE: Final = 1.0
"""Seconds that a subscriber waits for other subscribers to reach its positions, to share a codec.
One batch of fan-out brings them there; after the wait the subscriber gets a codec of its own."""

Positions = Mapping[str, StreamPosition]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The channels that a plain subscriber is to hear, and its old positions in them."""

    grant: ConnectionGrant
    channels: Mapping[str, SubscriptionGrant]
    since: Positions = {}
    """By channel; a channel that is heard for the first time has no entry."""


def positions_of(last_event_id: str, channels: Sequence[str]) -> dict[str, StreamPosition]:
    """The client's positions in these channels; `UNKNOWN` in all of them for an invalid id."""
    positions = parse_event_id(last_event_id)
    if positions is None:
        return dict.fromkeys(channels, UNKNOWN)
    return {name: one for name, one in positions.items() if name in channels}


@asynccontextmanager
async def listening(node: ClientNode, client: Client, wanted: Wanted) -> AsyncIterator[None]:
    """Have a client hear its channels for as long as the block lasts.

    The client's codec is `EVENT_STREAM`. If history cannot be read, the client is disconnected
    and comes back.
    """
    client.identify(wanted.grant)
    if wanted.grant.expire_at:
        client.expiry_changed()
    since = wanted.since
    try:
        joinings = [
            # Server-side, so that a lost position ends the connection: a plain client recovers
            # by connecting again.
            await open_subscription(node, client, name, grant, server_side_wish(since.get(name)))
            for name, grant in wanted.channels.items()
        ]
    except DisconnectError as error:
        client.disconnect(error.disconnect)
        joinings = []
    except ReplyError:  # the options changed after the channel was allowed
        client.disconnect(PERMISSION_DENIED)
        joinings = []
    tracked = [one for one in joinings if one.subscription.recoverable]
    codec = await _codec(node, tracked)
    names = _names(tracked)
    sets = node.position_sets
    with sets.use(names, codec) if isinstance(codec, SetCodec) else nullcontext():
        for joining in tracked:
            joining.subscription.codec = codec
        limit = node.options.outbox_limit // 2
        if client.end is None:
            complete_all(client, joinings, lambda: _missed(tracked, joinings, since, limit))
        client.outbox.flush()
        node.connection_log.connected(client)
        for joining in joinings:
            await node.attendance.announce_join(joining.subscription)
        yield


async def _codec(node: ClientNode, tracked: Sequence[Joining]) -> EventStreamCodec:
    """The codec of the channels with positions: the shared one once the positions are equal."""
    if len(tracked) < 2:
        return EVENT_STREAM_CHANNEL
    names = _names(tracked)
    with trio.move_on_after(_PATIENCE):
        while (shared := node.position_sets.get(names)) is not None:
            if shared.positions == _positions(tracked):
                return shared
            await node.hub.distributed.park()
    return SetCodec(_positions(tracked))


def _names(joinings: Sequence[Joining]) -> tuple[str, ...]:
    return tuple(sorted(one.subscription.channel.name for one in joinings))


def _positions(tracked: Sequence[Joining]) -> dict[str, StreamPosition]:
    """The positions of a client if it goes live now, sorted by channel name."""
    names = {one.subscription.channel.name: one.reached for one in tracked}
    return {name: reached for name, reached in sorted(names.items()) if reached is not None}


def _missed(
    tracked: Sequence[Joining], joinings: Sequence[Joining], since: Positions, limit: int
) -> bytes:
    """The bytes before the live events: each recovered event, and a `reset` for lost channels.

    More than `limit` bytes of events count as lost.
    """
    # A client would be cut as slow for more, come back, and be cut again.
    at, events, recovered = dict[str, StreamPosition](), list[Publication](), set[str]()
    for joining in sorted(tracked, key=lambda one: one.subscription.channel.name):
        joined, name = joining.joined, joining.subscription.channel.name
        if joined is None:
            continue
        at[name] = joined.position
        if joined.recovered:
            recovered.add(name)
            at[name] = since.get(name, joined.position)
        events += (*joined.publications, *joining.absorb())
    lost = [name for one in joinings if (name := one.subscription.channel.name) in since]
    lost = [name for name in lost if name not in recovered]
    if sum(len(one.data) for one in events) > limit:
        lost = [name for one in joinings if (name := one.subscription.channel.name) in since]
        return reset(lost, event_id(_positions(tracked)))
    chunks = [reset(lost, event_id(at)) if lost else silent_id(event_id(at))]
    for publication in events:
        if publication.position is not None:
            at[publication.channel] = publication.position
        chunks.append(event(publication.data, position=event_id(at)))
    return b"".join(chunks)
