"""The hub: who listens to what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from repeater.access.grants import ConnectionGrant
from repeater.clients.subscription import Subscription
from repeater.errors import SLOW
from repeater.fanout.channel import Channel
from repeater.fanout.groups import SLICE
from repeater.node import Node
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, PLAIN_ASGI
from repeater.publication import Publication, StreamPosition
from repeater.testing import MemoryTransport, connect, open_test_node


async def test_channel_lives_while_somebody_listens() -> None:
    """A channel comes with its first listener and goes with its last."""
    async with open_test_node() as node:
        async with connect(node, MemoryTransport(), ["a"]) as one:
            async with connect(node, MemoryTransport(), ["a", "b"]):
                assert set(node.hub.channels) == {"a", "b"}
                assert node.hub.subscriptions == 3
            assert set(node.hub.channels) == {"a"}
            assert one.unsubscribe("a")
            assert not node.hub.channels
            assert set(node.registry.clients) == {one}
        assert not node.registry.clients


async def test_unsubscribe_says_whether_it_listened() -> None:
    """Leaving a channel that was not heard changes nothing and says so."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]) as client:
        assert not client.unsubscribe("b")
        assert client.unsubscribe("a")
        assert not client.unsubscribe("a")


async def test_listeners_are_grouped_by_codec() -> None:
    """One group a codec, and a group goes with its last member."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]):
        channel = node.hub.channels["a"]
        async with connect(node, MemoryTransport(CENTRIFUGE_JSON_ASGI), ["a"]):
            assert len(channel.listeners) == 2
        assert len(channel.listeners) == 1


async def test_an_audience_is_kept_until_somebody_comes_or_goes() -> None:
    """Fan-out is given the same tuples event after event; who has one keeps it as it was."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]) as first:
        (group,) = node.hub.channels["a"].listeners.values()
        alone = group.audience()
        assert group.audience() is alone
        async with connect(node, MemoryTransport(), ["a"]) as second:
            both = group.audience()
            assert both.slices == [(first.outbox, second.outbox)]
            assert alone.slices == [(first.outbox,)]
        assert group.audience().slices == [(first.outbox,)]
        assert both.present(0) == (first.outbox,)


async def test_an_audience_is_cut_once() -> None:
    """Fan-out is given the same slices event after event; a slice can leave out who has ended."""
    async with open_test_node() as node, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect(node, MemoryTransport(), ["a"]))
            for _ in range(SLICE + 2)
        ]
        (group,) = node.hub.channels["a"].listeners.values()
        audience = group.audience()
        outboxes = [client.outbox for client in clients]
        assert audience.slices == [tuple(outboxes[:SLICE]), tuple(outboxes[SLICE:])]
        for number in (0, SLICE):
            clients[number].unsubscribe("a")
        assert audience.present(0) == tuple(outboxes[1:SLICE])
        assert audience.present(1) == (outboxes[-1],)
        assert audience.slices == [tuple(outboxes[:SLICE]), tuple(outboxes[SLICE:])]


async def test_version_changes_when_a_listener_leaves() -> None:
    """Leaving changes the channel's version, joining does not."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]):
        channel = node.hub.channels["a"]
        before = channel.version
        async with connect(node, MemoryTransport(), ["a"]):
            assert channel.version == before
        assert channel.version > before


async def test_an_end_is_idempotent() -> None:
    """Ending a client twice is ending it once."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]) as client:
        client.disconnect(SLOW)
        client.disconnect(SLOW)
        assert not node.registry.clients
        assert not node.hub.channels


def numbered(*offsets: int, epoch: str = "e") -> list[Publication]:
    return [Publication("c", b"%d" % one, offset=one, epoch=epoch) for one in offsets]


def runs(channel: Channel, *publications: Publication) -> list[tuple[list[int], bool]]:
    found = channel.advance(publications)
    return [([one.offset for one in run.publications], run.gap_before) for run in found]


def test_runs_are_split_at_gaps() -> None:
    """What follows is one run; after a missing offset or in another epoch the next begins."""
    channel = Channel("c")
    assert runs(channel, *numbered(3, 4)) == [([3, 4], False)]
    assert runs(channel, *numbered(5, 7, 8)) == [([5], False), ([7, 8], True)]
    assert runs(channel, *numbered(1, epoch="f")) == [([1], True)]
    assert (channel.offset, channel.epoch) == (1, "f")


def test_old_publications_are_dropped() -> None:
    """What was distributed already comes in no run, however it comes again."""
    channel = Channel("c")
    runs(channel, *numbered(1, 2))
    assert runs(channel, *numbered(2, 1, 3, 3)) == [([3], False)]
    assert runs(channel, *numbered(3)) == []


