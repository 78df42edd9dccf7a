"""Feeds: what `node.listen` gives to code in the same process, and when it falls behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.brokers.memory import MemoryBroker
from repeater.brokers.receipts import Receipt
from repeater.clients.feed import Feed, ListenerBehindError
from repeater.errors import BrokerError, ReplyError
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import StreamPosition
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import ForwardingBroker, HeldChannels, LateBroker, TestBroker
from tests.conversation import talking
from tests.engines import Gate

KEEPS = NodeOptions(channel=ChannelOptions(history_size=100))
KEEPS_TEN = NodeOptions(channel=ChannelOptions(history_size=10))
KEEPS_NONE = NodeOptions(channel=ChannelOptions(history_size=0))
ALL = StreamPosition(0, "")
ONE = 300  # bytes in which one small publication fits, and not two


async def publish(node: Node, *numbers: int, channel: str = "news") -> None:
    """Publish these numbers, and wait until they are distributed."""
    for number in numbers:
        await node.publish(channel, number)
    await wait_all_tasks_blocked()


async def taken(feed: Feed) -> list[int | str]:
    """What the feed gives until it waits or ends; an error is `lost after` its offset."""
    found: list[int | str] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                while not feed._mailbox.ended or len(feed._mailbox):
                    try:
                        while True:
                            found.append(int((await anext(feed)).data))
                    except StopAsyncIteration:
                        break
                    except ListenerBehindError as error:
                        at = error.position
                        found.append(f"lost after {'?' if at is None else at.offset}")
                scope.cancel()

            nursery.start_soon(take)
            await wait_all_tasks_blocked()
            scope.cancel()
    return found


# ---- what it gives


async def test_all_that_is_published_after_the_call() -> None:
    """Nothing before it, and everything after it, in order, before the first one is awaited."""
    async with open_test_node(KEEPS) as node:
        await node.publish("news", 1)  # which fan-out has not distributed yet
        feed = node.listen("news")
        await publish(node, 2, 3)
        await publish(node, 99, channel="other")
        assert await taken(feed) == [2, 3]
        await publish(node, 4)
        assert await taken(feed) == [4]


async def test_the_publications_themselves() -> None:
    """Data, tags and position are the publisher's; clients beside it get what they always get."""
    transport = MemoryTransport()
    async with open_test_node(KEEPS) as node, connect(node, transport, ["news"]):
        async with node.listen("news") as feed:
            at = await node.publish("news", {"n": 1}, tags={"a": "b"})
            publication = await anext(feed)
        assert publication.channel == "news"
        assert publication.data == b'{"n":1}'
        assert publication.tags == {"a": "b"}
        assert publication.position == at
        assert transport.messages() == [{"n": 1}]


async def test_a_channel_without_history() -> None:
    """Its publications have no position."""
    async with open_test_node(KEEPS_NONE) as node:
        feed = node.listen("news")
        await publish(node, 1, 2)
        assert await taken(feed) == [1, 2]


async def test_a_binary_channel() -> None:
    """Its publications are any bytes."""
    options = NodeOptions(channel=ChannelOptions(publication_data_format="binary"))
    async with open_test_node(options) as node, node.listen("frames") as feed:
        await node.publish("frames", b"\xff\x00")
        publication = await anext(feed)
        assert (publication.data, publication.binary) == (b"\xff\x00", True)


