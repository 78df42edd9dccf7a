"""Who listens to what, on this node. All sync: a change is atomic until the next await.

Knows no broker, no socket and no protocol. Listeners are kept by codec, because a publication is
encoded once for each codec that has a listener. Three kinds of listener are kept apart, so that
the loop over the live ones has no test for the others: *joining* (its history is being read; what
happens meanwhile gathers), *ahead* (its history reaches further than fan-out has come), and live.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
import trio

from repeater.access.grants import SubscriptionGrant
from repeater.errors import Unsubscribed
from repeater.fanout.groups import Group
from repeater.publication import ClientInfo, Publication, StreamPosition, embedded

if TYPE_CHECKING:
    from repeater.brokers.contract import Events
    from repeater.clients.client import Client
    from repeater.protocol.centrifugo.codecs import Codec

_NOTHING_GRANTED = SubscriptionGrant()


class Subscription:
    """One client's listening to one channel. Lives inside the hub from `join` to `unsubscribe`."""

    __slots__ = (
        "announced",
        "arrived",
        "channel",
        "client",
        "codec",
        "entering",
        "expire_at",
        "grant",
        "join_leave",
        "positioned",
        "presence",
        "recoverable",
        "server_side",
        "why_ended",
    )

    def __init__(self, client: Client, channel: Channel, codec: Codec) -> None:
        self.client = client
        self.channel = channel
        self.codec = codec
        self.grant = _NOTHING_GRANTED
        self.expire_at = 0
        """Unix seconds; 0 for never."""
        self.positioned = False
        """Whether a gap in the stream must be told."""
        self.recoverable = False
        self.join_leave = False
        """Whether joins and leaves of others are pushed to it."""
        self.server_side = False
        self.presence = False
        """Whether it is counted in the channel's presence."""
        self.announced = False
        """Whether its own coming and going is told to the others."""
        self.arrived = False
        """Whether its coming was told: only then its going is."""
        self.entering = 0
        """How many tasks put it into the channel's presence now; they see to its departure."""
        self.why_ended: Unsubscribed | None = None
        """Why the server ended it while it joined: to be told behind the reply."""

    @property
    def noticed(self) -> bool:
        """Whether anybody is to know when it ends, and does not see to that already."""
        return (self.presence or self.announced) and not self.entering

    @property
    def ended(self) -> bool:
        """Whether the client hears the channel no longer, or by another subscription."""
        return self.client.channels.get(self.channel.name) is not self

    def info(self) -> ClientInfo:
        """What the others see of it."""
        grant = self.client.grant
        return ClientInfo(
            grant.user, self.client.id, embedded(grant.info), embedded(self.grant.info)
        )


class Run(msgspec.Struct, frozen=True):
    """Publications of one channel without a gap between them, and whether one is before them."""

    publications: list[Publication]
    gap_before: bool


