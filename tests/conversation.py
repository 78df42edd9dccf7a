"""What the tests of the Centrifugo protocol share: a client's talk, and brokers that misbehave."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant, SubscriptionClaims
from repeater.brokers.contract import BrokerStatistics, EventSink, Outcome, Page
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.memory_presence import MemoryPresence
from repeater.brokers.receipts import Answer, Receipt, settled
from repeater.clients.client import Client
from repeater.clients.session import Session
from repeater.errors import CONNECTION_CLOSED, BrokerError, ReplyError
from repeater.node import Node
from repeater.options import ChannelOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, Codec
from repeater.publication import (
    Announcement,
    ClientInfo,
    Event,
    Publication,
    Rupture,
    StreamPosition,
)
from repeater.testing import MemoryTransport, connect

Message = Mapping[str, Any]
T = TypeVar("T")


class Talk:
    """One client's session and what it was sent."""

    def __init__(self, node: Node, client: Client, transport: MemoryTransport) -> None:
        self.client = client
        self.transport = transport
        self.session = Session(node, client)
        self.ids = 0
        self.read = 0

    def command(self, **method: Any) -> str:
        """One command with the next id."""
        self.ids += 1
        return json.dumps({"id": self.ids, **method})

    async def ask(self, **method: Any) -> Any:
        """Send one command and return its reply alone; what else comes stays in `news`."""
        before = len(self.transport.sent)
        await self.session.receive(self.command(**method))
        for chunk in self.transport.sent[before:]:
            message = json.loads(chunk)
            if message.get("id") == self.ids:
                return message
        return None

    async def say(self, *commands: dict[str, Any]) -> list[Any]:
        """Send these in one message; what has come since, once the node has no more to do."""
        before = len(self.transport.sent)
        await self.session.receive("\n".join(json.dumps(one) for one in commands))
        await wait_all_tasks_blocked()
        return [json.loads(chunk) for chunk in self.transport.sent[before:]]

    async def call(self, command: str, /, **fields: Any) -> Any:
        """Send one command, whose reply is all that comes; without its id."""
        self.ids += 1
        (reply,) = await self.say({"id": self.ids, command: fields})
        assert reply.pop("id") == self.ids
        return reply

    async def connect(self, token: str = "", **more: Any) -> Any:
        """Send `connect`; returns the result, or the error."""
        if token:
            more["token"] = token
        return outcome(await self.ask(connect=more), "connect")

    async def subscribe(self, channel: str = "c", **more: Any) -> Any:
        """Send `subscribe`; returns the result, or the error."""
        return outcome(await self.ask(subscribe={"channel": channel, **more}), "subscribe")

    async def news(self) -> list[Any]:
        """Every message since the last call, once the node has nothing more to do."""
        await wait_all_tasks_blocked()
        read, self.read = self.read, len(self.transport.sent)
        return [json.loads(chunk) for chunk in self.transport.sent[read:]]

    async def pushes(self, kind: str | None = None) -> list[Any]:
        """The pushes among the news, or the bodies of those of one kind."""
        pushes = [message["push"] for message in await self.news() if "push" in message]
        return pushes if kind is None else [push[kind] for push in pushes if kind in push]

    async def data(self) -> list[Any]:
        """The data of the publications among the news."""
        return [pub["data"] for pub in await self.pushes("pub")]


def outcome(reply: Any, method: str) -> Any:
    """What a reply carries: its result or its error."""
    return None if reply is None else reply.get(method, reply.get("error"))


async def members(node: Node, channel: str = "c") -> Mapping[str, ClientInfo]:
    """Who is in a channel, whatever its options say of presence."""
    return await settled(node.presence_store.members(channel))


@asynccontextmanager
async def talking(
    node: Node,
    *,
    connected: bool = True,
    ends: bool | None = None,
    codec: Codec = CENTRIFUGE_JSON_ASGI,
) -> AsyncIterator[Talk]:
    """A client in conversation, for as long as the block lasts or until it is ended.

    With `ends` the server must have ended it, or not, when the block is left.
    """
    transport = MemoryTransport(codec)
    async with connect(node, transport, ready=False) as client:
        talk = Talk(node, client, transport)
        if connected:
            await talk.connect()
            await talk.news()
        yield talk
    if ends is not None:
        assert (client.end is not CONNECTION_CLOSED) is ends


