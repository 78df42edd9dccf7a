"""How subscriptions are opened: joined, held, entered into presence, and their history read.

From `Client.join` on, publications gather. Rule: history is read after the broker holds the
channel, so what is not in the history comes to fan-out, and gathers. Questions are asked side by
side: presence and history of all channels of one answer. An engine in this process's memory answers
at once, and nothing here waits.

While the engine is down, a subscription that a client asked for goes live all the same, if it
needs neither history nor presence: the broker holds its channel as soon as the engine is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.brokers.receipts import Receipt
from repeater.clients.binary import carried
from repeater.clients.filtered import filtered, known_sizes
from repeater.clients.joining import Joining, Wish
from repeater.errors import BrokerError, DisconnectError, ReplyError
from repeater.fanout.gathered import Gathered
from repeater.fanout.recovery import (
    Joined,
    Room,
    Rooms,
    Size,
    after_drop,
    join,
    recover,
    recover_newest,
)
from repeater.fanout.rewind import Rewind, rewind
from repeater.publication import START

if TYPE_CHECKING:
    from repeater.access.grants import SubscriptionGrant
    from repeater.brokers.contract import Page
    from repeater.brokers.receipts import Answer
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.clients.subscription import Subscription
    from repeater.options import ChannelOptions
    from repeater.protocol.centrifugo.codecs import Codec
    from repeater.publication import Publication

_AT_ONCE: Final = 64  # channels whose history is read side by side: bounds what is kept of it


class GrantedChannel(msgspec.Struct, frozen=True):
    """One channel that a client is to hear: what goes with it, and what the client asks for."""

    channel: str
    grant: SubscriptionGrant
    wish: Wish


class _Opening:
    """A subscription that has joined its channel. Lives inside `open_subscriptions`."""

    def __init__(
        self,
        node: ClientNode,
        client: Client,
        wanted: GrantedChannel,
        rooms: Rooms,
        size: Size | None,
    ) -> None:
        """Join the channel and ask the broker to hold it; raises as `open_subscriptions`."""
        if client.end is not None:
            raise DisconnectError(client.end)
        wish = wanted.wish
        options = node.channels.options(wanted.channel)
        codec = client.codec
        if codec.compresses:
            codec = codec.for_channel(options)
        if wish.delta and codec.delta is not None:
            codec = codec.delta
        if wish.tags is not None:
            codec = codec.filtered(wish.tags)
        subscription = client.join(wanted.channel, codec, rooms.gathered)
        subscription.server_side = wish.server_side
        subscription.grant, subscription.expire_at = wanted.grant, wanted.grant.expire_at
        _settle(node, client, subscription, options, wish)
        if (
            wish.since is None
            and (options.auto_cache_recover or wish.rewind is not None)
            and _cached(subscription, options)
        ):
            by_itself = wish.rewind is None
            wish = msgspec.structs.replace(wish, since=START, by_itself=by_itself)
        self._node = node
        self._client = client
        self._options = options
        self._wish = wish
        self._rooms = rooms
        self._size = size or codec.size
        self._page: Answer[Page] | None = None
        self._entered: Answer[None] = None
        self.subscription = subscription
        self.held: Answer[None] = None

    def hold(self) -> None:
        """Ask the broker for the channel's events; raises BrokerError as `wait_held`."""
        try:
            self.held = self._node.broker.hold(self.subscription.channel.name)
        except BrokerError as error:
            self._bear(error)

    async def wait_held(self) -> None:
        """Wait until the channel's events come.

        Raises:
            BrokerError: the engine is down, and the subscription cannot do without an answer.
        """
        if not isinstance(self.held, Receipt):
            return
        try:
            await self._node.answered(self.held)
        except BrokerError as error:
            self._bear(error)

    def _bear(self, error: BrokerError) -> None:
        """Go on without the engine if the subscription can; raise its error if it cannot."""
        subscription = self.subscription
        if self._wish.server_side or subscription.positioned or subscription.presence:
            raise error
        self._node.broker_errors["subscribe"] += 1

    @property
    def rewinds(self) -> bool:
        """Whether the subscriber begins in the past: its history is gone through, see `rewind`."""
        return self._wish.rewind is not None

    def ask(self) -> None:
        """Enter presence and ask for history and position, as far as they are wanted."""
        subscription, since = self.subscription, self._wish.since
        self._entered = self._node.attendance.enter(subscription)
        if not subscription.positioned:
            return
        name, options, history = subscription.channel.name, self._options, self._node.broker.history
        if since is not None and _cached(subscription, options):
            self._page = history(name, options, limit=1, reverse=True)
        elif since is None or not subscription.recoverable:
            if self._wish.rewind is not None and subscription.recoverable:
                limit = self._wish.rewind.limit(self._node.options.recovery_limit)
                self._page = history(name, options, limit=limit, reverse=True)
            else:
                self._page = history(name, options, limit=0)
        else:
            limit = self._node.options.recovery_limit
            self._page = history(name, options, since=since, limit=limit)

    async def finish(self) -> Joining:
        """Wait for the answers, and merge the publications that gathered meanwhile."""
        if isinstance(self._entered, Receipt):
            await self._node.answered(self._entered)
        page, self._page = self._page, None
        if isinstance(page, Receipt):
            page = await self._node.answered(page)
        joined = None
        if page is not None:
            joined = await self._merge(page)
            name, found = self.subscription.channel.name, joined.publications
            found = carried(self._node, self._client, name, found)
            joined = msgspec.structs.replace(joined, publications=found)
        return Joining(self._node, self._client, self.subscription, joined, self._wish)

    async def _merge(self, page: Page) -> Joined:
        """Join the history with what gathered meanwhile, without what a filter leaves out."""
        history, top = page
        since, tags, size = self._wish.since, self._wish.tags, self._size
        if since is None or not self.subscription.recoverable:
            gathered = _gathered(self.subscription)
            if self._wish.rewind is None:
                joined = join(top, gathered.take())
            else:
                joined = self._begin(self._wish.rewind, page, gathered.take())
            return after_drop(joined, gathered.dropped)
        if _cached(self.subscription, self._options):
            newest = history[0] if history else None
            joined = recover_newest(since, newest, top, self._rooms.missed, size)
            if self._wish.rewind is not None and not top.offset:
                joined = msgspec.structs.replace(joined, recovered=True)  # there is nothing yet
            dropped = _gathered(self.subscription).dropped
            return after_drop(filtered(joined, tags, size), dropped)
        if tags is not None:
            size = await known_sizes(self._node, history, size)
        gathered = _gathered(self.subscription)
        joined = recover(since, history, top, gathered.take(), self._rooms.missed, size)
        return after_drop(filtered(joined, tags, size), gathered.dropped)

    def _begin(self, asked: Rewind, page: Page, gathered: Sequence[Publication]) -> Joined:
        """Begin in the past, without a position; with the present where that is not allowed."""
        newest, top = page
        if not self.subscription.recoverable:
            return join(top, gathered)
        return rewind(asked, newest, top, gathered, self._rooms.missed, self._size)