async def test_several_channels() -> None:
    """One feed hears them in the order of fan-out; a name twice is one channel."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("a", "b", "a")
        for number, channel in enumerate("abab"):
            await publish(node, number, channel=channel)
        assert await taken(feed) == [0, 1, 2, 3]
        assert node.statistics().subscriptions == 2


async def test_large_batches() -> None:
    """Many publications of many channels in one batch of fan-out, joins among them."""
    options = NodeOptions(channel=ChannelOptions(history_size=100, join_leave=True))
    async with open_test_node(options) as node:
        feed = node.listen("a", "b")
        for number in range(100):
            await node.publish("ab"[number % 2], number)
        async with talking(node) as talk:
            await talk.subscribe("a")
            await node.publish("a", 100)
        found = await taken(feed)
        assert [n for n in found if n in range(0, 101, 2)] == list(range(0, 101, 2))
        assert [n for n in found if n in range(1, 101, 2)] == list(range(1, 101, 2))


async def test_two_feeds_hear_the_same() -> None:
    """Each has its own place and its own bound."""
    async with open_test_node(KEEPS) as node:
        slow, quick = node.listen("news", limit=ONE), node.listen("news")
        await publish(node, 1, 2, 3)
        assert await taken(quick) == [1, 2, 3]
        assert await taken(slow) == [1, 2, 3]


# ---- where it begins


@pytest.mark.parametrize(
    ("since", "expected"),
    [(0, [1, 2, 3, 4]), (2, [3, 4]), (3, [4])],
)
async def test_it_begins_behind_a_position(since: int, expected: list[int]) -> None:
    """First what the history has behind it, then what comes, each once."""
    async with open_test_node(KEEPS) as node:
        await publish(node, 1, 2, 3)
        _, top = await node.history("news", limit=0)
        feed = node.listen("news", since=StreamPosition(since, top.epoch))
        await publish(node, 4)
        assert await taken(feed) == expected
        assert feed.statistics().recovered == len(expected)


@pytest.mark.parametrize("count", [3, 150])
async def test_it_begins_with_all_that_is_kept(count: int) -> None:
    """Offset 0 of no epoch stands for the oldest one that the history has."""
    async with open_test_node(KEEPS) as node:
        await publish(node, *range(count))
        feed = node.listen("news", since=ALL)
        await publish(node, count)
        assert await taken(feed) == list(range(max(0, count - 99), count + 1))


async def test_it_begins_in_an_empty_channel() -> None:
    """All that comes is behind the beginning."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("news", since=ALL)
        assert await taken(feed) == []
        await publish(node, 1, 2)
        assert await taken(feed) == [1, 2]


async def test_each_channel_has_its_own_position() -> None:
    """By name; one without a position begins now."""
    async with open_test_node(KEEPS) as node:
        for channel in "abc":
            await publish(node, 1, 2, channel=channel)
        positions = {"a": StreamPosition(1, ""), "b": ALL}
        feed = node.listen("a", "b", "c", since=positions)
        await publish(node, 3, channel="c")
        assert sorted(map(int, await taken(feed))) == [1, 2, 2, 3]


async def test_a_position_of_another_stream() -> None:
    """The reader is told, and hears what comes."""
    async with open_test_node(KEEPS) as node:
        await publish(node, 1)
        feed = node.listen("news", since=StreamPosition(1, "other"))
        with pytest.raises(ListenerBehindError, match=r"'news' .* after offset 1: .* began anew"):
            await anext(feed)
        await publish(node, 2)
        assert await taken(feed) == [2]


async def test_a_position_above_the_stream() -> None:
    """The stream lost its end: the reader is told, and hears what comes."""
    async with open_test_node(KEEPS) as node:
        await publish(node, 1)
        _, top = await node.history("news", limit=0)
        feed = node.listen("news", since=StreamPosition(7, top.epoch))
        assert await taken(feed) == ["lost after ?"]
        await publish(node, 2)
        assert await taken(feed) == [2]


@pytest.mark.parametrize(
    ("channels", "more", "error"),
    [
        ((), {}, ValueError),
        (("a",), {"limit": 0}, ValueError),
        (("a", "b"), {"since": ALL}, ValueError),
        (("a",), {"since": {"b": ALL}}, ValueError),
        (("a",), {"since": StreamPosition(-1, "")}, ReplyError),
        (("none:a",), {"since": ALL}, ReplyError),
        (("unknown:a",), {}, ReplyError),
        (("",), {}, ReplyError),
    ],
    ids=str,
)
async def test_what_cannot_be_heard(
    channels: tuple[str, ...], more: dict[str, object], error: type[Exception]
) -> None:
    """It is refused at the call, and nothing is left of it."""
    options = NodeOptions(
        channel=KEEPS.channel, namespaces={"none": ChannelOptions(history_size=0)}
    )
    async with open_test_node(options) as node:
        with pytest.raises(error):
            node.listen(*channels, **more)  # type: ignore[arg-type]
        assert not node.hub.channels


