"""Plain subscribers that begin in the past, by every way: what they get, and what is said."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication
from repeater.testing import open_test_node
from tests.brokers import TestBroker
from tests.far_broker import FarBroker
from tests.plain_readers import WAYS, Heard, Reader

every_way = pytest.mark.parametrize("way", WAYS)


async def publish(node: Node, channel: str, *data: object) -> None:
    for one in data:
        await node.publish(Publication(channel, json.dumps(one).encode()))
    await wait_all_tasks_blocked()


@every_way
async def test_a_late_reader_gets_all_words(way: str) -> None:
    """Whoever comes in the middle of an answer gets it from its first word on, and goes on."""
    async with open_test_node() as node:
        await publish(node, "chat", *range(90))
        reader = Reader(way, "chat", since="start")
        async with reader.connected(node):
            await publish(node, "chat", *range(90, 103))
        assert reader.read() == list(range(103))


@every_way
async def test_the_request_that_is_sent_again_does_not_begin_again(way: str) -> None:
    """A browser that comes back sends `since=start` once more: its last id counts."""
    async with open_test_node() as node:
        await publish(node, "a", 1, 2)
        reader = Reader(way, "a", "b", since="start")
        async with reader.connected(node):
            await publish(node, "b", 3)
        await publish(node, "a", 4)
        async with reader.connected(node):
            assert reader.read() == [1, 2, 3, 4]
        async with reader.connected(node, by_since=True):
            await publish(node, "b", 5)
        assert reader.read() == [1, 2, 3, 4, 5]


@every_way
async def test_an_id_is_good_for_every_way(way: str) -> None:
    """What one way has given, any other takes: ids are of channels, not of transports."""
    async with open_test_node() as node:
        first = Reader("events", "a", "b")
        async with first.connected(node):
            await publish(node, "a", 1)
        await publish(node, "b", 2)
        reader = Reader(way, "b", "a", since=first.last_id)
        async with reader.connected(node):
            assert reader.read() == [2]


@every_way
async def test_the_last_ones(way: str) -> None:
    """So many of each channel, or all that there are of it; nothing is lost then."""
    async with open_test_node() as node:
        await publish(node, "a", 1, 2, 3)
        await publish(node, "b", 4)
        for since, found in (("last:2", [2, 3, 4]), ("last:1000000000000000000", [1, 2, 3, 4])):
            reader = Reader(way, "a", "b", "none", since=since)
            async with reader.connected(node):
                assert reader.read() == found


@every_way
async def test_at_a_time(way: str) -> None:
    """What was numbered at that time or later; a time to come asks for nothing."""
    async with open_test_node() as node:
        await publish(node, "a", 1, 2)
        (_, second), _ = await node.history("a")
        while (await node.history("a", limit=1, reverse=True))[0][0].time == second.time:
            await publish(node, "a", 3)
        (third, *_), _ = await node.history("a", limit=1, reverse=True)
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=third.time)
        reader = Reader(way, "a", since=f"time:{at.isoformat()}")
        async with reader.connected(node):
            assert reader.read() == [3]
        later = at + timedelta(days=1)
        reader = Reader(way, "a", since=f"time:{later.isoformat()}")
        async with reader.connected(node):
            await publish(node, "a", 4)
        assert reader.read() == [4]


@every_way
async def test_what_is_gone_is_said_and_the_rest_comes(way: str) -> None:
    """Publications that the history keeps no more: a reset names their channel, then come those
    that it keeps. The next time nothing is lost."""
    options = NodeOptions(channel=ChannelOptions(history_size=3, history_ttl=100))
    async with open_test_node(options) as node:
        await publish(node, "a", *range(10))
        await publish(node, "b", 10)
        reader = Reader(way, "a", "b", since="start")
        async with reader.connected(node):
            assert reader.read() == [("a",), 7, 8, 9, 10]
        async with reader.connected(node):
            await publish(node, "a", 11)
        assert reader.read() == [("a",), 7, 8, 9, 10, 11]
        reader = Reader(way, "a", "b", since="last:3")
        async with reader.connected(node):
            assert reader.read() == [7 + 1, 9, 11, 10]
        reader = Reader(way, "a", "b", since="last:4")
        async with reader.connected(node):
            assert reader.read() == [("a",), 8, 9, 11, 10]


@every_way
async def test_a_history_that_was_removed_is_said(way: str) -> None:
    """There were publications, and none is kept: a reset and no event."""
    async with open_test_node() as node:
        await publish(node, "a", 1)
        await node.remove_history("a")
        for since in ("start", "last:5", "time:2026-01-01T00:00:00Z"):
            reader = Reader(way, "a", since=since)
            async with reader.connected(node):
                assert reader.read() == [("a",)]
                await publish(node, "a", 2)
            await node.remove_history("a")
            assert reader.read() == [("a",), 2]


@every_way
async def test_a_channel_that_keeps_nothing_is_named(way: str) -> None:
    """Also where the client may not recover: the reset names it, and the others come."""
    open_to_all = ChannelOptions(
        allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True
    )
    kept = msgspec.structs.replace(open_to_all, history_size=9, history_ttl=9, allow_recovery=True)
    options = NodeOptions(
        allow_anonymous=True,
        channel=kept,
        namespaces={
            "none": open_to_all,
            "shut": msgspec.structs.replace(kept, allow_recovery=False),
        },
    )
    async with open_node(options) as node:
        for name in ("a", "none:a", "shut:a"):
            await publish(node, name, 1)
        for since in ("start", "last:1"):
            reader = Reader(way, "a", "none:a", "shut:a", since=since)
            async with reader.connected(node):
                (reset, event) = reader.read()
            assert isinstance(reset, tuple)
            assert sorted(reset) == ["none:a", "shut:a"]
            assert event == 1


@every_way
async def test_no_more_than_a_recovery_brings(way: str) -> None:
    """`recovery_limit` of each channel, the newest; what is before them is said to be lost."""
    async with open_test_node(NodeOptions(recovery_limit=3)) as node:
        await publish(node, "a", 1, 2, 3, 4)
        for since in ("start", "last:4", "time:2026-01-01T00:00:00Z"):
            reader = Reader(way, "a", since=since)
            async with reader.connected(node):
                assert reader.read() == [("a",), 2, 3, 4]


@every_way
async def test_no_more_than_half_an_outbox(way: str) -> None:
    """All channels count together: the newest come as far as they fit; the others are named."""
    async with open_test_node(NodeOptions(outbox_limit=65_536)) as node:
        names = [f"c{number:03}" for number in range(128)]
        for name in names:
            await publish(node, name, *["x" * 1_000] * 3)
        reader = Reader(way, *names, since="start")
        async with reader.connected(node) as client:
            (reset, *events) = reader.read()
            assert client.end is None
        assert isinstance(reset, tuple)
        assert 5 < len(events) < 33
        assert len(reset) == 128 - len(events) // 3
        async with reader.connected(node):
            await publish(node, names[-1], 1)
        assert len(reader.heard) == len(events) + 2


@every_way
async def test_an_id_of_other_channels_is_a_reset(way: str) -> None:
    """Whoever names another set of channels with an old id has lost all of them."""
    async with open_test_node() as node:
        other = Reader(way, "a")
        async with other.connected(node):
            await publish(node, "a", 1)
        reader = Reader(way, "a", "b", since=other.last_id)
        async with reader.connected(node):
            assert reader.read() == [("a", "b")]


@every_way
async def test_a_cache_channel_gives_its_newest(way: str) -> None:
    """A channel that recovers its newest publication only gives that one; an empty one nothing."""
    channel = ChannelOptions(history_size=5, history_ttl=60, force_recovery_mode="cache")
    async with open_test_node(NodeOptions(channel=channel)) as node:
        await publish(node, "a", 1, 2, 3)
        reader = Reader(way, "a", "empty", since="start")
        async with reader.connected(node):
            assert reader.read() == [3]
            await publish(node, "empty", 4)
        async with reader.connected(node):
            await publish(node, "a", 5)
        assert reader.read() == [3, 4, 5]


async def test_those_who_get_envelopes_share_their_bytes() -> None:
    """By each way one encoding for all clients in the same place, and none of another way's."""
    async with open_test_node() as node:
        await publish(node, "a", 0)
        ways = [*WAYS, *WAYS]
        readers = [Reader(way, "a", "b", since="start") for way in ways]
        async with trio.open_nursery() as nursery:
            for reader in readers:

                async def listen(reader: Reader = reader) -> None:
                    async with reader.connected(node):
                        await trio.sleep_forever()

                nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            assert len(node.position_sets) == len(WAYS)
            await publish(node, "b", 1)
            assert len(node.hub.channels["b"].listeners) == len(WAYS)
            for one, other in zip(readers[:4], readers[4:], strict=True):
                assert one.transport.sent[-1] is other.transport.sent[-1]
            nursery.cancel_scope.cancel()
        assert all(reader.read() == [0, 1] for reader in readers)
        assert len(node.position_sets) == 0


