"""Fan-out: order, one encode a codec, and who hears what when others come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.clients.client import Client
from repeater.clients.subscription import Subscription
from repeater.errors import INSUFFICIENT_STATE, SERVER_UNSUBSCRIBE, SLOW, WRITE_ERROR
from repeater.fanout.groups import SLICE, Audience
from repeater.fanout.listener import Listener
from repeater.fanout.outbox import Outbox
from repeater.fanout.transport import Chunk
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo import codecs
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, PLAIN, Codec
from repeater.protocol.centrifugo.filters import Predicate, TagsFilter
from repeater.protocol.centrifugo.json_format import PlainFormat
from repeater.protocol.websocket.frames import text_frame
from repeater.publication import Announcement, Publication, StreamPosition
from repeater.testing import MemoryTransport, StallingTransport, connect, open_test_node
from tests.brokers import TestBroker
from tests.conversation import Talk, talking

pytestmark = pytest.mark.usefixtures("announced_at_once")


class CountingFormat(PlainFormat):
    """Plain data; remembers what it was asked to write."""

    def __init__(self, said: list[Publication]) -> None:
        self._said = said

    def publication(self, publication: Publication) -> bytes:
        self._said.append(publication)
        return super().publication(publication)


class WatchedTransport(MemoryTransport):
    """Calls `on_write` with itself before each write."""

    async def act(self) -> None:
        """What another task does once this transport was written to."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery

    def write(self, chunk: Chunk) -> int:
        if not self.sent:
            self._nursery.start_soon(self.act)
        return super().write(chunk)


def put(node: Node, *publications: tuple[str, bytes]) -> None:
    """Into fan-out as one batch: nothing runs between the puts."""
    for channel, data in publications:
        node._intake.put_nowait(Publication(channel, data))


async def test_order_holds_in_each_channel() -> None:
    """A subscriber of two channels hears each in the order of publishing."""
    transport = MemoryTransport()
    async with open_test_node() as node, connect(node, transport, ["a", "b"]):
        for number in range(100):
            await node.publish(Publication("ab"[number % 2], b"%d" % number))
        await wait_all_tasks_blocked()
    heard = [int(chunk) for chunk in transport.sent]
    assert sorted(heard) == list(range(100))
    assert [n for n in heard if n % 2] == list(range(1, 100, 2))
    assert [n for n in heard if not n % 2] == list(range(0, 100, 2))


async def test_one_encode_for_each_codec() -> None:
    """A publication is encoded once for a codec, however many listen by it."""
    said: list[Publication] = []
    codec = Codec("counting", CountingFormat(said), frame=None, ping=None)
    async with open_test_node() as node, AsyncExitStack() as stack:
        transports = [MemoryTransport(codec) for _ in range(100)]
        other = MemoryTransport(CENTRIFUGE_JSON_ASGI)
        for transport in (*transports, other):
            await stack.enter_async_context(connect(node, transport, ["c"]))
        await node.publish(Publication("c", b"1"))
        await wait_all_tasks_blocked()
        assert len(said) == 1
        assert all(transport.sent == [b"1"] for transport in transports)
        assert len(other.sent) == 1
        assert node.statistics().repeater.deliveries == 101


async def test_same_bytes_for_everybody() -> None:
    """Subscribers in step are all written the very same object."""
    async with open_test_node() as node, AsyncExitStack() as stack:
        transports = [MemoryTransport(PLAIN) for _ in range(10)]
        for transport in transports:
            await stack.enter_async_context(connect(node, transport, ["c"]))
        put(node, ("c", b"1"), ("c", b"2"))
        await wait_all_tasks_blocked()
        assert transports[0].sent == [text_frame(b"1") + text_frame(b"2")]
        assert all(transport.sent[0] is transports[0].sent[0] for transport in transports)


async def test_who_leaves_during_a_fan_out_hears_nothing_more() -> None:
    """A listener that unsubscribes, or is cut, while others are written to, is left out."""
    options = NodeOptions(fanout_budget=0)  # gives way after every slice
    async with (
        trio.open_nursery() as nursery,
        open_test_node(options) as node,
        AsyncExitStack() as stack,
    ):
        clients: list[Client] = []
        first = WatchedTransport(nursery)
        transports = [first, *(MemoryTransport() for _ in range(199))]

        async def leave() -> None:
            clients[150].unsubscribe("c")
            clients[151].unsubscribe("c")

        first.act = leave  # type: ignore[method-assign]
        for transport in transports:
            client = await stack.enter_async_context(connect(node, transport, ["c"]))
            clients.append(client)
        await node.publish(Publication("c", b"1"))
        await wait_all_tasks_blocked()
        heard = [len(transport.sent) for transport in transports]
        assert heard == [0 if number in (150, 151) else 1 for number in range(200)]