# ---- a reader that falls behind


async def test_it_recovers_by_itself() -> None:
    """What did not fit is read from the history: every publication once and in order."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("news", limit=ONE)
        await publish(node, *range(80))
        assert feed.statistics().waiting == 1
        assert await taken(feed) == list(range(80))
        seen = feed.statistics()
        assert (seen.waiting, seen.waiting_bytes, seen.behind, seen.recovered) == (0, 0, 1, 79)
        await publish(node, 80)
        assert await taken(feed) == [80]


async def test_it_may_not_recover() -> None:
    """Then the reader gets what fitted, is told from where on the history has the rest, goes on."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("news", limit=ONE, recover=False)
        await publish(node, 1, 2, 3)
        assert int((await anext(feed)).data) == 1
        with pytest.raises(ListenerBehindError) as caught:
            await anext(feed)
        assert caught.value.channel == "news"
        missed, _ = await node.history("news", since=caught.value.position)
        assert [one.data for one in missed] == [b"2", b"3"]
        await publish(node, 4)
        assert await taken(feed) == [4]


async def test_the_history_is_too_short() -> None:
    """The reader is told, and goes on with the oldest one that is kept."""
    async with open_test_node(KEEPS_TEN) as node:
        feed = node.listen("news", limit=ONE)
        await publish(node, *range(50))
        assert node.statistics().feeds.bytes > 0
        assert await taken(feed) == [0, "lost after 1", *range(40, 50)]
        seen = node.statistics().feeds
        assert (seen.open, seen.bytes, seen.behind, seen.lost) == (1, 0, 1, 1)
        feed.close()
        assert node.statistics().feeds.open == 0


async def test_no_history() -> None:
    """What did not fit is lost, and the reader is told once."""
    async with open_test_node(KEEPS_NONE) as node:
        feed = node.listen("news", limit=ONE)
        await publish(node, *range(50))
        assert await taken(feed) == [0, "lost after ?"]
        await publish(node, 50)
        assert await taken(feed) == [50]


async def test_publications_without_an_offset_are_in_no_history() -> None:
    """The reader is told of them, and gets those that have one."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("news", limit=ONE)
        await publish(node, 1, 2)
        await node.publish("news", 3, skip_history=True)
        await publish(node, 4)
        assert await taken(feed) == [1, "lost after 1", 2, 4]


async def test_only_the_channels_that_are_behind_are_read() -> None:
    """The others miss nothing."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("a", "b", limit=2 * ONE)
        await publish(node, 1, channel="a")
        await publish(node, 2, channel="b")
        await publish(node, 3, 4, 5, channel="b")
        assert await taken(feed) == [1, 2, 3, 4, 5]
        assert feed.statistics().recovered == 3


async def test_one_large_publication_always_fits() -> None:
    """Whatever the limit: nobody could ever read it else."""
    async with open_test_node(KEEPS_NONE) as node, node.listen("news", limit=1) as feed:
        await node.publish("news", "x" * 50_000)
        assert len((await anext(feed)).data) == 50_002


async def test_the_history_cannot_be_read() -> None:
    """The reader gets the engine's error, and tries again by iterating again."""
    broker = TestBroker()
    async with open_test_node(KEEPS, broker=broker) as node, node.listen("news", limit=ONE) as feed:
        await publish(node, 1, 2)
        await anext(feed)
        broker.failing = True
        with pytest.raises(BrokerError):
            await anext(feed)
        assert node.broker_errors["history"] == 1
        broker.failing = False
        assert await taken(feed) == [2]


# ---- what the engine loses


async def test_the_engine_loses_events_that_the_history_has() -> None:
    """A rupture and a gap are repaired from the history, and the reader notices nothing."""
    lossy = TestBroker()
    async with open_test_node(KEEPS, broker=lossy) as node, node.listen("news") as feed:
        await publish(node, 1)
        lossy.fate = lambda event: ()
        await publish(node, 2)
        lossy.fate = lambda event: (event,)
        await publish(node, 3)  # after the gap
        assert await taken(feed) == [1, 2, 3]
        lossy.sink.hold()
        await publish(node, 4)
        lossy.sink.lose("")
        lossy.sink.release()
        assert await taken(feed) == [4]


