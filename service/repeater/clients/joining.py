"""How a subscription goes live: presence, history, then the reply and the start in one step.

Rule 1: from `Client.join` on, publications gather. Rule 2: the reply is queued and the subscription
goes live with no await between, so nothing is lost, doubled or told before the reply. Both halves
are one sync call, `Joining.complete`, so that a caller cannot break the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from repeater.clients.binary import carried
from repeater.clients.lost_positions import why_lost
from repeater.fanout.recovery import (
    Joined,
    Loss,
    after_drop,
    go_on,
)
from repeater.fanout.rewind import Rewind
from repeater.json_text import embedded
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.protocol.centrifugo.replies import Push, SubscribeResult, publication_result
from repeater.publication import Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.causes import Why
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.clients.subscription import Subscription


_TTL_LIMIT: Final = 365 * 24 * 3600


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The options that a subscriber asks for. Those that are not allowed are off; no error."""

    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: bool = False
    since: StreamPosition | None = None
    """The position to recover from; None for a new subscriber."""
    rewind: Rewind | None = None
    """The part of the past that a subscriber without a position asks for; None for nothing."""
    by_itself: bool = False
    """Whether the server chose `since`: the client asked for nothing, and misses nothing."""
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
        self.drops = 0
        """How often publications that gathered were dropped since the history was read."""
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
        self.heed_drop()
        subscription, joined, since = self.subscription, self.joined, self._wish.since
        expires, ttl = time_left(self._node, subscription)
        codec = subscription.codec
        delta = codec.following is not codec
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
        quoted = delta and not codec.format.binary
        publications = [publication_result(one, quoted=quoted) for one in joined.publications]
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
        self.heed_drop()
        if self.joined is None:
            return None
        last = next((one for one in reversed(self._gathered()) if one.offset), None)
        if last is None or last.epoch != self.joined.position.epoch:
            return self.joined.position
        return StreamPosition(max(last.offset, self.joined.position.offset), last.epoch)

    def absorb(self) -> Sequence[Publication]:
        """Take the publications that gathered since the history was read, for the answer.

        With a gap in the offsets all of them stay, so that `complete` finds the gap.
        """
        self.heed_drop()
        if self.joined is None:
            return ()
        gathered = self.subscription.channel.joining.get(self.subscription)
        if not gathered:
            return ()
        gone_on = go_on(self.joined.position, gathered)
        if not gone_on.gap:
            gathered.take()
        self.joined = msgspec.structs.replace(self.joined, position=gone_on.position)
        return [one for one in gone_on.publications if one.offset]

    def lose(self, loss: Loss) -> None:
        """Give the client nothing of what it missed, for this reason."""
        if self.joined is not None:
            self.joined = Joined((), self.joined.position, loss=loss)

    def why_lost(self) -> Why | None:
        """Why the client does not get the past that it asked for; None if it does, or did not."""
        wish, joined = self._wish, self.joined
        if (wish.since is None and wish.rewind is None) or wish.by_itself:
            return None
        if joined is not None and joined.loss is None and self.subscription.recoverable:
            return None
        since = wish.since if wish.rewind is None else None
        return why_lost(self._node, self.subscription, joined, since)

    def _note_loss(self) -> None:
        why = self.why_lost()
        if why is not None:
            channel = self.subscription.channel.name
            self._node.refusals.note(why, "recover", self._client, channel=channel)

    def _gathered(self) -> Sequence[Publication]:
        return self.subscription.channel.joining.get(self.subscription, ())

    def heed_drop(self) -> None:
        """Go on behind what was dropped since the history was read, if anything was."""
        before = self.joined
        if before is None:
            return
        gathered = self.subscription.channel.joining.get(self.subscription)
        if gathered is not None and gathered.dropped is not None:
            self.joined = after_drop(before, gathered.dropped)
            self.drops += self.joined is not before

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
        if self._wish.since is not None or self._wish.rewind is not None:
            self._note_loss()
        rest: Sequence[Publication] = gathered
        position, gap = None, gathered.broken and subscription.positioned
        if self.joined is not None and not gathered:
            position = self.joined.position
        elif self.joined is not None:
            gone_on = go_on(self.joined.position, gathered)
            rest, position = gone_on.publications, gone_on.position
            gap = gap or gone_on.gap
        channel.go_live(subscription, position)
        self._node.registry.subscribed(client, subscription)
        self._push(rest)
        if subscription.expire_at:
            client.expiry_changed()
        if gap:
            client.lose_position(subscription)

    def _push(self, publications: Sequence[Publication]) -> None:
        client, subscription = self._client, self.subscription
        if publications:
            publications = carried(self._node, client, subscription.channel.name, publications)
            for chunk in subscription.codec.publications(publications, None):
                client.outbox.push(chunk)

    def tell(self) -> None:
        """Push the subscription to a client that did not ask for it, and go live.

        Missed publications follow as pushes of their own, because the SDKs read none from inside
        a `subscribe` push (section 5). Does nothing if the client or the subscription was ended.
        """
        if self.subscription.ended:
            return
        client, codec = self._client, self.subscription.codec
        # The client did not ask for the subscription, and cannot refresh it.
        result = msgspec.structs.replace(self.result(), publications=None, expires=False, ttl=0)
        client.outbox.push(codec.push(Push(self.subscription.channel.name, subscribe=result)))
        if self.joined is not None:
            self._push(self.joined.publications)
        self._go_live()
        client.outbox.flush()


def complete_all(client: Client, joinings: Sequence[Joining], say: Callable[[], bytes]) -> None:
    """Do `Joining.complete` for any number of subscriptions of one client, with one answer.

    Args:
        client: The client of every subscription.
        joinings: In the order in which they go live.
        say: Makes the bytes of the answer, or none. It may ask each joining for its `result`.
    """
    said = say()
    if said:
        client.outbox.push(said)
    for joining in joinings:
        joining._go_live()


def server_side_wish(since: StreamPosition | None, rewind: Rewind | None = None) -> Wish:
    """The wish of a server-side subscription: position and recovery, from `since` if given."""
    return Wish(positioned=True, recoverable=True, since=since, rewind=rewind, server_side=True)


def time_left(node: ClientNode, target: Client | Subscription) -> tuple[bool, int]:
    """Whether the client has to refresh the target, and in how many seconds.

    At least one second, because the encoder leaves out 0; at most a year, as in Centrifugo: typed
    SDKs read 32 bits. A client that refreshes early is not refused.
    """
    if not target.expire_at or node.renewals.covers(target):
        return False, 0
    return True, min(max(1, int(target.expire_at - node.unix_time())), _TTL_LIMIT)