async def test_who_joins_during_a_fan_out_hears_the_next() -> None:
    """A listener that comes meanwhile hears the next publication, once, as all others do."""
    options = NodeOptions(fanout_budget=0)
    async with (
        trio.open_nursery() as nursery,
        open_test_node(options) as node,
        AsyncExitStack() as stack,
    ):
        first, late = WatchedTransport(nursery), MemoryTransport()
        joiner = await stack.enter_async_context(connect(node, late))

        async def join() -> None:
            joiner.subscribe("c")

        first.act = join  # type: ignore[method-assign]
        others = [MemoryTransport() for _ in range(100)]
        for transport in (first, *others):
            await stack.enter_async_context(connect(node, transport, ["c"]))
        await node.publish(Publication("c", b"1"))
        await wait_all_tasks_blocked()
        await node.publish(Publication("c", b"2"))
        await wait_all_tasks_blocked()
        assert late.sent == [b"2"]
        assert all(transport.sent == [b"1", b"2"] for transport in (first, *others))


async def test_batch_of_several_channels_is_one_write() -> None:
    """A subscriber of three channels gets a batch that touches all of them in one write."""
    transport = MemoryTransport(PLAIN)
    async with open_test_node() as node, connect(node, transport, ["a", "b", "c"]):
        put(node, ("a", b"1"), ("b", b"2"), ("c", b"3"), ("unheard", b"4"), ("a", b"5"))
        await wait_all_tasks_blocked()
    assert len(transport.sent) == 1
    assert transport.sent[0] == b"".join(map(text_frame, (b"1", b"5", b"2", b"3")))


async def test_nobody_listens() -> None:
    """Publications that nobody hears are counted and cost nobody anything."""
    async with open_test_node() as node:
        put(node, ("a", b"1"), ("b", b"2"))
        put(node, ("a", b"1"))
        await wait_all_tasks_blocked()
        statistics = node.statistics().repeater
        assert (statistics.publications, statistics.deliveries, statistics.waiting) == (3, 0, 0)


async def test_stalled_client_does_not_disturb_the_others() -> None:
    """One that reads nothing is cut at its bound; everybody else hears everything."""
    options = NodeOptions(outbox_limit=1_000)
    stalled, healthy = StallingTransport(PLAIN), MemoryTransport(PLAIN)
    async with open_test_node(options) as node, trio.open_nursery() as nursery:
        ends = []

        async def hold() -> None:
            async with connect(node, stalled, ["c"]) as client:
                ends.append(client)
                await trio.sleep_forever()

        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        async with connect(node, healthy, ["c"]):
            for _ in range(50):
                await node.publish(Publication("c", b"1" * 98))
                await wait_all_tasks_blocked()
        assert ends[0].end == SLOW
        assert stalled.aborted
    assert b"".join(healthy.sent) == text_frame(b"1" * 98) * 50
    assert not stalled.sent


def numbered(*offsets: int, epoch: str = "e", channel: str = "c") -> list[Publication]:
    return [Publication(channel, b"%d" % one, offset=one, epoch=epoch) for one in offsets]


def hand_over(node: Node, *publications: Publication) -> None:
    """Into fan-out as one batch, as a broker's hand-over may have spoilt it."""
    for publication in publications:
        node._intake.put_nowait(publication)


def counting_codec(said: list[Publication]) -> Codec:
    return Codec("counting", CountingFormat(said), frame=text_frame, ping=None)


def go_ahead(client: Client, offset: int) -> Subscription:
    """Have a client listen whose history reaches further than fan-out."""
    subscription = client.join("c", client.codec)
    subscription.positioned = True
    subscription.channel.go_live(subscription, StreamPosition(offset, "e"))
    return subscription