def test_what_has_no_offset_is_always_in_order() -> None:
    """Publications of no stream neither make a gap nor hide one."""
    channel, bare = Channel("c"), Publication("c", b"x")
    assert runs(channel, bare) == [([0], False)]
    assert runs(channel, *numbered(1), bare, *numbered(2)) == [([1, 0, 2], False)]
    assert runs(channel, bare, *numbered(4)) == [([0], False), ([4], True)]


class Listeners(msgspec.Struct, frozen=True):
    """One channel with listeners that are ahead of its fan-out, by their offsets."""

    node: Node
    stack: AsyncExitStack

    async def ahead(self, offset: int, epoch: str = "e") -> Subscription:
        client = await self.stack.enter_async_context(connect(self.node, MemoryTransport()))
        subscription = client.join("c", client.codec)
        subscription.positioned = True
        subscription.channel.go_live(subscription, StreamPosition(offset, epoch))
        return subscription


@asynccontextmanager
async def listening() -> AsyncIterator[Listeners]:
    async with open_test_node() as node, AsyncExitStack() as stack:
        yield Listeners(node, stack)


async def test_whoever_is_ahead_is_caught_up_with() -> None:
    """Exactly before the run: live. Within it: given the rest. Past it: waits. Behind: lost."""
    async with listening() as listeners:
        before, within, at_end, past, behind, other = [
            await listeners.ahead(offset) for offset in (4, 6, 7, 9, 3, 5)
        ]
        channel = before.channel
        channel.ahead[other] = StreamPosition(5, "other")
        run = numbered(5, 6, 7)
        caught_up = channel.catch_up(run)
        assert list(channel.live()) == [before]
        assert caught_up.reached == [within, at_end]
        assert caught_up.lost == [behind, other]
        pieces = {
            one: [publication.offset for publication in piece]
            for _, group, piece in caught_up.pieces
            for one in group
        }
        assert pieces == {within: [7], at_end: [], past: []}
        assert set(channel.ahead) == {past, behind, other}
        for subscription in caught_up.reached:
            channel.add(subscription)


async def test_who_needs_the_same_is_one_group() -> None:
    """Listeners ahead by as much, by the same codec, share one part of the run."""
    async with listening() as listeners:
        same = [await listeners.ahead(6) for _ in range(5)]
        await listeners.ahead(7)
        caught_up = same[0].channel.catch_up(numbered(6, 7, 8))
        assert [len(group) for _, group, _ in caught_up.pieces] == [5, 1]
        for subscription in caught_up.reached:
            same[0].channel.add(subscription)


async def test_position_at_fan_out_is_live_at_once() -> None:
    """A joiner at fan-out's own position need not wait for the next run."""
    async with listening() as listeners:
        first = await listeners.ahead(0)
        runs(first.channel, *numbered(1, 2))
        second = await listeners.ahead(2)
        assert list(first.channel.live()) == [second]


async def test_joining_gathers_everything() -> None:
    """A joining client gathers all that is distributed, also old or doubled; it is sorted later."""
    async with listening() as listeners:
        client = await listeners.stack.enter_async_context(
            connect(listeners.node, MemoryTransport())
        )
        subscription = client.join("c", client.codec)
        channel = subscription.channel
        runs(channel, *numbered(1, 2))
        runs(channel, *numbered(2, 3))
        assert [one.offset for one in channel.joining[subscription]] == [1, 2, 2, 3]
        assert list(channel.live()) == []
        channel.go_live(subscription, None)
        assert list(channel.live()) == [subscription]
        client.unsubscribe("c")
        assert list(channel.live()) == []
        assert subscription.ended


async def test_users_are_found_by_their_connections() -> None:
    """A user is known as long as one of its connections is."""
    async with listening() as listeners:
        registry = listeners.node.registry
        async with connect(listeners.node, MemoryTransport()) as one:
            one.identify(ConnectionGrant("ann"))
            async with connect(listeners.node, MemoryTransport()) as other:
                other.identify(ConnectionGrant("ann"))
                assert set(registry.users["ann"]) == {one, other}
            assert set(registry.users["ann"]) == {one}
        assert not registry.users


async def test_counts_are_what_a_walk_would_find() -> None:
    """Subscriptions and kinds are kept as they change, whichever way a client goes."""
    async with open_test_node() as node:
        for number in range(6):
            codec = CENTRIFUGE_JSON_ASGI if number % 2 else PLAIN_ASGI
            channels = [str(channel) for channel in range(number)]
            async with connect(node, MemoryTransport(codec), channels) as client:
                async with connect(node, MemoryTransport(), channels):
                    client.unsubscribe("0")
                    seen = node.statistics()
                    walked = sum(len(one.channels) for one in node.registry.clients)
                    assert seen.subscriptions == walked
                    assert sum(seen.kinds.values()) == seen.clients == len(node.registry.clients)
                client.cut(SLOW)
                client.cut(SLOW)
                assert node.hub.subscriptions == 0
        assert not any(node.registry.kinds.values())