class Gate:
    """Something that may be shut for a while. Callbacks wait for it in their order."""

    def __init__(self) -> None:
        self._is_open = True
        self._waiting: deque[Callable[[], None]] = deque()

    def shut(self) -> None:
        self._is_open = False

    def open(self) -> None:
        self._is_open = True
        while self._waiting and self._is_open:
            self._waiting.popleft()()

    def when_open(self, callback: Callable[[], None]) -> None:
        """Call it as soon as the gate is open: at once, or in `open`."""
        self._waiting.append(callback)
        if self._is_open:
            self.open()

    def answer(self, call: Callable[[], T]) -> Receipt[T]:
        """Carry a call out as soon as the gate is open, and settle its receipt."""
        receipt: Receipt[T] = Receipt()
        self.when_open(lambda: settle(receipt, call))
        return receipt


def settle(receipt: Receipt[T], call: Callable[[], T]) -> None:
    """Give a receipt what a call returns, or its error."""
    try:
        receipt.settle(call())
    except (ReplyError, BrokerError) as error:
        receipt.settle(error)


class LateCalls:
    """Carries calls out one after the other, each later than it was asked for."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Receipt[Any], Callable[[], Awaitable[Any]]]] = deque()
        self._asked = trio.lowlevel.ParkingLot()

    def later(self, call: Callable[[], Awaitable[T]]) -> Receipt[T]:
        """Ask for a call; its receipt."""
        receipt: Receipt[T] = Receipt()
        self._waiting.append((receipt, call))
        self._asked.unpark_all()
        return receipt

    async def run(self) -> None:
        """Carry calls out until cancelled. What is left over then fails."""
        try:
            while True:
                while not self._waiting:
                    await self._asked.park()
                await trio.lowlevel.checkpoint()
                receipt, call = self._waiting[0]
                try:
                    answer = await call()
                except trio.ClosedResourceError:
                    answer = BrokerError("the node has ended")
                except (ReplyError, BrokerError) as error:
                    answer = error
                self._waiting.popleft()
                receipt.settle(answer)
        finally:
            for receipt, _ in self._waiting:
                receipt.settle(BrokerError("the engine has ended"))


class Sink:
    """Between broker and intake: hands on, or holds, what `fate` makes of each event."""

    def __init__(self, intake: EventSink, fate: Callable[[Event], Sequence[Event]]) -> None:
        self._intake = intake
        self._fate = fate
        self._held: list[Event] | None = None

    async def wait_room(self) -> None:
        await self._intake.wait_room()

    def check_room(self) -> None:
        self._intake.check_room()

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        for one in self._fate(event):
            if self._held is not None:
                self._held.append(one)
            else:
                self._intake.put_nowait(one)

    def hold(self) -> None:
        """Fan-out falls behind: nothing is handed on until `release`."""
        if self._held is None:
            self._held = []

    def lose(self, channel: str) -> list[Event]:
        """What is held of a channel, or of all, is lost, and the node is told; returns it."""
        lost = [one for one in self._held or () if channel in ("", one.channel)]
        if self._held is not None:
            self._held = [one for one in self._held if one not in lost]
        self._intake.put_nowait(Rupture(channel))
        return lost

    def release(self) -> None:
        held, self._held = self._held, None
        for event in held or ():
            self._intake.put_nowait(event)


class ForwardingBroker:
    """A broker that has a memory broker do everything; for brokers that differ in a few calls."""

    def __init__(self, memory: MemoryBroker | None = None) -> None:
        self.memory = memory or MemoryBroker()

    async def run(self, intake: EventSink) -> None:
        await self.memory.run(intake)

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> Answer[Outcome]:
        return self.memory.submit(
            publication, options, idempotency_key=idempotency_key, skip_history=skip_history
        )

    async def wait_room(self) -> None:
        await self.memory.wait_room()

    def announce(self, announcement: Announcement) -> None:
        self.memory.announce(announcement)

    def hold(self, channel: str) -> Answer[None]:
        self.memory.hold(channel)
        return None

    def release(self, channel: str) -> None:
        self.memory.release(channel)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        return self.memory.history(channel, options, since=since, limit=limit, reverse=reverse)

    def remove_history(self, channel: str) -> Answer[None]:
        self.memory.remove_history(channel)
        return None

    def outage(self) -> str:
        return self.memory.outage()

    def statistics(self) -> BrokerStatistics:
        return self.memory.statistics()


class HeldHistory(ForwardingBroker):
    """A broker whose history is read, or answered, late, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = False
        # By channel: before its history is read, and between that and the answer.
        self.before: defaultdict[str, Gate] = defaultdict(Gate)
        self.after: defaultdict[str, Gate] = defaultdict(Gate)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        receipt: Receipt[Page] = Receipt()

        def read() -> None:
            if self.failing:
                receipt.settle(BrokerError("history is down"))
                return
            page = self.memory.history(channel, options, since=since, limit=limit, reverse=reverse)
            self.after[channel].when_open(lambda: settle(receipt, lambda: page))

        self.before[channel].when_open(read)
        return receipt