async def test_thousands_become_live_by_one_chunk() -> None:
    """5,000 that were ahead get the run that follows as one object, encoded once."""
    said: list[Publication] = []
    codec = counting_codec(said)
    async with open_test_node() as node, AsyncExitStack() as stack:
        transports = [MemoryTransport(codec) for _ in range(5_000)]
        for transport in transports:
            go_ahead(await stack.enter_async_context(connect(node, transport)), 4)
        hand_over(node, *numbered(5, 6))
        await wait_all_tasks_blocked()
        assert len(said) == 2
        assert transports[0].sent == [text_frame(b"5") + text_frame(b"6")]
        assert all(transport.sent[0] is transports[0].sent[0] for transport in transports)
        channel = node.hub.channels["c"]
        assert not channel.ahead
        assert len(list(channel.live())) == 5_000
        for client in tuple(node.registry.clients):
            client.unsubscribe("c")


async def test_thousands_ahead_share_what_has_no_offset() -> None:
    """Before the first numbered publication all are ahead; what is in no stream is encoded once."""
    said: list[Publication] = []
    codec = counting_codec(said)
    async with open_test_node() as node, AsyncExitStack() as stack:
        transports = [MemoryTransport(codec) for _ in range(1_000)]
        for transport in transports:
            go_ahead(await stack.enter_async_context(connect(node, transport)), 0)
        hand_over(node, Publication("c", b"x"))
        await wait_all_tasks_blocked()
        assert len(said) == 1
        assert all(transport.sent[0] is transports[0].sent[0] for transport in transports)
        hand_over(node, *numbered(1))
        await wait_all_tasks_blocked()
        assert all(transport.sent[1] is transports[0].sent[1] for transport in transports)


async def test_within_a_run_only_the_rest_is_given() -> None:
    """Who has a part of the run from history gets the rest of it, then everything."""
    one, other = MemoryTransport(), MemoryTransport()
    async with (
        open_test_node() as node,
        connect(node, one) as first,
        connect(node, other) as second,
    ):
        go_ahead(first, 2)
        go_ahead(second, 5)
        hand_over(node, *numbered(1, 2, 3), Publication("c", b"x"), *numbered(4))
        await wait_all_tasks_blocked()
        hand_over(node, *numbered(5, 6))
        await wait_all_tasks_blocked()
    assert one.sent == [b"3", b"x", b"4", b"5", b"6"]
    assert other.sent == [b"x", b"6"]


async def test_who_is_cut_by_its_part_is_gone() -> None:
    """A client whose socket fails while it is given its part does not come back to the channel."""

    class BrokenTransport(MemoryTransport):
        def write(self, chunk: Chunk) -> int:
            raise OSError("gone")

    async with open_test_node() as node:
        async with connect(node, BrokenTransport()) as client:
            go_ahead(client, 2)
            hand_over(node, *numbered(2, 3))
            await wait_all_tasks_blocked()
        assert client.end == WRITE_ERROR
        assert not node.hub.channels


async def test_all_can_be_lost_at_once() -> None:
    """When all listeners of a channel were ahead and are lost, each is told and fan-out goes on."""
    async with open_test_node() as node, talking(node) as one, talking(node) as other:
        for talk in (one, other):
            go_ahead(talk.client, 2)
        hand_over(node, *numbered(9))
        for talk in (one, other):
            (ended,) = await talk.pushes("unsubscribe")
            assert ended == {"code": 2500, "reason": "insufficient state"}
        assert not node.hub.channels
        await one.subscribe(positioned=True)
        await node.publish(Publication("c", b"1"))
        assert await one.data() == [1]


async def test_plain_client_is_not_told_of_an_end() -> None:
    """A client that hears nothing but publications is sent nothing, not even nothing."""
    transport = MemoryTransport()
    async with open_test_node() as node, connect(node, transport, ["c"]) as client:
        client.end_subscription(client.channels["c"], SERVER_UNSUBSCRIBE)
    assert transport.sent == []