class Channel:
    """The listeners of one channel. Lives inside the hub from its first listener to its last."""

    __slots__ = ("ahead", "base", "epoch", "joining", "listeners", "name", "offset", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: dict[Codec, Group] = {}
        self.joining: dict[Subscription, list[Publication]] = {}
        self.ahead: dict[Subscription, StreamPosition] = {}
        self.offset, self.epoch = 0, ""
        """How far fan-out has come; offset 0 while it has not begun."""
        self.base: Publication | None = None
        """What was distributed last: what a difference is made against."""
        self.version = 0
        """Changes when a listener leaves: a fan-out that let others run looks again."""

    @property
    def empty(self) -> bool:
        """Whether nobody listens any more."""
        return not (self.listeners or self.joining or self.ahead)

    @property
    def size(self) -> int:
        """How many listen, in whatever state."""
        return len(self.joining) + len(self.ahead) + sum(map(len, self.listeners.values()))

    def live(self) -> Iterator[Subscription]:
        """Those whom fan-out reaches."""
        for group in self.listeners.values():
            yield from group

    def hears(self, subscription: Subscription) -> bool:
        """Whether it may be told something now: it has been answered, and has not ended."""
        return not subscription.ended and subscription not in self.joining

    def subscriptions(self) -> Iterator[Subscription]:
        """Everybody who listens, in whatever state."""
        yield from self.live()
        yield from self.joining
        yield from self.ahead

    def add(self, subscription: Subscription) -> None:
        """Let a client hear this channel from now on."""
        group = self.listeners.get(subscription.codec)
        if group is None:
            group = self.listeners[subscription.codec] = Group()
        group.add(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Nothing of this channel goes to this client any more."""
        self.version += 1
        self.joining.pop(subscription, None)
        self.ahead.pop(subscription, None)
        group = self.listeners.get(subscription.codec)
        if group is None or not group.discard(subscription):
            return
        if not len(group):
            del self.listeners[subscription.codec]

    def recode(self, subscription: Subscription, codec: Codec) -> None:
        """Move a live listener to another codec's group, for the next publication on."""
        self.remove(subscription)
        subscription.codec = codec
        self.add(subscription)

    def go_live(self, subscription: Subscription, position: StreamPosition | None) -> None:
        """End the joining: it has everything up to `position`; None where there is no stream."""
        del self.joining[subscription]
        if position is None or (position.offset, position.epoch) == (self.offset, self.epoch):
            self.add(subscription)
        else:
            self.ahead[subscription] = position

    def advance(self, publications: Sequence[Publication]) -> list[Run]:
        """Move fan-out's position over these; split where there is a gap, drop what is old.

        One comparison for each publication, whatever the number of listeners. Those without an
        offset are in no stream and are always in order.
        """
        for gathered in self.joining.values():
            gathered.extend(publications)
        runs, run = [], list[Publication]()
        gap_before = False
        for publication in publications:
            if publication.offset == 0:
                run.append(publication)
                continue
            following = publication.offset == self.offset + 1 and publication.epoch == self.epoch
            if not following and self.offset:
                if publication.epoch == self.epoch and publication.offset <= self.offset:
                    continue
                if run:
                    runs.append(Run(run, gap_before))
                run, gap_before = [], True
            run.append(publication)
            self.offset, self.epoch = publication.offset, publication.epoch
        if run:
            runs.append(Run(run, gap_before))
        return runs

    def catch_up(self, run: Sequence[Publication]) -> CaughtUp:
        """Take out of `ahead` whom this run of publications reaches; others stay there.

        Whoever it follows exactly is a live listener from here on, and hears the whole run. Of
        the others those who need the same part of it, by the same codec, are one group.
        """
        caught_up = CaughtUp()
        groups: dict[tuple[Codec, int], Group] = {}
        numbered = [publication for publication in run if publication.offset]
        for subscription, position in tuple(self.ahead.items()):
            if numbered:
                first, last = numbered[0], numbered[-1]
                if position.epoch != first.epoch or position.offset + 1 < first.offset:
                    # Not taken out: ending it does that, and the channel goes with its last.
                    caught_up.lost.append(subscription)
                    continue
                if position.offset + 1 == first.offset:
                    del self.ahead[subscription]
                    self.add(subscription)
                    continue
                if position.offset <= last.offset:
                    del self.ahead[subscription]
                    caught_up.reached.append(subscription)
            key = (subscription.codec, position.offset)
            group = groups.get(key)
            if group is None:
                group = groups[key] = Group()
                rest = [one for one in run if not one.offset or one.offset > position.offset]
                caught_up.pieces.append((subscription.codec, group, rest))
            group.add(subscription)
        return caught_up


class CaughtUp(msgspec.Struct):
    """What a run of publications means for those who were ahead of it."""

    lost: list[Subscription] = []
    """Something is missing between their position and the run: to be ended."""
    reached: list[Subscription] = []
    """To become live listeners after the run."""
    pieces: list[tuple[Codec, Group, Sequence[Publication]]] = []
    """Who gets only a part of the run, and which; it may be empty."""


class Hub:
    """Every client and every channel with a listener on this node.

    What is counted is kept as it changes, so that a snapshot of a full node costs no walk.
    """

    def __init__(self, events: Events | None = None) -> None:
        self._events = events
        self.clients: dict[Client, None] = {}
        self.users: dict[str, dict[Client, None]] = {}
        self.channels: dict[str, Channel] = {}
        self.distributed = trio.lowlevel.ParkingLot()
        """Where to wait for fan-out to come further; all are woken after each batch."""
        self.subscriptions = 0
        """How many (client, channel) pairs there are."""
        self.kinds: Counter[tuple[str, str]] = Counter()
        """How many clients there are by transport and codec."""

    def add(self, client: Client) -> None:
        """Take a connection in."""
        self.clients[client] = None
        self.kinds[_kind(client)] += 1

    def identify(self, client: Client) -> None:
        """The connection's user is known: find it by that from now on."""
        self.users.setdefault(client.grant.user, {})[client] = None

    def remove(self, client: Client) -> None:
        """Forget a connection and all it listens to. Idempotent."""
        for name in tuple(client.channels):
            self.unsubscribe(client, name)
        if client in self.clients:
            del self.clients[client]
            self.kinds[_kind(client)] -= 1
        self.forget_user(client)

    def forget_user(self, client: Client) -> None:
        """The connection is not found by its user any more. Idempotent."""
        connections = self.users.get(client.grant.user, {})
        if client in connections:
            del connections[client]
            if not connections:
                del self.users[client.grant.user]

    def subscribe(self, client: Client, name: str) -> Subscription:
        """Let a client hear a channel from now on; it must not hear it already."""
        subscription = self._subscription(client, name)
        subscription.channel.add(subscription)
        return subscription

    def join(self, client: Client, name: str, codec: Codec) -> Subscription:
        """Let a channel's publications gather for a client, until `go_live`."""
        subscription = self._subscription(client, name)
        subscription.codec = codec
        subscription.channel.joining[subscription] = []
        return subscription

    def _subscription(self, client: Client, name: str) -> Subscription:
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name)
            if self._events is not None:
                self._events.channel_occupied(name)
        subscription = Subscription(client, channel, client.codec)
        client.channels[channel.name] = subscription
        self.subscriptions += 1
        return subscription

    def unsubscribe(self, client: Client, name: str) -> Subscription | None:
        """Stop it; None if the client did not hear that channel."""
        subscription = client.channels.pop(name, None)
        if subscription is None:
            return None
        self.subscriptions -= 1
        channel = subscription.channel
        channel.remove(subscription)
        if channel.empty:
            del self.channels[name]
            if self._events is not None:
                self._events.channel_vacated(name)
        return subscription


def _kind(client: Client) -> tuple[str, str]:
    return client.transport.name, client.transport.codec.name
