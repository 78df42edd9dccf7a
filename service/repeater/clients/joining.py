"""How a subscription goes live: presence, history, then the reply and the start in one step.

Rule 1: from `Client.join` on, publications gather. Rule 2: the reply is queued and the subscription
goes live with no await between, so nothing is lost, doubled or told before the reply. Both halves
are one sync call, `Joining.complete`, so that a caller cannot break the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.access.grants import SubscriptionGrant
from repeater.clients.filtered import filtered, known_sizes
from repeater.errors import SERVER_ERROR, BrokerError, DisconnectError
from repeater.fanout.gathered import Gathered
from repeater.fanout.recovery import (
    Joined,
    Room,
    Rooms,
    Size,
    after_drop,
    go_on,
    join,
    recover,
    recover_newest,
)
from repeater.json_text import embedded
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.protocol.centrifugo.replies import Push, SubscribeResult, publication_result
from repeater.publication import START, Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.clients.subscription import Subscription
    from repeater.options import ChannelOptions
    from repeater.protocol.centrifugo.codecs import Codec


_TTL_LIMIT: Final = 365 * 24 * 3600


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The options that a subscriber asks for. Those that are not allowed are off; no error."""

    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: bool = False
    since: StreamPosition | None = None
    """The position to recover from; None for a new subscriber."""
    tags: TagsFilter | None = None
    server_side: bool = False


class Joining:
    """A subscription whose history is read but which is not live yet. Made by `open_subscription`.

    The code that opened it calls `complete`, `complete_all` or `tell` once, or `drop`.
    """

    def __init__(
        self,
        node: ClientNode,
        client: Client,
        subscription: Subscription,
        joined: Joined | None,
        wish: Wish,
    ) -> None:
        self._node = node
        self._client = client
        self.subscription = subscription
        self.joined = joined
        self._wish = wish

    def complete(self, say: Callable[[SubscribeResult], bytes]) -> None:
        """Queue the answer, go live, and queue the publications that gathered meanwhile.

        Nothing is flushed. If the client was ended meanwhile, only the answer is queued. If only
        the subscription was ended, the client is told its end behind the answer.

        Args:
            say: Encodes the result as the bytes of the answer.
        """
        complete_all(self._client, (self,), lambda: say(self.result()))

    def result(self) -> SubscribeResult:
        """The subscribe result, with all missed publications or, if some are lost, with none.

        Valid at this moment only: call it while `complete` or `complete_all` asks for the answer.
        """
        self._heed_drop()
        subscription, joined, since = self.subscription, self.joined, self._wish.since
        expires, ttl = time_left(self._node, subscription)
        delta = subscription.codec.following is not subscription.codec
        result = SubscribeResult(
            expires=expires,
            ttl=ttl,
            recoverable=subscription.recoverable,
            positioned=subscription.positioned,
            data=embedded(subscription.grant.data),
            was_recovering=since is not None,
            delta=delta,
        )
        if joined is None:
            return result
        offset = since.offset if joined.recovered and since is not None else joined.position.offset
        publications = [publication_result(one, delta=delta) for one in joined.publications]
        return msgspec.structs.replace(
            result,
            epoch=joined.position.epoch,
            offset=offset,
            recovered=joined.recovered,
            publications=publications or None,
        )

    @property
    def reached(self) -> StreamPosition | None:
        """The subscriber's position if it goes live now; None for a channel without a stream."""
        self._heed_drop()
        if self.joined is None:
            return None
        last = next((one for one in reversed(self._gathered()) if one.offset), None)
        if last is None or last.epoch != self.joined.position.epoch:
            return self.joined.position
        return StreamPosition(max(last.offset, self.joined.position.offset), last.epoch)

    def absorb(self) -> Sequence[Publication]:
        """Take the publications that gathered since the history was read, for the answer.

        Those behind a gap in the offsets stay, so that `complete` finds the gap.
        """
        self._heed_drop()
        if self.joined is None:
            return ()
        gathered = self._gathered()
        if not gathered:
            return ()
        gone_on = go_on(self.joined.position, gathered)
        self.joined = msgspec.structs.replace(self.joined, position=gone_on.position)
        return [one for one in gone_on.publications if one.offset]

    def _gathered(self) -> Sequence[Publication]:
        return self.subscription.channel.joining.get(self.subscription, ())

    def _heed_drop(self) -> None:
        """Go on behind what was dropped since the history was read, if anything was."""
        if self.joined is None:
            return
        gathered = self.subscription.channel.joining.get(self.subscription)
        if gathered is not None and gathered.dropped is not None:
            self.joined = after_drop(self.joined, gathered.dropped)

    def _go_live(self) -> None:
        """Hear the channel, after the answer is queued. Nothing if ended meanwhile."""
        subscription, client = self.subscription, self._client
        channel = subscription.channel
        gathered = channel.joining.get(subscription)
        if gathered is None:
            if subscription.why_ended is not None and client.codec.pushes:
                push = Push(channel.name, unsubscribe=subscription.why_ended)
                client.outbox.push(client.codec.push(push))
            return
        rest: Sequence[Publication] = gathered
        position, gap = None, False
        if self.joined is not None and not gathered:
            position = self.joined.position
        elif self.joined is not None:
            gone_on = go_on(self.joined.position, gathered)
            rest, position, gap = gone_on.publications, gone_on.position, gone_on.gap
        channel.go_live(subscription, position)
        self._node.registry.subscribed(client, subscription)
        _push_publications(client, subscription.codec, rest)
        if subscription.expire_at:
            client.expiry_changed()
        if gap:
            client.lose_position(subscription)

    def tell(self) -> None:
        """Push the subscription to a client that did not ask for it, and go live.

        Missed publications follow as pushes of their own, because the SDKs read none from inside
        a `subscribe` push (section 5). Does nothing if the client or the subscription was ended.
        """
        if self.subscription.ended:
            return
        client, codec = self._client, self._client.codec
        # The client did not ask for the subscription, and cannot refresh it.
        result = msgspec.structs.replace(self.result(), publications=None, expires=False, ttl=0)
        client.outbox.push(codec.push(Push(self.subscription.channel.name, subscribe=result)))
        if self.joined is not None:
            _push_publications(client, codec, self.joined.publications)
        self._go_live()
        client.outbox.flush()