async def test_gap_disturbs_only_who_asked_for_positions() -> None:
    """Positioned: 2500, or 3010 by the server's own subscription. The others hear what there is."""
    plain = MemoryTransport()
    broker = TestBroker(lambda event: [] if event.data == b"2" else [event])
    async with (
        open_test_node(broker=broker) as node,
        connect(node, plain, ["c"]),
        talking(node) as positioned,
        talking(node) as careless,
        trio.open_nursery() as nursery,
    ):
        ended: list[Talk] = []

        async def be_served() -> None:
            async with talking(node, connected=False) as served:
                ended.append(served)
                await served.connect(subs={"c": {}})
                await trio.sleep_forever()

        nursery.start_soon(be_served)
        await positioned.subscribe(positioned=True)
        await careless.subscribe()
        for talk in (positioned, careless):
            await talk.news()
        for number in (b"1", b"2", b"3", b"4"):
            await node.publish(Publication("c", number))
            await wait_all_tasks_blocked()
        assert plain.sent == [b"1", b"3", b"4"]
        assert await careless.data() == [1, 3, 4]
        pushes = await positioned.pushes()
        assert [push.get("unsubscribe", {}).get("code") for push in pushes] == [None, 2500]
        assert await ended[0].data() == [1]
        assert ended[0].transport.closed_with == INSUFFICIENT_STATE
        assert node.statistics().repeater.gaps == 1


async def test_doubled_hand_over_disturbs_nobody() -> None:
    """A publication that is handed over twice is heard once, and ends no subscription."""
    broker = TestBroker(lambda event: [event, event])
    async with open_test_node(broker=broker) as node, talking(node) as talk:
        await talk.subscribe(positioned=True)
        for number in (b"1", b"2", b"3"):
            await node.publish(Publication("c", number))
        assert await talk.data() == [1, 2, 3]
        assert "c" in talk.client.channels


async def test_resubscribed_during_a_fan_out() -> None:
    """Who leaves and comes back while others are written to has it from history, and not twice."""
    options = NodeOptions(fanout_budget=0)
    async with (
        trio.open_nursery() as nursery,
        open_test_node(options) as node,
        AsyncExitStack() as stack,
    ):
        first = WatchedTransport(nursery)
        await stack.enter_async_context(connect(node, first, ["c"]))
        for _ in range(100):
            await stack.enter_async_context(connect(node, MemoryTransport(), ["c"]))
        talk = await stack.enter_async_context(talking(node))
        result = await talk.subscribe(recoverable=True)
        # A live listener of another codec comes after all plain ones.
        await talk.news()

        async def come_back() -> None:
            await talk.ask(unsubscribe={"channel": "c"})
            again = await talk.subscribe(
                recoverable=True, recover=True, offset=0, epoch=result["epoch"]
            )
            assert [one["data"] for one in again["publications"]] == [1]

        first.act = come_back  # type: ignore[method-assign]
        await node.publish(Publication("c", b"1"))
        await wait_all_tasks_blocked()
        await node.publish(Publication("c", b"2"))
        assert await talk.data() == [2]


async def test_waiting_reply_does_not_hold_publications_back() -> None:
    """While a pipelined command waits for history, a batch of two channels arrives all the same."""
    broker = TestBroker()
    async with (
        open_test_node(broker=broker) as node,
        talking(node) as talk,
        trio.open_nursery() as nursery,
    ):
        await talk.subscribe("a")
        await talk.subscribe("b")
        broker.before["c"].shut()
        await talk.news()
        first = talk.command(subscribe={"channel": "d"})
        second = talk.command(subscribe={"channel": "c", "positioned": True})
        nursery.start_soon(talk.session.receive, first + "\n" + second)
        await wait_all_tasks_blocked()
        put(node, ("a", b"1"), ("b", b"2"))
        reply, *pushes = await talk.news()
        assert reply == {"id": talk.ids - 1, "subscribe": {}}
        assert [push["push"]["pub"]["data"] for push in pushes] == [1, 2]
        broker.before["c"].open()
        (reply,) = await talk.news()
        assert reply["subscribe"]["positioned"]


async def test_announcements_go_to_who_asked() -> None:
    """Joins and leaves reach the joined who asked for them, and nobody else."""
    channel = ChannelOptions(join_leave=True)
    async with (
        open_test_node(NodeOptions(channel=channel)) as node,
        talking(node) as asked,
        talking(node) as did_not,
        talking(node) as comer,
    ):
        await asked.subscribe(join_leave=True)
        await did_not.subscribe()
        await asked.news()
        await did_not.news()
        await comer.subscribe()
        await wait_all_tasks_blocked()
        await comer.ask(unsubscribe={"channel": "c"})
        pushes = await asked.pushes()
        info = {"info": {"user": "", "client": comer.client.id}}
        assert pushes == [{"channel": "c", "join": info}, {"channel": "c", "leave": info}]
        assert await did_not.pushes() == []
        assert await comer.pushes() == []


