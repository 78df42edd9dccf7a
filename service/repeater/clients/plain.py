"""Plain subscribers: those without positions, and those that can come back.

Rule 1: the request is answered after the broker holds the channels and their histories are read, so
that an engine that is down is an HTTP status, and nothing is missed from the answer on. Rule 2: all
channels go live at one moment. Publications gather until then; with no await between, the missed
events are queued and the channels go live. Who comes back gets all events that it missed, or a
`reset`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.brokers.receipts import Receipt
from repeater.clients.joining import Joining, Wish, complete_all, server_side_wish
from repeater.clients.openings import GrantedChannel, codec_for, open_subscriptions
from repeater.clients.replay import Replay
from repeater.clients.since import Positions
from repeater.errors import (
    PERMISSION_DENIED,
    SERVER_ERROR,
    BrokerError,
    DisconnectError,
    ReplyError,
)
from repeater.fanout.recovery import Room, Rooms, Size
from repeater.fanout.rewind import Rewind
from repeater.protocol.event_codec import EventCodec
from repeater.protocol.sse.event_id import event_id
from repeater.publication import Publication

if TYPE_CHECKING:
    from repeater.brokers.receipts import Answer
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode

_PATIENCE: Final = 1.0
"""Seconds that a subscriber waits for other subscribers to reach its positions, to share a codec.
One batch of fan-out brings them there; after the wait the subscriber gets a codec of its own."""

_WITHOUT_POSITION: Final = Wish()

_ID: Final = 64
_ID_OF_A_CHANNEL: Final = 8
"""The characters of an id that is not known yet, where the streams share an epoch as they mostly
do: an offset of up to 41 bits for each channel. If ids are longer, `Replay` finds that it is too
much."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The channels that a plain subscriber is to hear, and where it begins in them."""

    grant: ConnectionGrant
    channels: Mapping[str, SubscriptionGrant]
    since: Positions = {}
    """Its old positions, by channel; a channel that is heard for the first time has no entry."""
    rewind: Rewind | None = None
    """The part of the past that a client without old positions asks for."""
    envelope: bool = False
    """Whether it gets each event in its envelope."""

    @property
    def asked(self) -> Collection[str]:
        """The channels in which it does not begin with the present."""
        return self.since if self.rewind is None else self.channels


Greet = Callable[[], Awaitable[None]]
"""Answers the client's request, or queues the answer: from then on its events may be sent."""


def holds_at_once(node: ClientNode, channels: Collection[str]) -> bool:
    """Whether the broker holds these channels without a wait, as one in this process does.

    Then the caller lets a client hear them before it awaits anything; else it goes on with `hear`.
    """
    hold = node.broker.hold
    try:
        for name in channels:
            if hold(name) is not None:
                return False
    except BrokerError:
        return False
    return True