@pytest.mark.parametrize("channel", ["", "news"])
async def test_the_engine_loses_events_that_nobody_has(channel: str) -> None:
    """Without a history the reader is told."""
    lossy = TestBroker()
    async with open_test_node(KEEPS_NONE, broker=lossy) as node, node.listen("news") as feed:
        await publish(node, 1)
        lossy.sink.lose(channel)
        await publish(node, 2)
        assert await taken(feed) == [1, "lost after ?", 2]


async def test_a_rupture_in_which_nothing_was_lost() -> None:
    """The history shows that nothing is missing."""
    lossy = TestBroker()
    async with open_test_node(KEEPS, broker=lossy) as node, node.listen("news") as feed:
        for number in range(3):
            await publish(node, number)
            lossy.sink.lose("news")
        assert await taken(feed) == [0, 1, 2]


async def test_a_rupture_without_recovery() -> None:
    """A feed that may not recover is told."""
    lossy = TestBroker()
    async with (
        open_test_node(KEEPS, broker=lossy) as node,
        node.listen("news", recover=False) as feed,
    ):
        await publish(node, 1)
        lossy.sink.lose("news")
        await publish(node, 2)
        assert await taken(feed) == [1, "lost after 1", 2]


async def test_the_stream_begins_anew() -> None:
    """A stream that was forgotten has another epoch: the reader is told, and hears the new one."""
    broker = MemoryBroker(history_channels=1)
    async with open_test_node(KEEPS, broker=broker) as node, node.listen("news") as feed:
        await publish(node, 1, 2)
        await publish(node, 1, channel="other")  # the one that is kept now
        await publish(node, 3, 4)
        assert await taken(feed) == [1, 2, "lost after 2", 3, 4]


async def test_a_history_that_does_not_have_what_came() -> None:
    """A gap that the history does not close is told, and what came is given."""

    class Blind(ForwardingBroker):
        """Its history ends before the newest publications."""

        def history(self, *arguments: object, **more: object) -> object:  # type: ignore[override]
            publications, top = self.memory.history(*arguments, **more)  # type: ignore[arg-type]
            return publications[:0], StreamPosition(min(top.offset, 1), top.epoch)

    lossy = TestBroker()
    lossy.history = Blind(lossy.memory).history  # type: ignore[method-assign, assignment]
    async with open_test_node(KEEPS, broker=lossy) as node, node.listen("news") as feed:
        await publish(node, 1)
        lossy.fate = lambda event: ()
        await publish(node, 2)
        lossy.fate = lambda event: (event,)
        await publish(node, 3, 4)
        assert await taken(feed) == [1, "lost after 1", 3, 4]


# ---- an engine on other machines


async def test_the_block_begins_when_the_channel_is_held() -> None:
    """From then on nothing is missed; what was published since the call comes from the history."""
    broker = HeldChannels()
    async with open_test_node(KEEPS, broker=broker) as node, trio.open_nursery() as nursery:
        broker.holding.shut()
        feed = node.listen("news")
        entered = trio.Event()

        async def hear() -> None:
            async with feed:
                entered.set()
                assert await taken(feed) == [1, 2]

        nursery.start_soon(hear)
        await publish(node, 1)
        assert not entered.is_set()
        broker.holding.open()
        await entered.wait()
        await publish(node, 2)
    assert [call for call, _ in broker.calls] == ["hold", "history", "history", "release"]


async def test_the_reader_comes_later_than_the_answers() -> None:
    """What was published before the channel was held is read all the same."""
    gate = Gate()

    class NothingBefore(TestBroker):
        """Events come when the channel is held, and not before."""

        def hold(self, channel: str) -> Receipt[None]:
            self.fate = lambda event: ()
            return gate.answer(self.begin)

        def begin(self) -> None:
            self.fate = lambda event: (event,)

    async with open_test_node(KEEPS, broker=NothingBefore()) as node:
        gate.shut()
        feed = node.listen("news")
        await publish(node, 1, 2)
        gate.open()
        assert await taken(feed) == [1, 2]
        await publish(node, 3)
        assert await taken(feed) == [3]