def complete_all(client: Client, joinings: Sequence[Joining], say: Callable[[], bytes]) -> None:
    """Do `Joining.complete` for any number of subscriptions of one client, with one answer.

    Args:
        client: The client of every subscription.
        joinings: In the order in which they go live.
        say: Makes the bytes of the answer. It may ask each joining for its `result`.
    """
    client.outbox.push(say())
    for joining in joinings:
        joining._go_live()


def _push_publications(client: Client, codec: Codec, publications: Sequence[Publication]) -> None:
    if publications:
        for chunk in codec.publications(publications, None):
            client.outbox.push(chunk)


def server_side_wish(since: StreamPosition | None) -> Wish:
    """The wish of a server-side subscription: position and recovery, from `since` if given."""
    return Wish(positioned=True, recoverable=True, since=since, server_side=True)


async def open_subscription(
    node: ClientNode,
    client: Client,
    channel: str,
    grant: SubscriptionGrant,
    wish: Wish,
    rooms: Rooms | None = None,
    size: Size | None = None,
) -> Joining:
    """Join a channel that a client may hear and does not hear yet, and read its history.

    Cancelled, it leaves nothing behind. It may be called from a task other than the client's. So
    the client or the subscription may have ended by the time it returns.

    Args:
        node: The client's node.
        client: The client.
        channel: The channel.
        grant: What goes with the subscription.
        wish: What the client asks for.
        rooms: The rooms of the answer, if it answers other subscriptions as well.
        size: The size of a publication in the answer; by default the codec's.

    Raises:
        ReplyError: 107 or 102, for the channel's name.
        DisconnectError: 3004, if history or presence cannot be read: the client comes back. Or
            the client's own disconnect, if it has already ended.
    """
    if client.end is not None:
        raise DisconnectError(client.end)
    options = node.channels.options(channel)
    codec = client.codec
    if wish.delta and codec.delta is not None:
        codec = codec.delta
    if wish.tags is not None:
        codec = codec.filtered(wish.tags)
    rooms = rooms or Rooms(node.options.outbox_limit, client.outbox.waiting)
    subscription = client.join(channel, codec, rooms.gathered)
    subscription.server_side = wish.server_side
    subscription.grant, subscription.expire_at = grant, grant.expire_at
    _settle(node, client, subscription, options, wish)
    if wish.since is None and options.auto_cache_recover and _cached(subscription, options):
        wish = msgspec.structs.replace(wish, since=START)
    try:
        await node.attendance.enter(subscription)
        joined = await _read(node, subscription, options, wish, rooms, size or codec.size)
    except BrokerError:
        node.broker_errors["subscribe"] += 1
        drop(client, subscription)
        raise DisconnectError(SERVER_ERROR) from None
    except BaseException:  # cancelled, or a bug: the caller gets no `Joining` to drop
        drop(client, subscription)
        raise
    return Joining(node, client, subscription, joined, wish)


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


async def _read(
    node: ClientNode,
    subscription: Subscription,
    options: ChannelOptions,
    wish: Wish,
    rooms: Rooms,
    size: Size,
) -> Joined | None:
    """Read history and position, if wanted, and merge the publications that gathered meanwhile."""
    if not subscription.positioned:
        return None
    name, since = subscription.channel.name, wish.since
    if since is not None and _cached(subscription, options):
        found, top = await node.broker.history(name, options, limit=1, reverse=True)
        joined = recover_newest(since, found[0] if found else None, top, rooms.missed, size)
        return after_drop(filtered(joined, wish.tags, size), _gathered(subscription).dropped)
    if since is None or not subscription.recoverable:
        _, top = await node.broker.history(name, options, limit=0)
        gathered = _gathered(subscription)
        return after_drop(join(top, gathered.take()), gathered.dropped)
    history, top = await node.broker.history(
        name, options, since=since, limit=node.options.recovery_limit
    )
    if wish.tags is not None:
        size = await known_sizes(node, history, size)
    gathered = _gathered(subscription)
    joined = recover(since, history, top, gathered.take(), rooms.missed, size)
    return after_drop(filtered(joined, wish.tags, size), gathered.dropped)


def _gathered(subscription: Subscription) -> Gathered:
    """What gathers for a subscription; nothing if the subscription has ended meanwhile."""
    gathered = subscription.channel.joining.get(subscription)
    return Gathered(Room()) if gathered is None else gathered


def time_left(node: ClientNode, target: Client | Subscription) -> tuple[bool, int]:
    """Whether the client has to refresh the target, and in how many seconds.

    At least one second, because the encoder leaves out 0; at most a year, as in Centrifugo: typed
    SDKs read 32 bits. A client that refreshes early is not refused.
    """
    if not target.expire_at or node.renewals.covers(target):
        return False, 0
    return True, min(max(1, int(target.expire_at - node.unix_time())), _TTL_LIMIT)
