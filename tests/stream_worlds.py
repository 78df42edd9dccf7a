"""Servers and small SDKs whose every step is checked against a plain model, for tests at random.

Each subscriber keeps its position, comes back when it is told to, and checks every message as it
arrives. What it must find: every offset once and in order, or the honest word that it was not
recovered.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

import msgspec
import trio
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.receipts import settled
from repeater.clients.session import Session
from repeater.errors import CONNECTION_CLOSED, INSUFFICIENT_STATE
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import Event, Publication
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import TestBroker
from tests.worker_links import supervising

CHANNELS = ("c", "d")
HISTORY = 6  # publications; fewer than a run may publish, so that some is lost for good
EXPIRY, FORGETTING = 4.0, 9.0  # seconds
CHANNEL = ChannelOptions(history_size=HISTORY, history_ttl=EXPIRY, history_meta_ttl=FORGETTING)
# Nobody answers pings here, and a gate may stay shut for long.
NEVER = 1e6
OPTIONS = NodeOptions(
    channel=CHANNEL,
    fanout_budget=0,
    ping_interval=NEVER,
    pong_timeout=1,
    stale_timeout=NEVER,
    publish_timeout=NEVER,
)
# Half of this outbox has room for three publications.
CRAMPED = msgspec.structs.replace(OPTIONS, outbox_limit=1_200)


class Stream(msgspec.Struct):
    """What a subscriber knows of one channel."""

    offset: int = 0
    epoch: str = ""
    subscribed: bool = False
    asked: bool = False
    """A subscribe command is under way."""
    known: bool = False
    """It has been told a position once, and comes back with it."""
    ends: int = 0
    """How often it ended."""
    heard: list[int] = msgspec.field(default_factory=list)
    """The live publications whose place no offset tells."""

    def end(self) -> None:
        self.ends += self.subscribed
        self.subscribed = self.asked = False


class Subscriber:
    """A client that behaves like an SDK, and complains where an SDK would go wrong."""

    server_side: ClassVar[bool] = False
    positioned: ClassVar[bool] = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.streams = {name: Stream() for name in CHANNELS}
        self.wanted: set[str] = set()
        self.online = False
        self.transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
        self._ids = 0
        self._asked: dict[int, str] = {}
        self._left: dict[int, str] = {}
        self._read = 0
        self._commands: trio.MemorySendChannel[str] | None = None
        self._hang_up: Callable[[], None] = lambda: None

    def go_online(self) -> None:
        """Connect, and subscribe to all that is wanted."""
        if self.online:
            return
        self.online = True
        self.transport, self._read = MemoryTransport(CENTRIFUGE_JSON_ASGI), 0
        self._left.clear()
        self._commands, commands = trio.open_memory_channel[str](1_000)
        self.world.nursery.start_soon(self._live, commands)
        self._say(connect={"subs": self._positions()} if self.server_side else {})
        if not self.server_side:
            for channel in sorted(self.wanted):
                self.subscribe(channel)

    async def _live(self, commands: trio.MemoryReceiveChannel[str]) -> None:
        node = self.world.next_node()
        async with connect(node, self.transport, ready=False) as client:
            self._hang_up = lambda: client.disconnect(CONNECTION_CLOSED)
            session = Session(node, client)
            async for command in commands:
                await session.receive(command)
        self._offline()
        if self.transport.closed_with is not None:
            assert self.transport.closed_with == INSUFFICIENT_STATE
            assert self.server_side
            self.world.lost()
            if not self.world.stopping:
                self.go_online()

    def _offline(self) -> None:
        self.read()
        self.online = False
        for stream in self.streams.values():
            stream.end()

    def go_offline(self) -> None:
        """Hang up; positions are kept."""
        if self.online:
            self._hang_up()

    def _positions(self) -> dict[str, Any]:
        positions: dict[str, Any] = {}
        for name, stream in self.streams.items():
            stream.asked = True
            at = {"recover": True, "offset": stream.offset, "epoch": stream.epoch}
            positions[name] = at if stream.known else {}
        return positions

    def subscribe(self, channel: str) -> None:
        """Subscribe, from the last position if there is one."""
        self.wanted.add(channel)
        stream = self.streams[channel]
        if not self.online or self.server_side or stream.subscribed or stream.asked:
            return
        request: dict[str, Any] = {"channel": channel}
        if self.positioned:
            request |= {"positioned": True, "recoverable": True}
            if stream.known:
                request |= {"recover": True, "offset": stream.offset, "epoch": stream.epoch}
        stream.asked = True
        self._asked[self._say(subscribe=request)] = channel

    def unsubscribe(self, channel: str) -> None:
        """Unsubscribe. The position is forgotten, as an SDK does."""
        self.read()
        self.wanted.discard(channel)
        stream = self.streams[channel]
        if self.online and stream.subscribed and not self.server_side:
            stream.end()
            self.streams[channel] = Stream()
            self._left[self._say(unsubscribe={"channel": channel})] = channel

    def _say(self, **method: Any) -> int:
        self._ids += 1
        assert self._commands is not None
        self._commands.send_nowait(json.dumps({"id": self._ids, **method}))
        return self._ids

    def read(self) -> None:
        """Take in everything that has arrived."""
        while self._read < len(self.transport.sent):
            message = json.loads(self.transport.sent[self._read])
            self._read += 1
            assert "error" not in message
            if "push" in message:
                self._pushed(message["push"])
            elif "connect" in message:
                for name, result in message["connect"].get("subs", {}).items():
                    self._subscribed(name, result)
            elif "unsubscribe" in message:
                del self._left[message["id"]]
            elif "subscribe" in message:
                self._subscribed(self._asked.pop(message["id"]), message["subscribe"])

    def _subscribed(self, channel: str, result: dict[str, Any]) -> None:
        stream = self.streams[channel]
        assert stream.asked
        assert not stream.subscribed
        stream.subscribed, stream.asked = True, False
        if not self.positioned:
            assert "offset" not in result
            return
        publications = result.get("publications", [])
        assert result["positioned"]
        assert result["recoverable"]
        assert result.get("was_recovering", False) is stream.known
        if result.get("recovered"):
            assert stream.known
            assert (result.get("offset", 0), result["epoch"]) == (stream.offset, stream.epoch)
        else:
            assert not publications
            # The server-side subscriptions share one room: here that of the other channel's.
            if stream.known and not (self.server_side and self.world.options is not OPTIONS):
                self.world.not_recovered(stream, result)
            stream.offset, stream.epoch = result.get("offset", 0), result["epoch"]
        stream.known = True
        for publication in publications:
            assert publication["offset"]
            self._published(channel, publication)

    def _pushed(self, push: dict[str, Any]) -> None:
        channel = push["channel"]
        stream = self.streams[channel]
        if channel in self._left.values():
            return  # It was on its way when this client unsubscribed.
        if "unsubscribe" in push:
            assert push["unsubscribe"]["code"] == 2500
            assert stream.subscribed, "the end of what never began"
            assert self.positioned
            assert not self.server_side
            stream.end()
            self.world.lost()
            self.subscribe(channel)
        else:
            assert stream.subscribed, "a publication before the reply, or after the end"
            self._published(channel, push["pub"])

    def _published(self, channel: str, publication: dict[str, Any]) -> None:
        stream, offset = self.streams[channel], publication.get("offset", 0)
        if not offset or (not self.positioned and self.world.fate is in_order):
            assert publication["data"] > max(stream.heard, default=0), "twice, or out of order"
            stream.heard.append(publication["data"])
        if not offset:
            return
        if self.positioned:
            assert offset == stream.offset + 1, "a hole, or twice"
            assert self.world.truth[channel, stream.epoch, offset] == publication["data"]
            assert publication.get("epoch", stream.epoch) == stream.epoch
        stream.offset = offset


class PlainSubscriber(Subscriber):
    """Asks for no position: nothing is ever told to be missing, and nothing disturbs it."""

    positioned = False


class ServerSideSubscriber(Subscriber):
    """Hears both channels by its connect alone."""

    server_side = True


class World:
    """One node after another, and what was published on them."""

    def __init__(
        self,
        nursery: trio.Nursery,
        fate: Callable[[Event], Sequence[Event]],
        options: NodeOptions,
        make_broker: type[TestBroker],
    ) -> None:
        self.nursery = nursery
        self.make_broker = make_broker
        self.options = options
        self.stopping = False
        self.ruptured = False
        self.waited = 0.0
        """How much time has passed; history may have expired."""
        self.fate = fate
        self.truth: dict[tuple[str, str, int], int] = {}
        self.published = 0
        self.unnumbered = 0
        self.expected: list[tuple[Stream, int, int]] = []
        self.subscribers = [
            Subscriber(self),
            Subscriber(self),
            PlainSubscriber(self),
            ServerSideSubscriber(self),
        ]
        self.nodes: list[Node] = []
        self.broker: TestBroker
        self._ending = trio.Event()

    async def start(self) -> None:
        """A new process: a new broker, so new epochs."""
        self.broker = self.make_broker(self.fate)
        self._ending = trio.Event()
        self.nodes = await self.nursery.start(self._run_nodes)
        await wait_all_tasks_blocked()

    async def _run_nodes(self, task_status: trio.TaskStatus[list[Node]]) -> None:
        async with self.open_nodes() as nodes:
            task_status.started(nodes)
            await self._ending.wait()

    @asynccontextmanager
    async def open_nodes(self) -> AsyncIterator[list[Node]]:
        """What the process consists of: here one node."""
        async with open_test_node(self.options, broker=self.broker) as node:
            yield [node]

    def next_node(self) -> Node:
        """Where somebody connects or publishes: each node in its turn."""
        self.nodes.append(self.nodes.pop(0))
        return self.nodes[0]

    async def stop(self) -> None:
        """The process ends, and with it all connections."""
        self.stopping = True
        self.open_gates()
        await self.settle()
        for subscriber in self.subscribers:
            subscriber.go_offline()
        await self.settle()
        self.stopping = False
        self._ending.set()
        await wait_all_tasks_blocked()

    def open_gates(self) -> None:
        """Nothing is held any longer."""
        for gate in (*self.broker.before.values(), *self.broker.after.values()):
            gate.open()
        self.broker.sink.release()

    async def settle(self) -> None:
        """Let everything happen that can, then let every client read."""
        await wait_all_tasks_blocked()
        for subscriber in self.subscribers:
            subscriber.read()

    async def publish(self, channel: str, skip_history: bool) -> None:
        """One publication; who surely has to hear it though no position tells is noted."""
        self.published += 1
        there = [one for one in self.subscribers if one.streams[channel].subscribed]
        ends = [one.streams[channel].ends for one in there]
        position = await self.next_node().publish(
            Publication(channel, b"%d" % self.published), skip_history=skip_history
        )
        self.unnumbered += position is None
        if position is not None:
            self.truth[channel, position.epoch, position.offset] = self.published
        for subscriber, ended in zip(there, ends, strict=True):
            by_offset = position is not None and subscriber.positioned
            told = position is None or self.fate is in_order
            if told and not by_offset:
                self.expected.append((subscriber.streams[channel], ended, self.published))

    def break_off(self, channel: str) -> None:
        """The broker loses what it has not handed on; who has no position never hears of that."""
        self.ruptured = True
        lost = {bytes(one.data) for one in self.broker.sink.lose(channel)}
        self.expected = [one for one in self.expected if b"%d" % one[2] not in lost]

    def lost(self) -> None:
        """With hand-over in order there is a gap only where the numbering began again."""
        assert self.waited >= FORGETTING or self.fate is not in_order or self.ruptured

    def not_recovered(self, stream: Stream, result: dict[str, Any]) -> None:
        """Not for nothing: the numbering began again, or history is too short or expired.

        After a rupture what gathered for an answer is not trusted: it may not be recovered, too.
        """
        if self.ruptured:
            return
        if result["epoch"] == stream.epoch and self.waited < EXPIRY and self.fate is in_order:
            most = HISTORY if self.options is OPTIONS else 1
            if self.options is not OPTIONS and self.unnumbered:
                return  # They gather beside the numbered ones, and take the same room.
            assert result.get("offset", 0) - stream.offset > most, "it was all there"

    async def finish(self) -> None:
        """Everybody comes back, one more publication each: all positions are the top then."""
        self.open_gates()
        await self.settle()
        for subscriber in self.subscribers:
            subscriber.go_online()
            for channel in CHANNELS:
                subscriber.subscribe(channel)
        await self.settle()
        for channel in CHANNELS:
            # Hand-over is in order again: what was lost before shows by the next publication.
            self.broker.fate = lambda event: (event,)
            await self.publish(channel, skip_history=False)
        for _ in range(4):
            await self.settle()
        for stream, ends, number in self.expected:
            assert number in stream.heard or stream.ends > ends, "never heard"
        for channel in CHANNELS:
            _, top = await settled(self.broker.history(channel, CHANNEL, limit=0))
            for subscriber in self.subscribers:
                stream = subscriber.streams[channel]
                assert stream.subscribed
                assert stream.offset == top.offset, type(subscriber)
                assert not subscriber.positioned or stream.epoch == top.epoch


class WorkersWorld(World):
    """A supervisor and two workers, each with a node."""

    @asynccontextmanager
    async def open_nodes(self) -> AsyncIterator[list[Node]]:
        async with AsyncExitStack() as stack:
            supervisor = await stack.enter_async_context(supervising(self.broker))
            nodes = []
            for _ in range(2):
                link = await stack.enter_async_context(supervisor.worker())
                node = open_test_node(
                    self.options, broker=link.broker, presence=link.presence, control=link.control
                )
                nodes.append(await stack.enter_async_context(node))
            yield nodes


def step(name: str, *parts: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *parts)


_WHO = st.integers(0, 3)
_CHANNEL = st.sampled_from(CHANNELS)
_EVENTS = st.one_of(
    step("publish", _CHANNEL, st.just(False)),
    step("publish", _CHANNEL, st.booleans()),
    step("settle"),
)
_COMINGS = st.one_of(
    step("subscribe", _WHO, _CHANNEL),
    step("unsubscribe", _WHO, _CHANNEL),
    step("offline", _WHO),
    step("return", _WHO),
    step("return", st.just(3)),
)
_GATES = st.one_of(
    step("hold history", _CHANNEL),
    step("hold read history", _CHANNEL),
    step("let history", _CHANNEL),
    step("hold hand-over"),
    step("let hand-over"),
)
RUPTURES = step("rupture", st.sampled_from([*CHANNELS, ""]))
_UPHEAVALS = st.one_of(
    step("burst", _CHANNEL, st.integers(2, HISTORY + 2)),
    step("wait", st.sampled_from([1.0, EXPIRY, FORGETTING])),
    step("restart"),
)
# One of a sampled kind, so that upheavals are rare and there is something to disturb.
STEPS = st.sampled_from([_EVENTS] * 8 + [_COMINGS] * 5 + [_GATES] * 4 + [_UPHEAVALS]).flatmap(
    lambda kind: kind
)


async def act(world: World, name: str, *parts: Any) -> None:
    """Carry out one generated step."""
    match name, parts:
        case "publish", (channel, skip_history):
            await world.publish(channel, skip_history)
        case "burst", (channel, count):
            for _ in range(count):
                await world.publish(channel, skip_history=False)
        case "subscribe", (who, channel):
            world.subscribers[who].subscribe(channel)
        case "unsubscribe", (who, channel):
            world.subscribers[who].unsubscribe(channel)
        case "return", (who,):
            world.subscribers[who].go_offline()
            await world.settle()
            world.subscribers[who].go_online()
            await world.settle()
        case "offline", (who,):
            world.subscribers[who].go_offline()
        case "settle", ():
            await world.settle()
        case "rupture", (channel,):
            world.break_off(channel)
        case "hold history", (channel,):
            world.broker.before[channel].shut()
        case "hold read history", (channel,):
            world.broker.after[channel].shut()
        case "let history", (channel,):
            world.broker.before[channel].open()
            world.broker.after[channel].open()
        case "hold hand-over", ():
            world.broker.sink.hold()
        case "let hand-over", ():
            world.broker.sink.release()
        case "wait", (seconds,):
            await world.settle()
            world.waited += seconds
            await trio.sleep(seconds)
        case "restart", ():
            await world.stop()
            await world.start()


async def run(
    steps: Sequence[tuple[Any, ...]],
    fate: Callable[[Event], Sequence[Event]],
    options: NodeOptions = OPTIONS,
    make_broker: type[TestBroker] = TestBroker,
    make_world: type[World] = World,
) -> World:
    """One world, from its first node to the end of its last."""
    async with trio.open_nursery() as nursery:
        world = make_world(nursery, fate, options, make_broker)
        await world.start()
        for subscriber in world.subscribers:
            subscriber.go_online()
        await world.settle()
        for one in steps:
            await act(world, *one)
            await trio.lowlevel.checkpoint()
        await world.finish()
        await world.stop()
    return world


def in_order(event: Event) -> Sequence[Event]:
    return (event,)