async def test_events_say_their_channel_and_place() -> None:
    """The first words of a client's page: which channel, which number, and how to come back."""
    async with open_test_node() as node:
        reader = Reader("ws", "a", "b", since="start")
        await publish(node, "a", 1)
        async with reader.connected(node):
            await publish(node, "b", 2)
        ids = [one.id for one in reader.heard]
        assert reader.heard == [Heard(ids[0], 1, "a", (), 1), Heard(ids[1], 2, "b", (), 1)]
        assert reader.last_id == ids[1] != ids[0]


@every_way
async def test_what_is_dropped_behind_the_answer_is_said(way: str) -> None:
    """A client that asked for nothing has its answer, and loads its state. What is published until
    its channels are live, and is too much to keep, it does not miss in silence."""
    async with open_test_node(NodeOptions(outbox_limit=65_536)) as node:
        reader = Reader(way, "a", "b")

        async def greet() -> None:
            await publish(node, "a", *["x" * 10_000] * 5)

        async with reader.connected(node, greet=greet):
            assert reader.read() == [("a",)]
            await publish(node, "b", 1)
        async with reader.connected(node):
            assert reader.read() == [("a",), 1]


@every_way
async def test_what_is_dropped_before_the_answer_is_behind_the_id(way: str) -> None:
    """The id of a reset is where live events begin: whoever comes back with it gets none of those
    that the reset stands for."""
    broker = TestBroker()
    async with (
        open_test_node(NodeOptions(outbox_limit=65_536), broker=broker) as node,
        trio.open_nursery() as nursery,
    ):
        reader, over = Reader(way, "a", "b", since="AAAAAAAA:e:AAA"), trio.Event()

        async def listen() -> None:
            async with reader.connected(node):
                await over.wait()

        broker.before["b"].shut()
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        await publish(node, "a", *["x" * 10_000] * 5)
        broker.before["b"].open()
        await wait_all_tasks_blocked()
        assert reader.read() == [("a", "b")]
        over.set()
        await wait_all_tasks_blocked()
        async with reader.connected(node):
            assert reader.read() == [("a", "b")]