class TestBroker(HeldHistory):
    """A memory broker whose history and hand-over can be held, spoilt or made to fail."""

    __test__ = False  # no class of tests

    def __init__(self, fate: Callable[[Event], Sequence[Event]] = lambda event: (event,)) -> None:
        super().__init__()
        self.fate = fate
        self.sink: Sink

    async def run(self, intake: EventSink) -> None:
        self.sink = Sink(intake, lambda event: self.fate(event))
        await super().run(self.sink)


class LateTestBroker(TestBroker):
    """A `TestBroker` that publishes and holds channels later: its answers are all receipts."""

    __test__ = False

    def __init__(self, fate: Callable[[Event], Sequence[Event]] = lambda event: (event,)) -> None:
        super().__init__(fate)
        self._calls = LateCalls()

    async def run(self, intake: EventSink) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._calls.run)
            await super().run(intake)

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> Answer[Outcome]:
        async def call() -> Outcome:
            await self.memory.wait_room()
            return self.memory.submit(
                publication, options, idempotency_key=idempotency_key, skip_history=skip_history
            )

        return self._calls.later(call)

    def hold(self, channel: str) -> Answer[None]:
        async def call() -> None:
            self.memory.hold(channel)

        return self._calls.later(call)


class HeldChannels(ForwardingBroker):
    """A broker that answers late that it holds a channel. It notes the calls of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = Gate()
        self.calls: list[tuple[str, str]] = []

    def hold(self, channel: str) -> Answer[None]:
        self.calls.append(("hold", channel))
        return self.holding.answer(lambda: None)

    def release(self, channel: str) -> None:
        self.calls.append(("release", channel))

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        self.calls.append(("history", channel))
        return super().history(channel, options, since=since, limit=limit, reverse=reverse)


class LateAnswers(ForwardingBroker):
    """A broker that takes publications at once, and answers them when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        """The data of each publication, and the names of the other calls, in their order."""
        self.open: deque[tuple[Receipt[Outcome], Outcome]] = deque()

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> Answer[Outcome]:
        outcome = self.memory.submit(
            publication, options, idempotency_key=idempotency_key, skip_history=skip_history
        )
        self.asked.append(bytes(publication.data).decode())
        receipt: Receipt[Outcome] = Receipt()
        self.open.append((receipt, outcome))
        return receipt

    def answer(self, count: int = 0, error: ReplyError | BrokerError | None = None) -> None:
        """Settle the oldest receipts, or all: with their positions, or with an error."""
        for _ in range(count or len(self.open)):
            receipt, outcome = self.open.popleft()
            receipt.settle(outcome if error is None else error)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        self.asked.append("history")
        return super().history(channel, options, since=since, limit=limit, reverse=reverse)


