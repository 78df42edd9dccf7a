"""Plain subscribers that come back: nothing lost, nothing doubled, or an honest reset."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.brokers.contract import Page
from repeater.brokers.receipts import Answer, settled
from repeater.clients.client import Client
from repeater.clients.limits import Place
from repeater.clients.opening import Opening, begin
from repeater.clients.plain import Wanted, listening
from repeater.clients.since import positions_of
from repeater.errors import (
    INSUFFICIENT_STATE,
    PERMISSION_DENIED,
    SERVER_ERROR,
    BrokerError,
    Disconnect,
)
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import PLAIN, PLAIN_ASGI, Codec
from repeater.protocol.sse.event_id import event_id
from repeater.protocol.sse.event_stream import EVENT_STREAM
from repeater.publication import Publication, StreamPosition
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import ForwardingBroker, TestBroker
from tests.eventsource import EventSource
from tests.far_broker import FarBroker
from tests.refusing import usual


class Browser:
    """One EventSource: what it has heard over all of its connections."""

    def __init__(self, *channels: str) -> None:
        self.channels = channels
        self.source = EventSource()
        self.transport = MemoryTransport(EVENT_STREAM)
        self.client: Client | None = None

    @asynccontextmanager
    async def connected(
        self, node: Node, last_event_id: str | None = None
    ) -> AsyncIterator[MemoryTransport]:
        """Connect, with the last event id if there is one, for as long as the block lasts."""
        self.transport = MemoryTransport(EVENT_STREAM)
        self.source._buffer = b""
        last = self.source.last_event_id if last_event_id is None else last_event_id
        wanted = Wanted(
            grant=ConnectionGrant(),
            channels={name: SubscriptionGrant() for name in self.channels},
            since=positions_of(last, self.channels),
        )
        with trio.CancelScope() as scope:
            self.client = Client(node.registry, self.transport, scope, ready=True)
            try:
                async with listening(node, self.client, wanted):
                    yield self.transport
            finally:
                await self.client.leave()
                self.read()

    def read(self) -> list[str]:
        """What has come, as messages."""
        for chunk in self.transport.sent:
            self.source.feed(chunk)
        self.transport.sent.clear()
        return self.source.data()


async def publish(node: Node, channel: str, *data: object) -> None:
    for one in data:
        await node.publish(Publication(channel, json.dumps(one).encode()))
    await wait_all_tasks_blocked()


async def test_who_comes_back_gets_what_it_missed() -> None:
    """Missed events of every channel come first, in order, and the id moves on with each."""
    async with open_test_node() as node:
        browser = Browser("a", "b")
        async with browser.connected(node):
            await publish(node, "a", 1)
        await publish(node, "a", 2, 3)
        await publish(node, "b", 4)
        async with browser.connected(node):
            assert browser.read() == ["1", "2", "3", "4"]
            ids = [one.last_event_id for one in browser.source.events]
            assert len(set(ids)) == 4
            await publish(node, "b", 5)
        assert browser.read() == ["1", "2", "3", "4", "5"]
        assert browser.source.data("reset") == []


async def test_nothing_heard_is_a_position_too() -> None:
    """A stream that ended before its first event is taken up where it began."""
    async with open_test_node() as node:
        browser = Browser("a")
        await publish(node, "a", 1)
        async with browser.connected(node):
            pass
        await publish(node, "a", 2)
        async with browser.connected(node):
            assert browser.read() == ["2"]


@pytest.mark.parametrize(
    "last", ["garbage", "a:1:{epoch}", (1, "other"), (99, "{epoch}"), (2**64 - 1, "{epoch}")]
)
async def test_what_can_not_be_recovered_is_said(last: str | tuple[int, str]) -> None:
    """Another epoch, a place ahead of the stream, a stranger's id or one of an older form: a
    reset, then live events."""
    async with open_test_node() as node:
        await publish(node, "a", 1, 2)
        _, top = await settled(node.broker.history("a", ChannelOptions(), limit=0))
        browser = Browser("a")
        if not isinstance(last, str):
            last = event_id({"a": StreamPosition(*last)}).decode()
        async with browser.connected(node, last.format(epoch=top.epoch)):
            assert browser.read() == []
            assert browser.source.data("reset") == ['{"channels":["a"]}']
            await publish(node, "a", 3)
            assert browser.read() == ["3"]
        async with browser.connected(node):
            assert browser.source.data("reset") == ['{"channels":["a"]}']


async def test_a_reset_names_the_lost_channels_only() -> None:
    """What of the other channels was missed comes all the same; a new channel is not lost."""
    async with open_test_node() as node:
        browser = Browser("a", "b", "c")
        async with browser.connected(node):
            pass
        await publish(node, "a", 1)
        await publish(node, "b", 2)
        at = positions_of(browser.source.last_event_id, browser.channels)
        changed = {"a": at["a"], "b": StreamPosition(0, "other")}
        async with browser.connected(node, event_id(changed, browser.channels).decode()):
            assert browser.read() == ["1"]
            assert browser.source.data("reset") == ['{"channels":["b"]}']


async def test_an_id_of_other_channels_is_a_reset() -> None:
    """Who comes back for another set of channels is told to load the state of all of them."""
    async with open_test_node() as node:
        browser, other = Browser("a", "b"), Browser("a", "b", "c")
        async with browser.connected(node):
            pass
        await publish(node, "a", 1)
        async with other.connected(node, browser.source.last_event_id):
            assert other.read() == []
            assert other.source.data("reset") == ['{"channels":["a","b","c"]}']
            await publish(node, "c", 2)
        async with other.connected(node):
            assert other.read() == ["2"]
            assert len(other.source.data("reset")) == 1


async def test_more_than_history_holds_is_lost() -> None:
    """Never a part of what was missed: too old, or more than a recovery brings, is a reset."""
    async with open_test_node(NodeOptions(recovery_limit=3)) as node:
        browser = Browser("a")
        async with browser.connected(node):
            pass
        await publish(node, "a", 1, 2, 3)
        async with browser.connected(node):
            assert browser.read() == ["1", "2", "3"]
        await publish(node, "a", 4, 5, 6, 7)
        async with browser.connected(node):
            assert browser.read() == ["1", "2", "3"]
            assert len(browser.source.data("reset")) == 1


async def test_more_than_an_outbox_holds_is_lost() -> None:
    """What would have a client cut each time that it comes back is a reset instead."""
    async with open_test_node(NodeOptions(outbox_limit=65_536)) as node:
        browser = Browser("a")
        async with browser.connected(node):
            pass
        await publish(node, "a", *["x" * 20_000] * 3)
        async with browser.connected(node):
            assert browser.read() == []
            assert len(browser.source.data("reset")) == 1


async def test_a_single_event_is_never_lost_for_its_size() -> None:
    """It was accepted, so it comes back as well, whatever an outbox holds."""
    async with open_test_node(NodeOptions(outbox_limit=65_536)) as node:
        browser = Browser("a", "b")
        async with browser.connected(node):
            pass
        await publish(node, "a", "x" * 60_000)
        async with browser.connected(node):
            assert len(browser.read()) == 1
            assert browser.source.data("reset") == []


async def test_a_reset_for_what_does_not_fit_any_more() -> None:
    """All channels count together: the first ones come, the others are named by the reset."""
    async with open_test_node(NodeOptions(outbox_limit=65_536)) as node:
        browser = Browser("a", "b", "c")
        async with browser.connected(node):
            pass
        for name in browser.channels:
            await publish(node, name, "x" * 7_000, "y" * 7_000)
        async with browser.connected(node):
            assert len(browser.read()) == 4
            assert browser.source.data("reset") == ['{"channels":["c"]}']
            await publish(node, "c", 1)
            assert browser.read()[4:] == ["1"]
        async with browser.connected(node):
            assert len(browser.read()) == 5


async def test_what_gathers_too_much_is_a_reset() -> None:
    """While one history is awaited, the events of the other channels have a bound, too."""
    broker = TestBroker()
    async with (
        open_test_node(NodeOptions(outbox_limit=65_536), broker=broker) as node,
        trio.open_nursery() as nursery,
    ):
        browser, over = Browser("a", "b", "c"), trio.Event()
        async with browser.connected(node):
            pass
        await publish(node, "a", 1)

        async def listen() -> None:
            async with browser.connected(node):
                await over.wait()

        broker.before["c"].shut()
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        await publish(node, "a", *["x" * 10_000] * 5)
        (gathered,) = node.hub.channels["a"].joining.values()
        assert sum(len(one.data) for one in gathered) <= 32_768
        broker.before["c"].open()
        await wait_all_tasks_blocked()
        assert browser.read() == []
        assert browser.source.data("reset") == ['{"channels":["a"]}']
        await publish(node, "a", 2)
        assert browser.read() == ["2"]
        over.set()


async def test_many_channels_cost_what_is_sent() -> None:
    """Ids do not grow with the names: in step and after an absence, 128 events of 128 channels
    are a few hundred bytes each, and nobody is cut for them."""
    names = [f"{number:0255}" for number in range(128)]
    async with open_test_node(NodeOptions(outbox_limit=131_072)) as node:
        browser, away = Browser(*names), Browser(*names)
        async with away.connected(node):
            pass
        async with browser.connected(node) as transport:
            transport.sent.clear()
            for name in names:
                await node.publish(Publication(name, b"1"))
            await wait_all_tasks_blocked()
            assert sum(map(len, transport.sent)) < 128 * 2_000
            assert browser.read() == ["1"] * 128
        async with away.connected(node) as transport:
            assert len(transport.sent[0]) < 131_072
            assert away.read() == ["1"] * len(away.source.data())


async def test_others_have_their_turn_while_a_replay_is_made() -> None:
    """A client that missed much does not hold up the others: it is encoded in turns."""
    names = [f"c{number}" for number in range(50)]
    async with open_test_node(NodeOptions(fanout_budget=0)) as node:
        browser, turns = Browser(*names), 0
        async with browser.connected(node):
            pass
        for name in names:
            await publish(node, name, 1)

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            async with browser.connected(node):
                assert browser.read() == ["1"] * 50
            nursery.cancel_scope.cancel()
        assert turns > 90  # one for each history, and one for each event


async def test_a_gap_ends_the_connection() -> None:
    """A stream with a hole in it is not gone on with: the client comes back, and knows."""
    async with open_test_node() as node:
        browser = Browser("a")
        async with browser.connected(node) as transport:
            await publish(node, "a", 1)
            node.hub.channels["a"].epoch = "another"
            await publish(node, "a", 2)
            await trio.Event().wait()  # until it is ended
        assert transport.closed_with == INSUFFICIENT_STATE
        assert browser.read() == ["1"]
        async with browser.connected(node):
            assert browser.read() == ["1", "2"]


async def test_without_recovery_there_are_no_ids() -> None:
    """Where a channel may not be recovered, or keeps nothing, nobody comes back for a reset."""
    options = NodeOptions(
        insecure=False,
        allow_anonymous=True,
        channel=ChannelOptions(allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True),
    )
    async with open_node(options) as node:
        browser = Browser("a", "b")
        async with browser.connected(node):
            await publish(node, "a", 1)
            assert browser.read() == ["1"]
            assert browser.source.last_event_id == ""


async def test_clients_in_the_same_place_share_their_bytes() -> None:
    """Same channels and positions share one codec, in any order; it goes with the last client."""
    async with open_test_node() as node:
        await publish(node, "a", 0)
        one, two, other = Browser("a", "b"), Browser("b", "a"), Browser("a")
        async with one.connected(node), other.connected(node):
            await publish(node, "a", 1)
            async with two.connected(node):
                await publish(node, "b", 2)
                await publish(node, "a", 3)
                assert len(node.hub.channels["b"].listeners) == 1
                assert len(node.hub.channels["a"].listeners) == 2
                assert one.transport.sent[-1] is two.transport.sent[-1]
                assert (one.read(), two.read()) == (["1", "2", "3"], ["2", "3"])
                assert one.source.last_event_id == two.source.last_event_id
            assert len(node.position_sets) == 1
        assert len(node.position_sets) == 0


async def test_history_that_can_not_be_read() -> None:
    """The client is asked to come back, and nothing was said before."""

    class Broken(ForwardingBroker):
        def history(self, *_: object, **__: object) -> Answer[Page]:
            raise BrokerError

    async with open_test_node(broker=Broken()) as node:
        browser = Browser("a", "b")
        async with browser.connected(node) as transport:
            await trio.Event().wait()  # until it is ended
        assert usual(transport.closed_with) == SERVER_ERROR
        assert not transport.sent


async def test_the_permission_went_meanwhile() -> None:
    """A namespace that a reload took away between the decision and the first byte: the stream
    says so, and its client stays away."""
    rooms = NodeOptions(namespaces={"room": ChannelOptions()})
    async with open_test_node(rooms) as node:
        browser = Browser("a", "room:1")
        node.reload(NodeOptions(insecure=True))
        async with browser.connected(node) as transport:
            await trio.Event().wait()  # until it is ended
        assert usual(transport.closed_with) == PERMISSION_DENIED
        assert not node.hub.channels


async def test_the_permission_to_recover_went_meanwhile() -> None:
    """A channel that may not be recovered any more is named by a reset; its live events come."""
    open_to_all = ChannelOptions(
        allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True, allow_recovery=True
    )
    options = NodeOptions(allow_anonymous=True, channel=open_to_all)
    async with open_node(options) as node:
        browser = Browser("a", "b")
        async with browser.connected(node):
            pass
        await publish(node, "a", 1)
        less = msgspec.structs.replace(open_to_all, allow_recovery=False)
        node.reload(msgspec.structs.replace(options, channel=less))
        async with browser.connected(node):
            assert browser.source.data("reset") == []
            assert browser.read() == []
            assert browser.source.data("reset") == ['{"channels":["a","b"]}']
            await publish(node, "a", 2)
            assert browser.read() == ["2"]


async def test_a_comment_is_sent_where_nobody_can_answer(autojump_clock: MockClock) -> None:
    """Heartbeats go on without an answer, and nobody is cut for not giving one."""
    async with open_test_node() as node:
        browser = Browser("a")
        async with browser.connected(node) as transport:
            await trio.sleep(200)
            assert transport.sent.count(b":\n\n") in (7, 8)
        assert browser.client is not None
        assert browser.client.end == Disconnect(3000, "connection closed")


async def test_a_token_that_expires_ends_the_stream(autojump_clock: MockClock) -> None:
    """At once: a plain subscriber cannot refresh its token, so nobody waits for a new one."""
    async with open_test_node() as node:
        transport = MemoryTransport(EVENT_STREAM)
        with trio.CancelScope() as scope:
            client = Client(node.registry, transport, scope, ready=True)
            grant = ConnectionGrant(user="7", expire_at=int(node.unix_time()) + 60)
            wanted = Wanted(grant=grant, channels={"a": SubscriptionGrant()})
            try:
                async with listening(node, client, wanted):
                    await trio.Event().wait()  # until it is ended
            finally:
                await client.leave()
        assert 59 <= trio.current_time() <= 62
        assert transport.closed_with == Disconnect(3005, "connection expired")


@pytest.mark.parametrize("codec", [PLAIN, PLAIN_ASGI])
@pytest.mark.parametrize("delay", [0, 25])
async def test_a_plain_websocket_ends_with_its_token(
    codec: Codec, delay: int, autojump_clock: MockClock
) -> None:
    """At once, natively and behind ASGI, however long others have to refresh theirs."""
    async with open_test_node(NodeOptions(expired_close_delay=delay, ping_interval=1_000)) as node:
        transport = MemoryTransport(codec)
        grant = ConnectionGrant(user="7", expire_at=int(node.unix_time()) + 60)
        wanted = Wanted(grant=grant, channels={"a": SubscriptionGrant()})
        place = Place(node.places)
        opening = Opening(name="websocket", kind="plain", place=place, wanted=wanted)
        async with connect(node, transport) as client:
            begin(node, client, opening)
            await trio.sleep(100)
        assert 59 <= trio.current_time() <= 62
        assert transport.closed_with == Disconnect(3005, "connection expired")


CHANNELS = ("a", "b", "c")
steps = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=6)
stories = st.lists(
    st.tuples(st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True), steps),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(
    stories,
    st.lists(st.tuples(st.sampled_from(CHANNELS), st.integers(0, 4)), max_size=60),
    st.integers(0, 2**16),
    st.sampled_from([1_048_576, 1_048_576, 300, 120]),
)
def test_whatever_happens_everybody_hears_everything_once(
    stories: list[tuple[list[str], list[tuple[int, int]]]],
    events: list[tuple[str, int]],
    seed: int,
    outbox_limit: int,
) -> None:
    """Clients come and go while others publish: each hears every event after its first
    connection, once, in the order of its channel; and its id never says otherwise. Where an
    outbox is small, events are missing only behind a reset that names their channel."""

    async def live(node: Node, browser: Browser, steps: list[tuple[int, int]]) -> None:
        for away, there in steps:
            for _ in range(away):
                await trio.lowlevel.checkpoint()
            async with browser.connected(node):
                for _ in range(there):
                    await trio.lowlevel.checkpoint()
        async with browser.connected(node):
            done.append(browser)
            await over.wait()
            await wait_all_tasks_blocked()

    async def story() -> None:
        options = NodeOptions(outbox_limit=outbox_limit)
        async with open_test_node(options, broker=FarBroker(seed)) as node:
            browsers = [Browser(*channels) for channels, _ in stories]
            counts = dict.fromkeys(CHANNELS, 0)
            async with trio.open_nursery() as nursery:
                for browser, (_, steps) in zip(browsers, stories, strict=True):
                    nursery.start_soon(live, node, browser, steps)
                for channel, pause in events:
                    counts[channel] += 1
                    data = b'"%b%d"' % (channel.encode(), counts[channel])
                    await node.publish(Publication(channel, data))
                    for _ in range(pause):
                        await trio.lowlevel.checkpoint()
                while len(done) < len(browsers):
                    await wait_all_tasks_blocked()
                await wait_all_tasks_blocked()
                over.set()
            for browser in browsers:
                assert outbox_limit < 1_000 or browser.source.data("reset") == []
                check(browser, counts)

    def check(browser: Browser, counts: dict[str, int]) -> None:
        last: dict[str, int | None] = dict.fromkeys(browser.channels)
        newest: dict[str, int] = {}
        for event in browser.source.events:
            position = positions_of(event.last_event_id, browser.channels)
            if event.kind == "reset":
                for name in json.loads(event.data)["channels"]:
                    last[name] = None
                continue
            name, number = event.data[1], int(event.data[2:-1])
            before = last[name]
            assert before is None or number == before + 1
            assert number > newest.get(name, 0)
            last[name] = newest[name] = number
            assert position[name].offset == number
            for other, heard in last.items():
                assert heard is None or position[other].offset == heard
        assert all(number in (None, counts[name]) for name, number in last.items())

    done: list[Browser] = []
    over = trio.Event()
    trio.run(story, clock=MockClock(autojump_threshold=0))