async def open_subscription(
    node: ClientNode, client: Client, wanted: GrantedChannel, rooms: Rooms | None = None
) -> Joining:
    """`open_subscriptions` for one channel."""
    (joining,) = await open_subscriptions(node, client, (wanted,), rooms)
    return joining


async def open_subscriptions(
    node: ClientNode,
    client: Client,
    wanted: Sequence[GrantedChannel],
    rooms: Rooms | None = None,
    size: Size | None = None,
) -> list[Joining]:
    """Join channels that a client may hear and does not hear yet, and read their histories.

    Cancelled, it leaves nothing behind. It may be called from a task other than the client's. So
    the client or a subscription may have ended by the time it returns.

    Args:
        node: The client's node.
        client: The client.
        wanted: The channels, each once.
        rooms: The rooms of the answer, if it answers other subscriptions as well.
        size: The size of a publication in the answer; by default the codec's.

    Raises:
        ReplyError: 107 or 102, for a channel's name.
        BrokerError: a channel cannot be held, or its history or presence cannot be read; nothing
            is left of any.
        DisconnectError: the client's own disconnect, if it has already ended.
    """
    rooms = rooms or Rooms(node.options.outbox_limit, client.outbox.waiting)
    openings: list[_Opening] = []
    joinings: list[Joining] = []
    try:
        for one in wanted:
            openings.append(_Opening(node, client, one, rooms, size))
            openings[-1].hold()
        for opening in openings:
            await opening.wait_held()
        for start in range(0, len(openings), _AT_ONCE):
            group = openings[start : start + _AT_ONCE]
            for opening in group:
                opening.ask()
                await node.turns.give_way()
            for opening in group:
                joinings.append(await opening.finish())
                if opening.rewinds:
                    await node.turns.give_way()
    except BaseException as error:  # refused, cancelled, or a bug: the caller gets no `Joining`
        if isinstance(error, BrokerError):
            node.broker_errors["subscribe"] += 1
        _drop_all(client, openings)
        raise
    return joinings


def _drop_all(client: Client, openings: Sequence[_Opening]) -> None:
    for opening in openings:
        drop(client, opening.subscription)


def codec_for(node: ClientNode, client: Client, channel: str) -> Codec:
    """The codec of messages that carry this channel's publications to a client."""
    codec = client.codec
    if codec.compresses:
        # A public channel may be of an unknown namespace: then nothing can be published in it.
        with suppress(ReplyError):
            return codec.for_channel(node.channels.options(channel))
    return codec


def drop(client: Client, subscription: Subscription) -> None:
    """End a subscription whose start was not told. Does nothing if it has ended already."""
    if not subscription.ended:
        client.unsubscribe(subscription.channel.name)


def _settle(
    node: ClientNode,
    client: Client,
    subscription: Subscription,
    options: ChannelOptions,
    wish: Wish,
) -> None:
    """Grant the parts of the wish that options, the grant's overrides and permissions allow."""
    rules, overrides = node.channels, subscription.grant.overrides
    subscription.renewed = options.sub_refresh_proxy_enabled
    subscription.presence = _either(overrides.presence, options.presence)
    subscription.announced = _either(overrides.join_leave, options.join_leave)
    forced = _either(overrides.force_push_join_leave, options.force_push_join_leave)
    subscription.join_leave = subscription.announced and (
        forced or (wish.join_leave and rules.may("presence", options, client.user, subscribed=True))
    )
    if not options.history_size:
        return
    may_read = rules.may("history", options, client.user, subscribed=True)
    subscription.recoverable = _either(overrides.force_recovery, options.force_recovery) or (
        wish.recoverable and (options.allow_recovery or may_read)
    )
    subscription.positioned = (
        subscription.recoverable
        or _either(overrides.force_positioning, options.force_positioning)
        or (wish.positioned and (options.allow_positioning or may_read))
    )


def _either(override: bool | None, option: bool) -> bool:
    return option if override is None else override


def _cached(subscription: Subscription, options: ChannelOptions) -> bool:
    """Whether the channel recovers its newest publication only."""
    return options.force_recovery_mode == "cache" and subscription.recoverable


def _gathered(subscription: Subscription) -> Gathered:
    """What gathers for a subscription; nothing if the subscription has ended meanwhile."""
    gathered = subscription.channel.joining.get(subscription)
    return Gathered(Room()) if gathered is None else gathered