async def test_others_have_their_turn_while_many_begin_in_the_past() -> None:
    """128 histories are gone through in turns, and what is encoded is, too."""
    async with open_test_node(NodeOptions(fanout_budget=0)) as node:
        names, turns = [f"c{number}" for number in range(128)], 0
        for name in names:
            await node.publish(Publication(name, b"1"))

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        reader = Reader("ws", *names, since="start")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            async with reader.connected(node):
                assert reader.read() == [1] * 128
            nursery.cancel_scope.cancel()
        assert turns > 300


CHANNELS = ("a", "b", "c")
_steps = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=6)
_stories = st.lists(
    st.tuples(
        st.sampled_from(sorted(WAYS)),
        st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True),
        st.sampled_from(["", "start", "last:1", "last:3", "time:2026-01-01T00:00:00Z"]),
        st.booleans(),
        _steps,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(
    _stories,
    st.lists(st.tuples(st.sampled_from(CHANNELS), st.integers(0, 4)), max_size=60),
    st.integers(0, 2**16),
    st.sampled_from([1_048_576, 1_048_576, 1_500, 300]),
    st.sampled_from([100, 3]),
)
def test_whatever_happens_everybody_hears_everything_once(
    stories: list[tuple[str, list[str], str, bool, list[tuple[int, int]]]],
    events: list[tuple[str, int]],
    seed: int,
    outbox_limit: int,
    history_size: int,
) -> None:
    """Clients come and go while others publish, by all ways, with their last id in either place.

    From what they begin with on they hear each event of a channel once and in order, or a reset
    names the channel. Who asked for the start has number 1 first, or a reset."""

    async def live(
        node: Node, reader: Reader, by_since: bool, steps: list[tuple[int, int]]
    ) -> None:
        for away, there in steps:
            for _ in range(away):
                await trio.lowlevel.checkpoint()
            async with reader.connected(node, by_since=by_since):
                for _ in range(there):
                    await trio.lowlevel.checkpoint()
        async with reader.connected(node, by_since=by_since):
            done.append(reader)
            await over.wait()
            await wait_all_tasks_blocked()

    async def story() -> None:
        channel = ChannelOptions(history_size=history_size, history_ttl=600)
        options = NodeOptions(outbox_limit=outbox_limit, channel=channel)
        async with open_test_node(options, broker=FarBroker(seed)) as node:
            readers = [Reader(way, *names, since=since) for way, names, since, _, _ in stories]
            counts = dict.fromkeys(CHANNELS, 0)
            async with trio.open_nursery() as nursery:
                for reader, (_, _, _, by_since, steps) in zip(readers, stories, strict=True):
                    nursery.start_soon(live, node, reader, by_since, steps)
                for name, pause in events:
                    counts[name] += 1
                    await node.publish(Publication(name, b'"%b%d"' % (name.encode(), counts[name])))
                    for _ in range(pause):
                        await trio.lowlevel.checkpoint()
                while len(done) < len(readers):
                    await wait_all_tasks_blocked()
                await wait_all_tasks_blocked()
                over.set()
            for reader in readers:
                check(reader, counts)

    def check(reader: Reader, counts: dict[str, int]) -> None:
        from_start = reader.since == "start"
        last: dict[str, int | None] = dict.fromkeys(reader.channels, 0 if from_start else None)
        newest: dict[str, int] = {}
        for heard in reader.heard:
            for name in heard.reset:
                last[name] = None
            if heard.reset:
                continue
            assert isinstance(heard.data, str)
            name, number = heard.data[0], int(heard.data[1:])
            before = last[name]
            assert before is None or number == before + 1
            assert number > newest.get(name, 0)
            assert heard.channel in ("", name)
            assert heard.offset in (0, number)
            last[name] = newest[name] = number
        assert all(number in (None, counts[name]) for name, number in last.items())

    done: list[Reader] = []
    over = trio.Event()
    trio.run(story, clock=MockClock(autojump_threshold=0))