class LateBroker(ForwardingBroker):
    """A broker that carries out every call later, in order: its answers are all receipts.

    Its calls wait in a list without a bound, so it always has room.
    """

    def __init__(self, memory: MemoryBroker | None = None) -> None:
        super().__init__(memory)
        self._calls = LateCalls()
        self._intake: EventSink | None = None

    async def run(self, intake: EventSink) -> None:
        self._intake = intake
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.memory.run, intake)
            nursery.start_soon(self._calls.run)

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> Answer[Outcome]:
        self._check_open()

        async def call() -> Outcome:
            await self.memory.wait_room()
            return self.memory.submit(
                publication, options, idempotency_key=idempotency_key, skip_history=skip_history
            )

        return self._calls.later(call)

    async def wait_room(self) -> None:
        self._check_open()

    def _check_open(self) -> None:
        if self._intake is not None:
            with suppress(trio.WouldBlock):
                self._intake.check_room()

    def announce(self, announcement: Announcement) -> None:
        self._check_open()

        async def call() -> None:
            await self.memory.wait_room()
            self.memory.announce(announcement)

        self._calls.later(call)

    def hold(self, channel: str) -> Answer[None]:
        async def call() -> None:
            self.memory.hold(channel)

        return self._calls.later(call)

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        async def call() -> Page:
            return self.memory.history(channel, options, since=since, limit=limit, reverse=reverse)

        return self._calls.later(call)

    def remove_history(self, channel: str) -> Answer[None]:
        async def call() -> None:
            self.memory.remove_history(channel)

        return self._calls.later(call)


class FakeVerifier:
    """Knows a few tokens by heart; what it knows of one may also be an exception."""

    def __init__(
        self,
        connections: Mapping[str, ConnectionGrant | Exception] | None = None,
        subscriptions: Mapping[str, SubscriptionClaims | Exception] | None = None,
    ) -> None:
        self.connections = dict(connections or {})
        self.subscriptions = dict(subscriptions or {})

    async def verify_connection(self, token: str) -> ConnectionGrant:
        await trio.lowlevel.checkpoint()
        found = self.connections[token]
        if isinstance(found, Exception):
            raise found
        return found

    async def verify_subscription(self, token: str) -> SubscriptionClaims:
        await trio.lowlevel.checkpoint()
        found = self.subscriptions[token]
        if isinstance(found, Exception):
            raise found
        return found


class ForwardingPresence:
    """A presence store that has one in memory do everything, as `ForwardingBroker`."""

    def __init__(self) -> None:
        self.memory = MemoryPresence()

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        self.memory.add(channel, info)
        return None

    def remove(self, channel: str, client: str) -> Answer[None]:
        self.memory.remove(channel, client)
        return None

    def members(self, channel: str) -> Answer[Mapping[str, ClientInfo]]:
        return self.memory.members(channel)

    def count(self, channel: str) -> Answer[tuple[int, int]]:
        return self.memory.count(channel)


class LatePresence:
    """A presence store that carries out every call later, in order. Whoever opens it runs it."""

    def __init__(self) -> None:
        self.memory = MemoryPresence()
        self._calls = LateCalls()

    async def run(self) -> None:
        await self._calls.run()

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        async def call() -> None:
            self.memory.add(channel, info)

        return self._calls.later(call)

    def remove(self, channel: str, client: str) -> Answer[None]:
        async def call() -> None:
            self.memory.remove(channel, client)

        return self._calls.later(call)

    def members(self, channel: str) -> Answer[Mapping[str, ClientInfo]]:
        async def call() -> Mapping[str, ClientInfo]:
            return self.memory.members(channel)

        return self._calls.later(call)

    def count(self, channel: str) -> Answer[tuple[int, int]]:
        async def call() -> tuple[int, int]:
            return self.memory.count(channel)

        return self._calls.later(call)


class FailingPresence:
    """A presence store that is down."""

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        raise BrokerError("presence is down")

    def remove(self, channel: str, client: str) -> Answer[None]:
        raise BrokerError("presence is down")

    def members(self, channel: str) -> Answer[Mapping[str, ClientInfo]]:
        raise BrokerError("presence is down")

    def count(self, channel: str) -> Answer[tuple[int, int]]:
        raise BrokerError("presence is down")