async def test_a_hold_that_fails_at_once() -> None:
    """A receipt may be settled with an error already: the broker is asked again by the reader."""

    class FailsAtOnce(ForwardingBroker):
        """Its first answer is an error."""

        failures = 1

        def hold(self, channel: str) -> Receipt[None]:
            receipt: Receipt[None] = Receipt()
            failed, self.failures = self.failures, 0
            receipt.settle(BrokerError("down") if failed else None)
            return receipt

    broker = FailsAtOnce()
    async with open_test_node(KEEPS, broker=broker) as node:
        feed = node.listen("news")
        await publish(node, 1)
        assert await taken(feed) == [1]
        await publish(node, 2)
        assert await taken(feed) == [2]
        broker.failures = 1
        async with node.listen("other") as other:
            await publish(node, 3, channel="other")
            assert await taken(other) == [3]


async def test_answers_that_come_late() -> None:
    """An engine whose answers are all receipts gives the same."""
    async with open_test_node(KEEPS, broker=LateBroker()) as node:
        async with node.listen("news", limit=ONE) as feed:
            await publish(node, *range(70))
            assert await taken(feed) == list(range(70))
        feed = node.listen("news", since=StreamPosition(60, ""))
        await publish(node, 70)
        assert await taken(feed) == list(range(60, 71))


class DownAtFirst(ForwardingBroker):
    """Holds no channel until it is `up`."""

    up = False

    def hold(self, channel: str) -> None:
        if not self.up:
            raise BrokerError("down")


async def test_an_engine_that_is_down() -> None:
    """The reader, or who enters the block, gets its error; a reader tries again."""
    broker = DownAtFirst()
    async with open_test_node(KEEPS, broker=broker) as node:
        with pytest.raises(BrokerError):
            async with node.listen("news"):
                raise AssertionError
        assert not node.hub.channels
        feed = node.listen("news")
        for _ in range(2):
            with pytest.raises(BrokerError):
                await anext(feed)
        assert node.broker_errors["subscribe"] == 3
        broker.up = True
        assert await taken(feed) == []
        await publish(node, 1)
        assert await taken(feed) == [1]


# ---- how it ends


async def until_it_breaks(node: Node) -> weakref.ref[Feed]:
    """Leave the loop over a feed; returns what may still know it."""
    feed = node.listen("news")
    known = weakref.ref(feed)
    await publish(node, 1)
    async for _ in feed:
        break
    return known


async def test_a_break_is_enough() -> None:
    """Nothing refers to the feed then, so it is freed at once, and the hub forgets it."""
    gc.disable()
    try:
        async with open_test_node(KEEPS) as node:
            known = await until_it_breaks(node)
            assert known() is None
            await wait_all_tasks_blocked()
            assert not node.hub.channels
            assert not node.mailboxes
    finally:
        gc.enable()


async def test_the_collector_may_find_it_in_any_thread() -> None:
    """The hub is changed by Trio's own thread only."""

    class Holder:
        """Refers to itself, and so waits for the collector."""

        def __init__(self, feed: Feed) -> None:
            self.feed = feed
            self.me = self

    async with open_test_node(KEEPS) as node:
        known = weakref.ref(Holder(node.listen("news")))
        await trio.to_thread.run_sync(gc.collect)
        assert known() is None
        await wait_all_tasks_blocked()
        assert not node.hub.channels