async def test_announcement_never_comes_before_the_reply() -> None:
    """A joining client hears no joins until its reply; then its own."""
    channel = ChannelOptions(join_leave=True, force_push_join_leave=True)
    broker = TestBroker()
    async with (
        open_test_node(NodeOptions(channel=channel), broker=broker) as node,
        talking(node) as talk,
        talking(node) as other,
        trio.open_nursery() as nursery,
    ):
        broker.before["c"].shut()
        command = talk.command(subscribe={"channel": "c", "positioned": True})
        nursery.start_soon(talk.session.receive, command)
        await wait_all_tasks_blocked()
        await other.subscribe()
        assert await talk.news() == []
        broker.before["c"].open()
        reply, push = await talk.news()
        assert reply["subscribe"]["positioned"]
        assert push["push"]["join"]["info"]["client"] == talk.client.id


async def test_who_left_hears_no_more_announcements() -> None:
    """A listener that leaves while an announcement is given to others is left out of it."""
    options = NodeOptions(
        fanout_budget=0, channel=ChannelOptions(join_leave=True, force_push_join_leave=True)
    )
    async with open_test_node(options) as node, AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(talking(node)) for _ in range(100)]
        for talk in talks:
            await talk.subscribe()
        await wait_all_tasks_blocked()
        for talk in talks:
            await talk.news()
        info = talks[0].client.channels["c"].info()
        node._intake.put_nowait(Announcement("c", info, joined=True))
        # The first is written to, then the repeater gives way.
        while not await_sent(talks[0]):
            await trio.lowlevel.checkpoint()
        talks[50].client.unsubscribe("c")
        heard = [len(await talk.pushes("join")) for talk in talks]
        assert heard == [0 if number == 50 else 1 for number in range(100)]


def await_sent(talk: Talk) -> bool:
    """Whether something arrived that was not read."""
    return len(talk.transport.sent) > talk.read


async def test_a_mass_leave_makes_no_audience_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """While listeners leave at each turn of fan-out, what fan-out looks at stays one slice.

    Those who left hear nothing, everybody else hears it once.
    """
    looked_at: list[int] = []
    present = Audience.present

    def counting(audience: Audience, number: int) -> tuple[Outbox, ...]:
        looked_at.append(len(audience.slices[number]))
        return present(audience, number)

    monkeypatch.setattr(Audience, "present", counting)
    made: list[int] = []
    make = Audience.__init__

    def count_made(audience: Audience, listeners: tuple[Listener, ...]) -> None:
        made.append(len(listeners))
        make(audience, listeners)

    monkeypatch.setattr(Audience, "__init__", count_made)
    async with (
        open_test_node(NodeOptions(fanout_budget=0)) as node,
        AsyncExitStack() as stack,
    ):
        transports = [MemoryTransport() for _ in range(2_000)]
        clients = [
            await stack.enter_async_context(connect(node, transport, ["c"]))
            for transport in transports
        ]
        await node.publish(Publication("c", b"1"))
        gone = 2_000
        while not transports[-1].sent and gone > 1_000:
            await trio.lowlevel.checkpoint()
            gone -= 40
            for client in clients[gone : gone + 40]:
                client.unsubscribe("c")
        await wait_all_tasks_blocked()
        assert sum(looked_at) <= 2_000
        assert len(made) == 1
        heard = [len(transport.sent) for transport in transports]
        assert set(heard[:gone]) == {1}
        assert set(heard) == {0, 1}
        for client in clients:
            client.unsubscribe("c")


async def test_deliveries_are_counted_when_others_get_a_turn() -> None:
    """Who reads the statistics while fan-out gives way sees each outbox that was given to."""
    async with open_test_node(NodeOptions(fanout_budget=0)) as node, AsyncExitStack() as stack:
        everybody = 3 * SLICE + 1
        transports = [MemoryTransport() for _ in range(everybody)]
        for transport in transports:
            await stack.enter_async_context(connect(node, transport, ["c"]))
        hand_over(node, *numbered(1))
        seen = {0}
        while everybody not in seen:
            await trio.lowlevel.checkpoint()
            counted = node.statistics().repeater
            heard = [transport for transport in transports if transport.sent]
            assert counted.deliveries == len(heard)
            assert counted.bytes_out == sum(len(b"".join(one.sent)) for one in heard)
            seen.add(counted.deliveries)
        # Trio runs the tasks of a pass in any order, so two slices may come between two looks.
        assert {0, everybody} < seen <= {*range(0, everybody, SLICE), everybody}