async def hear(
    node: ClientNode, client: Client, channels: Collection[str], greet: Greet | None = None
) -> None:
    """Have a plain subscriber hear channels without positions, then answer its request.

    The channels are held before the answer: whoever sees its connection open misses nothing from
    then on. If the broker fails, the client is ended before it is answered.

    Args:
        node: The client's node.
        client: Is identified, and becomes ready when its channels are live.
        channels: Each once.
        greet: Answers; None if there is nothing to answer.
    """

    def say() -> bytes:
        client.became_ready()
        return b""

    if client.end is not None:
        return
    room = Room(node.options.outbox_limit // 2)
    joinings: list[Joining] = []
    held: list[Answer[None]] = []
    try:
        for name in channels:
            subscription = client.join(name, codec_for(node, client, name), room)
            joinings.append(Joining(node, client, subscription, None, _WITHOUT_POSITION))
            held.append(node.broker.hold(name))
        for answer in held:
            if isinstance(answer, Receipt):
                await node.answered(answer)
    except BrokerError as error:
        node.broker_errors["subscribe"] += 1
        node.refusals.end(client, SERVER_ERROR, error.why(), "subscribe")
    if client.end is None:
        if greet is not None:
            await greet()
        complete_all(client, joinings, say)
        client.outbox.flush()


@asynccontextmanager
async def listening(
    node: ClientNode, client: Client, wanted: Wanted, greet: Greet | None = None
) -> AsyncIterator[None]:
    """Have a client hear its channels for as long as the block lasts.

    The client's codec is an `EventCodec` without ids. Its request is answered when the channels are
    held and their histories are read. If that fails, the client is ended before it is answered, and
    the block is cancelled.

    Args:
        node: The client's node.
        client: Becomes ready when its request is answered.
        wanted: Its channels.
        greet: Answers; None if there is nothing to answer.
    """
    client.identify(wanted.grant)
    if client.ready:  # its channels are held at once, so it need not be made ready later
        client.introduce()
        if wanted.grant.expire_at:
            client.expiry_changed()
    base, asked = _codec_of(client), wanted.asked
    size = _size_with_id(base, wanted) if asked else None
    joinings = await _open_all(node, client, wanted, size)
    names = tuple(sorted(wanted.channels))
    replay = Replay(base, joinings, names, asked, node.options.outbox_limit // 2)
    if client.end is None and greet is not None:
        await greet()
    if not client.ready:  # it is not stale from now on: what follows waits for our own work only
        client.became_ready()
    tracked = [one for one in joinings if one.subscription.recoverable]
    patience = trio.current_time() + _PATIENCE if len(names) > 1 else 0.0
    if asked:  # there may be much to send, which is not to be kept while it waits
        await _find_shared(node, base, tracked, names, patience)
    if not replay.is_empty:
        async with node.replays:
            await replay.prepare(node.turns.give_way)
    codec = await _codec(node, base, tracked, names, patience)
    with node.position_sets.use((base, names), codec) if codec.positions else nullcontext():
        _go_live(node, client, joinings, codec, replay)
        # This frame lives as long as its client: nothing of its beginning may stay in it.
        del wanted, asked, size, joinings, tracked, replay, codec, base, greet
        yield


def _codec_of(client: Client) -> EventCodec:
    codec = client.codec
    assert isinstance(codec, EventCodec), "a client that can come back needs ids"
    return codec


def _go_live(
    node: ClientNode,
    client: Client,
    joinings: Sequence[Joining],
    codec: EventCodec,
    replay: Replay,
) -> None:
    """Send what was missed and let all channels go live, in one call without an await."""

    def say() -> bytes:
        for chunk in replay.finish():
            client.outbox.push(chunk)
        return b""

    for joining in joinings:
        if joining.subscription.recoverable:
            joining.subscription.codec = codec
    if client.end is None:
        complete_all(client, joinings, say)
    client.outbox.flush()
    for joining in joinings:
        node.attendance.announce_join(joining.subscription)


async def _open_all(
    node: ClientNode, client: Client, wanted: Wanted, size: Size | None
) -> Sequence[Joining]:
    """Open the subscriptions; nothing, and a client that is asked to leave, if one fails.

    They are server-side, so that a lost position ends the connection: a plain client recovers by
    connecting again.
    """
    since, rewind = wanted.since, wanted.rewind
    channels = [
        GrantedChannel(name, grant, server_side_wish(since.get(name), rewind))
        for name, grant in wanted.channels.items()
    ]
    try:
        return await open_subscriptions(
            node, client, channels, Rooms(node.options.outbox_limit), size
        )
    except BrokerError as error:
        node.refusals.end(client, SERVER_ERROR, error.why(), "subscribe")
        return ()
    except DisconnectError as error:
        client.disconnect(error.disconnect)
        return ()
    except ReplyError as error:  # the options changed after the channel was allowed
        node.refusals.end(client, PERMISSION_DENIED, error.why, "subscribe")
        return ()


def _size_with_id(codec: EventCodec, wanted: Wanted) -> Size:
    """The size of a publication in the answer to a client that does not begin with the present."""
    channels, since = wanted.channels, wanted.since
    length = len(event_id(since, channels)) + len(since)  # offsets may grow
    if not since:
        length = _ID + _ID_OF_A_CHANNEL * len(channels)

    def size(publication: Publication) -> int:
        return codec.size_with_id(publication, length)

    return size


async def _codec(
    node: ClientNode,
    base: EventCodec,
    tracked: Sequence[Joining],
    names: tuple[str, ...],
    patience: float,
) -> EventCodec:
    """The codec of the channels with positions: the shared one once the positions are equal."""
    if not tracked:
        return base
    if len(names) == 1:
        return base.of_channel
    shared = await _find_shared(node, base, tracked, names, patience)
    if shared is not None:
        return shared
    reached = {one.subscription.channel.name: one.reached for one in tracked}
    return base.of_set({name: at for name, at in reached.items() if at is not None}, names)


async def _find_shared(
    node: ClientNode,
    base: EventCodec,
    tracked: Sequence[Joining],
    names: tuple[str, ...],
    patience: float,
) -> EventCodec | None:
    """Wait until the positions are those of the shared codec; None without one, or in vain.

    No checkpoint where nothing is waited for; `patience` is the deadline.
    """
    if len(names) == 1 or not tracked:
        return None
    with trio.move_on_at(patience):
        while (shared := node.position_sets.get((base, names))) is not None:
            if _stand_at(shared.positions, tracked):
                return shared
            await node.hub.distributed.park()
    return None


def _stand_at(positions: Positions, tracked: Sequence[Joining]) -> bool:
    """Whether a client has these positions if it goes live now."""
    if len(positions) != len(tracked):
        return False
    return all(positions.get(one.subscription.channel.name) == one.reached for one in tracked)