async def test_it_is_freed_after_the_node_and_after_trio() -> None:
    """A feed that outlives its node does nothing any more."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("news")
    assert not node.hub.channels
    assert await taken(feed) == []
    del feed


def test_a_feed_that_outlives_trio() -> None:
    """It is freed without a word."""
    kept: list[Feed] = []

    async def main() -> None:
        async with open_test_node(KEEPS) as node:
            kept.append(node.listen("news"))
            # As if the node had not ended it.
            kept[0]._mailbox.end()
            kept[0]._mailbox.ended = False

    trio.run(main)
    kept.clear()


async def test_the_block_ends_it() -> None:
    """Iteration is over then, and nothing more comes."""
    async with open_test_node(KEEPS) as node:
        async with node.listen("news") as feed:
            await publish(node, 1)
        assert not node.hub.channels
        await publish(node, 2)
        assert await taken(feed) == []
        feed.close()


async def test_close_ends_an_iteration() -> None:
    """A task that waits for the next publication leaves its loop."""
    async with open_test_node(KEEPS) as node, trio.open_nursery() as nursery:
        feed, ended = node.listen("news"), trio.Event()

        async def hear() -> None:
            async for _ in feed:
                raise AssertionError
            ended.set()

        nursery.start_soon(hear)
        await wait_all_tasks_blocked()
        feed.close()
        await ended.wait()


async def test_the_node_ends_it() -> None:
    """What fan-out distributed is given, then the iteration is over; a new one is over at once."""
    heard: list[int] = []

    async def hear(feed: Feed) -> None:
        heard.extend([int(publication.data) async for publication in feed])

    async with trio.open_nursery() as nursery:
        async with open_test_node(KEEPS) as node:
            nursery.start_soon(hear, node.listen("news"))
            await wait_all_tasks_blocked()
            for number in range(3):
                await node.publish("news", number)
        await hear(node.listen("news"))
    assert heard == [0, 1, 2]


async def test_the_node_ends_while_it_is_behind() -> None:
    """What did not fit is not read any more: the reader is told, and the iteration is over."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("news", limit=ONE)
        late = node.listen("news", since=ALL)
        await publish(node, 1, 2)
    assert int((await anext(feed)).data) == 1
    with pytest.raises(ListenerBehindError, match="did not fit"):
        await anext(feed)
    with pytest.raises(StopAsyncIteration):
        await anext(feed)
    with pytest.raises(ListenerBehindError, match="the node has ended"):
        await anext(late)


async def test_one_task_at_a_time() -> None:
    """A second one is told so, and the first goes on."""
    async with open_test_node(KEEPS) as node, trio.open_nursery() as nursery:
        feed, heard = node.listen("news"), list[bytes]()

        async def hear() -> None:
            heard.append((await anext(feed)).data)

        nursery.start_soon(hear)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await anext(feed)
        with pytest.raises(trio.BusyResourceError):
            await feed.__aenter__()
        await publish(node, 1)
        assert heard == [b"1"]


async def test_cancelled_it_loses_nothing() -> None:
    """Neither what waits, nor what is being read from the history."""
    broker = TestBroker()
    async with open_test_node(KEEPS, broker=broker) as node:
        feed = node.listen("news", limit=ONE)
        await publish(node, 1, 2, 3)
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(feed)
            assert scope.cancelled_caught
        assert int((await anext(feed)).data) == 1
        broker.before["news"].shut()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed.__anext__)
                await wait_all_tasks_blocked()
                scope.cancel()
        broker.before["news"].open()
        assert await taken(feed) == [2, 3]


async def test_always_a_checkpoint(autojump_clock: MockClock) -> None:
    """A reader of a full feed lets other tasks run."""
    async with open_test_node(KEEPS) as node:
        feed = node.listen("news")
        await publish(node, *range(10))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(10):
                await anext(feed)
            nursery.cancel_scope.cancel()
        assert turns >= 9


async def test_a_reload_removes_the_channels_history() -> None:
    """Then nothing can be recovered, and the reader is told."""
    options = NodeOptions(namespaces={"a": ChannelOptions(history_size=10)})
    for later in (NodeOptions(namespaces={"a": ChannelOptions(history_size=0)}), NodeOptions()):
        async with open_test_node(options) as node:
            feed = node.listen("a:news", limit=ONE)
            await publish(node, 1, 2, channel="a:news")
            node.reload(later)
            assert await taken(feed) == [1, "lost after 1"]