async def test_who_recovers_during_a_gap_is_not_disturbed() -> None:
    """A gap inside a batch: who has it all from history by then hears no end and no double."""
    options = NodeOptions(fanout_budget=0, channel=ChannelOptions(allow_positioning=True))

    async with open_test_node(options) as node, AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(connect(node, MemoryTransport(), ["c"]))
        talk = await stack.enter_async_context(talking(node))
        first = next(iter(node.hub.channels["c"].live()))
        hand_over(node, *numbered(1, 2, 5, 6))
        while node.statistics().repeater.deliveries == 0:
            await trio.lowlevel.checkpoint()
        # While 1 and 2 are given out, it goes live with all of the stream.
        subscription = talk.client.join("c", talk.client.codec)
        subscription.positioned = True
        subscription.channel.go_live(subscription, StreamPosition(6, "e"))
        assert first.outbox is not subscription.outbox
        await wait_all_tasks_blocked()
        assert node.statistics().repeater.gaps == 1
        assert await talk.pushes() == []
        hand_over(node, *numbered(7))
        assert await talk.data() == [7]
        for client in tuple(node.registry.clients):
            client.unsubscribe("c")


@pytest.mark.parametrize("other", [(), ("d",)])
async def test_announcements_keep_their_place(other: Sequence[str]) -> None:
    """In one batch a join comes before, and a leave after, what was published between them."""
    options = NodeOptions(channel=ChannelOptions(join_leave=True, force_push_join_leave=True))
    async with open_test_node(options) as node, talking(node) as talk:
        for channel in ("c", *other):
            await talk.subscribe(channel)
        info = talk.client.channels["c"].info()
        await talk.news()
        batches = node.statistics().repeater.batches
        for channel in ("c", *other):
            node._intake.put_nowait(Publication(channel, b"1"))
        for channel in ("c", *other):
            node._intake.put_nowait(Announcement(channel, info, joined=True))
            node._intake.put_nowait(Publication(channel, b"2"))
            node._intake.put_nowait(Publication(channel, b"3"))
            node._intake.put_nowait(Announcement(channel, info, joined=False))
            node._intake.put_nowait(Publication("nobody", b"4"))
        pushes = await talk.pushes()
        assert node.statistics().repeater.batches == batches + 1
        for channel in ("c", *other):
            heard = [
                push["pub"]["data"] if "pub" in push else next(iter(push.keys() - {"channel"}))
                for push in pushes
                if push["channel"] == channel
            ]
            assert heard == [1, "join", 2, 3, "leave"]


async def test_equal_filters_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listeners with equal filters are evaluated and encoded for once; each kind hears its own."""
    evaluated: list[str] = []

    def compile_filter(tags: TagsFilter) -> Predicate:
        def matches(publication: Mapping[str, str]) -> bool:
            evaluated.append(tags.val)
            return publication.get("k") == tags.val

        return matches

    monkeypatch.setattr(codecs, "compile_filter", compile_filter)
    options = NodeOptions(channel=ChannelOptions(allow_tags_filter=True))
    async with open_test_node(options) as node, AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(talking(node)) for _ in range(6)]
        for talk, val in zip(talks, "aaaab", strict=False):
            await talk.subscribe(tf={"key": "k", "cmp": "eq", "val": val})
        await talks[5].subscribe()
        for talk in talks:
            await talk.news()
        await node.publish(Publication("c", b"1", tags={"k": "a"}))
        await node.publish(Publication("c", b"2", tags={"k": "b"}))
        await node.publish(Publication("c", b"3"))
        await wait_all_tasks_blocked()
        assert sorted(evaluated) == ["a"] * 3 + ["b"] * 3
        assert talks[0].transport.sent[-1] is talks[3].transport.sent[-1]
        heard = [await talk.data() for talk in talks]
        assert heard == [[1], [1], [1], [1], [2], [1, 2, 3]]
