"""A plain subscriber that can come back: everything that it missed, or the word that it is lost.

All its channels go live in one moment: histories are read one after the other while publications
gather, then, with no await between, it is told what it missed and hears the rest.
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
"""Seconds that a subscriber waits to be where others are already, so that they share a codec.
It takes one batch of fan-out; without that it is served on its own."""

Positions = Mapping[str, StreamPosition]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a plain subscriber is to hear, and where it was."""

    grant: ConnectionGrant
    channels: Mapping[str, SubscriptionGrant]
    since: Positions = {}
    """By channel; none for those that it hears for the first time."""


def positions_of(last_event_id: str, channels: Sequence[str]) -> dict[str, StreamPosition]:
    """Where a client was in these channels; `UNKNOWN` in all of them for an id that is none."""
    positions = parse_event_id(last_event_id)
    if positions is None:
        return dict.fromkeys(channels, UNKNOWN)
    return {name: one for name, one in positions.items() if name in channels}


@asynccontextmanager
async def listening(node: ClientNode, client: Client, wanted: Wanted) -> AsyncIterator[None]:
    """Have a client hear its channels for as long as the block lasts.

    Its codec is `EVENT_STREAM`. Where history can't be had it is disconnected, and comes back.
    """
    client.identify(wanted.grant)
    if wanted.grant.expire_at:
        client.expiry_changed()
    since = wanted.since
    try:
        joinings = [
            # Server-side: losing its place ends the connection, since that is what comes back.
            await open_subscription(node, client, name, grant, server_side_wish(since.get(name)))
            for name, grant in wanted.channels.items()
        ]
    except DisconnectError as error:
        client.disconnect(error.disconnect)
        joinings = []
    except ReplyError:  # what was allowed a moment ago is not any more
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
    """The codec of the channels with positions: shared, as soon as the positions are equal."""
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
    """Where a client will be when it goes live now, by channel in the order of the names."""
    names = {one.subscription.channel.name: one.reached for one in tracked}
    return {name: reached for name, reached in sorted(names.items()) if reached is not None}


def _missed(
    tracked: Sequence[Joining], joinings: Sequence[Joining], since: Positions, limit: int
) -> bytes:
    """What is said before the live events: each recovered one, and which channels are lost.

    More than `limit` bytes of events are none: the client would be cut for them, again and again.
    """
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
