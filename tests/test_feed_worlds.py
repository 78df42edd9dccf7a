"""Feeds in random worlds: each publication once and in order, or an error that says where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from repeater.clients.feed import Feed, ListenerBehindError
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Event, Publication, StreamPosition
from repeater.testing import open_test_node
from tests.brokers import LateTestBroker, TestBroker

ACTIONS = (
    *("publish", "publish some", "publish many", "take", "take some", "take all", "cancelled"),
    *("hold", "release", "lose", "drop one", "break", "resume", "shut", "open", "clear"),
)
CHANNELS = ("a", "b")


class World:
    """A node whose engine loses events, a publisher, and a reader of two channels."""

    def __init__(self, node: Node, broker: TestBroker) -> None:
        self.node = node
        self.broker = broker
        self.published = dict.fromkeys(CHANNELS, 0)
        self.given: dict[str, int] = {}
        """The last number that the reader got, by channel."""
        self.loose = set(CHANNELS)
        """Channels in which the reader was told that something is missing."""
        self.errors = 0
        self.feed = self.listen()

    def listen(self, since: dict[str, StreamPosition] | None = None) -> Feed:
        return self.node.listen(*CHANNELS, since=since, limit=900)

    async def publish(self, count: int) -> None:
        for number in range(count):
            channel = CHANNELS[number % 2]
            self.published[channel] += 1
            at = await self.node.publish(channel, self.published[channel])
            assert at is not None
            assert at.offset == self.published[channel]
        await wait_all_tasks_blocked()

    async def take(self, most: int) -> None:
        """Take publications until none comes, and judge each."""
        for _ in range(most):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.take_one)
                    await wait_all_tasks_blocked()
                    scope.cancel()
            if scope.cancelled_caught:
                return

    async def take_one(self) -> None:
        told: tuple[str, StreamPosition | None] | None = None
        try:
            publication = await anext(self.feed)
        except ListenerBehindError as error:  # not kept: its traceback refers to the feed
            told = error.channel, error.position
        if told is None:
            self.judge(publication)
            return
        channel, at = told
        self.errors += 1
        self.loose.add(channel)
        assert at is None or at.offset == self.given.get(channel, at.offset)

    def judge(self, publication: Publication) -> None:
        channel, number = publication.channel, int(publication.data)
        before = self.given.get(channel)
        assert number == publication.offset
        if before is not None:
            assert number > before, "given twice, or out of order"
            assert channel in self.loose or number == before + 1, "something is missing"
        self.loose.discard(channel)
        self.given[channel] = number

    async def act(self, action: str) -> None:
        broker = self.broker
        if action.startswith("publish"):
            await self.publish({"publish": 1, "publish some": 5, "publish many": 30}[action])
        elif action.startswith("take"):
            await self.take({"take": 1, "take some": 7, "take all": 1_000}[action])
        elif action == "cancelled":
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(self.feed)
        elif action == "hold":
            broker.sink.hold()
        elif action == "release":
            broker.sink.release()
        elif action == "lose":
            broker.sink.lose("")
        elif action == "drop one":
            broker.fate = self.dropping()
        elif action == "break":
            for channel in CHANNELS:  # with a position at once, as of an engine in this process
                broker.before[channel].open()
            self.feed = self.listen()
            self.given = dict(self.published)
            self.loose.clear()
        elif action == "resume":
            positions = {one.name: one.position for one in self.feed._channels.values()}
            self.feed = self.listen({name: at for name, at in positions.items() if at is not None})
            self.loose |= {name for name, at in positions.items() if at is None}
        elif action in ("shut", "open"):
            for channel in CHANNELS:
                getattr(broker.before[channel], action)()
        elif action == "clear":
            await self.node.remove_history("a")
        await wait_all_tasks_blocked()

    def dropping(self) -> Callable[[Event], Sequence[Event]]:
        """Lose the next event, and nobody is told."""
        left = [None]

        def fate(event: Event) -> Sequence[Event]:
            if left:
                left.clear()
                return ()
            return (event,)

        return fate

    async def end_well(self) -> None:
        """Everything works again, and after one more publication the reader is where all are."""
        for channel in CHANNELS:
            self.broker.before[channel].open()
        self.broker.fate = lambda event: (event,)
        self.broker.sink.release()
        await wait_all_tasks_blocked()
        await self.publish(2)
        await self.take(100_000)
        assert self.given == self.published
        seen = self.feed.statistics()
        assert (seen.waiting, seen.waiting_bytes) == (0, 0)


def run(broker: TestBroker, history: int, actions: Sequence[str]) -> int:
    """Have a world go through these; returns how often the reader was told of a loss."""

    async def main() -> int:
        options = NodeOptions(channel=ChannelOptions(history_size=history))
        async with open_test_node(options, broker=broker) as node:
            await wait_all_tasks_blocked()
            world = World(node, broker)
            for action in actions:
                await world.act(action)
            await world.end_well()
            del world.feed
            await wait_all_tasks_blocked()
            assert not node.hub.channels
            return world.errors

    return trio.run(main)


worlds = given(actions=st.lists(st.sampled_from(ACTIONS), max_size=40))


@settings(max_examples=200)
@worlds
def test_with_a_long_history(actions: list[str]) -> None:
    """Each publication is given once and in order, and nobody is told of a loss."""
    assert run(TestBroker(), 10_000, [one for one in actions if one != "clear"]) == 0


@settings(max_examples=200)
@worlds
def test_with_a_short_history(actions: list[str]) -> None:
    """Each publication is given once and in order, or the reader is told where one is missing."""
    run(TestBroker(), 10, actions)


@settings(max_examples=50)
@worlds
def test_with_an_engine_that_answers_late(actions: list[str]) -> None:
    """The same with receipts; what a new feed gives begins when its channels are held."""
    run(LateTestBroker(), 10, [one for one in actions if one not in ("break", "shut")])
