"""How a subscription goes live: history, position, presence, then the reply with no await behind.

Rule 1: from `Client.join` on, publications gather. Rule 2: the reply is queued and the subscription
goes live with no await between, so nothing is lost, doubled or told before the reply. Both halves
are one sync call, `Joining.complete`, so that the rule can't be broken by a caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from repeater.access.grants import SubscriptionGrant
from repeater.errors import SERVER_ERROR, BrokerError, DisconnectError
from repeater.fanout.recovery import Joined, go_on, join, recover, recover_newest
from repeater.protocol.centrifugo.filters import TagsFilter, compile_filter
from repeater.protocol.centrifugo.replies import Push, SubscribeResult, publication_result
from repeater.publication import START, Publication, StreamPosition, embedded

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.clients.subscription import Subscription
    from repeater.options import ChannelOptions
    from repeater.protocol.centrifugo.codecs import Codec


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscriber asks for; granted only where it is allowed, never an error."""

    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: bool = False
    since: StreamPosition | None = None
    """Where it was, if it comes back."""
    tags: TagsFilter | None = None
    server_side: bool = False


class Joining:
    """A subscription between its history and its life. Made by `open_subscription`.

    Whoever opened it calls `complete`, once, or `drop`.
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
        """Answer, and go live: what gathered since the history was read comes right behind.

        Nothing is flushed. If the client was ended meanwhile, only the answer is queued; if the
        subscription was, its end is told behind the answer.

        Args:
            say: Makes the bytes of the answer from what the subscriber is told.
        """
        complete_all(self._client, (self,), lambda: say(self.result()))

    def result(self) -> SubscribeResult:
        """What the subscriber is told, with everything that it missed or nothing of it.

        True at this moment only: call it while `complete` or `complete_all` asks for the answer.
        """
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
        wanted = compile_filter(self._wish.tags) if self._wish.tags is not None else None
        publications = [
            publication_result(publication, delta=delta)
            for publication in joined.publications
            if wanted is None or wanted(publication.tags or {})
        ]
        return msgspec.structs.replace(
            result,
            epoch=joined.position.epoch,
            offset=offset,
            recovered=joined.recovered,
            publications=publications or None,
        )

    @property
    def reached(self) -> StreamPosition | None:
        """Where the subscriber will be when it goes live now; None where there is no stream."""
        if self.joined is None:
            return None
        return go_on(self.joined.position, self._gathered()).position

    def absorb(self) -> Sequence[Publication]:
        """Take what gathered of the stream since it was read, to be told with the answer.

        What does not follow stays, for `complete` to find the gap.
        """
        if self.joined is None:
            return ()
        gathered = self._gathered()
        gone_on = go_on(self.joined.position, gathered)
        self.joined = msgspec.structs.replace(self.joined, position=gone_on.position)
        return [one for one in gone_on.publications if one.offset]

    def _gathered(self) -> Sequence[Publication]:
        return self.subscription.channel.joining.get(self.subscription, ())

    def _go_live(self) -> None:
        """The answer is queued: hear the channel. Nothing for what was ended meanwhile."""
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
        if self.joined is not None:
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
        """Tell a client that did not ask that it is subscribed, then what it missed; go live.

        What it missed comes as publications of their own, because the SDKs look for none inside
        a `subscribe` push (section 5). Nothing, if the client or the subscription was ended.
        """
        if self.subscription.ended:
            return
        client, codec = self._client, self._client.codec
        result = msgspec.structs.replace(self.result(), publications=None)
        client.outbox.push(codec.push(Push(self.subscription.channel.name, subscribe=result)))
        if self.joined is not None:
            _push_publications(client, codec, self.joined.publications)
        self._go_live()
        client.outbox.flush()


def complete_all(client: Client, joinings: Sequence[Joining], say: Callable[[], bytes]) -> None:
    """`Joining.complete` for several subscriptions of one client, or none, told by one answer.

    Args:
        client: Whose they are.
        joinings: In the order in which they go live.
        say: Makes the bytes of the answer; it may ask each joining for its `result`.
    """
    client.outbox.push(say())
    for joining in joinings:
        joining._go_live()


def _push_publications(client: Client, codec: Codec, publications: Sequence[Publication]) -> None:
    if publications:
        for chunk in codec.publications(publications, None):
            client.outbox.push(chunk)


def server_side_wish(since: StreamPosition | None) -> Wish:
    """A server-side subscription asks for all there is; where it was, if it comes back."""
    return Wish(positioned=True, recoverable=True, since=since, server_side=True)


async def open_subscription(
    node: ClientNode, client: Client, channel: str, grant: SubscriptionGrant, wish: Wish
) -> Joining:
    """Join a channel that a client may hear and does not hear yet, and read its history.

    Cancelled, it leaves nothing behind. The client's task need not be the caller's: the client,
    or the subscription, may have ended by the time this returns.

    Raises:
        ReplyError: 107 or 102, for the channel's name.
        DisconnectError: 3004, when history or presence can't be had: the client comes back;
            or the client was ended already, in the turn in which its last await went on.
    """
    if client.end is not None:
        raise DisconnectError(client.end)
    options = node.channels.options(channel)
    codec = client.codec
    if wish.delta and codec.delta is not None:
        codec = codec.delta
    if wish.tags is not None:
        codec = codec.filtered(wish.tags)
    subscription = client.join(channel, codec)
    subscription.server_side = wish.server_side
    subscription.grant, subscription.expire_at = grant, grant.expire_at
    _settle(node, client, subscription, options, wish)
    if wish.since is None and options.auto_cache_recover and _cached(subscription, options):
        wish = msgspec.structs.replace(wish, since=START)
    try:
        await node.attendance.enter(subscription)
        joined = await _read(node, subscription, options, wish)
    except BrokerError:
        node.broker_errors["subscribe"] += 1
        drop(client, subscription)
        raise DisconnectError(SERVER_ERROR) from None
    except BaseException:  # cancelled, or a bug: nobody will finish it
        drop(client, subscription)
        raise
    return Joining(node, client, subscription, joined, wish)


def drop(client: Client, subscription: Subscription) -> None:
    """End a subscription that nobody was told of; somebody else may have done so before."""
    if not subscription.ended:
        client.unsubscribe(subscription.channel.name)


def _settle(
    node: ClientNode,
    client: Client,
    subscription: Subscription,
    options: ChannelOptions,
    wish: Wish,
) -> None:
    """What of the wish is granted, by options, the grant's overrides and permissions."""
    rules, overrides = node.channels, subscription.grant.overrides
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
    """Whether recovery is of the newest publication only."""
    return options.force_recovery_mode == "cache" and subscription.recoverable


async def _read(
    node: ClientNode, subscription: Subscription, options: ChannelOptions, wish: Wish
) -> Joined | None:
    """History and position, where they are wanted, merged with what gathered meanwhile."""
    if not subscription.positioned:
        return None
    name, since = subscription.channel.name, wish.since
    if since is not None and _cached(subscription, options):
        found, top = await node.broker.history(name, options, limit=1, reverse=True)
        return recover_newest(since, found[0] if found else None, top)
    if since is None or not subscription.recoverable:
        _, top = await node.broker.history(name, options, limit=0)
        return join(top, _take_gathered(subscription))
    history, top = await node.broker.history(
        name, options, since=since, limit=node.options.recovery_limit
    )
    return recover(since, history, top, _take_gathered(subscription))


def _take_gathered(subscription: Subscription) -> Sequence[Publication]:
    """What gathered of the stream until now; what is in no stream stays for later."""
    gathered = subscription.channel.joining.get(subscription, [])
    taken = [publication for publication in gathered if publication.offset]
    gathered[:] = [publication for publication in gathered if not publication.offset]
    return taken


def time_left(node: ClientNode, target: Client | Subscription) -> tuple[bool, int]:
    """Whether the client has to refresh something, and in how many seconds.

    At least one, since 0 is left out.
    """
    if not target.expire_at or node.renewals.covers(target):
        return False, 0
    return True, max(1, int(target.expire_at - node.unix_time()))
