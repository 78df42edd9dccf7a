"""The conformance suites: every implementation keeps its contract, and a broken one is named."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from repeater.brokers.contract import Broker, EventSink, Outcome, Page
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.memory_presence import MemoryPresence
from repeater.brokers.receipts import Answer
from repeater.brokers.source_rows import SourceRow
from repeater.errors import SHUTDOWN, Disconnect
from repeater.fanout.transport import Chunk, Transport
from repeater.options import ChannelOptions
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_JSON,
    CENTRIFUGE_JSON_ASGI,
    CENTRIFUGE_STREAM,
    PLAIN,
    PLAIN_ASGI,
    Codec,
)
from repeater.protocol.centrifugo.replies import Push
from repeater.protocol.sse.event_stream import EVENT_STREAM
from repeater.publication import Announcement, ClientInfo, Publication, StreamPosition
from repeater.testing import (
    MemoryTransport,
    StallingTransport,
    check_broker,
    check_presence_store,
    check_transport,
    connect,
    open_test_node,
)
from repeater.transports.asgi_stream import ASGIStreamTransport
from repeater.transports.asgi_websocket import ASGIWebSocketTransport
from repeater.transports.http_stream import HTTPStreamTransport
from repeater.transports.websocket import UnidirectionalTransport, WebSocketTransport
from tests.brokers import ForwardingBroker, LateAnswers, LateBroker
from tests.deadlines import PROCESS_STARTS
from tests.engines import LatePresence

Opened = tuple[Transport, Any]
Open = Callable[[], AbstractAsyncContextManager[Opened]]


class MemoryPeer:
    """The far end of a fake transport: what it has kept, in chunks."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._taken = 0

    async def receive_some(self) -> bytes:
        while len(self._transport.sent) == self._taken:
            if isinstance(self._transport, StallingTransport):
                self._transport.allow(100_000)
            await trio.sleep(0.001)
        self._taken += 1
        return self._transport.sent[self._taken - 1]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def fake(make: Callable[[], MemoryTransport]) -> Open:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Opened]:
        transport = make()
        yield transport, MemoryPeer(transport)

    return opened


def stalling() -> StallingTransport:
    transport = StallingTransport()
    transport.allow(100_000)
    return transport


def native(make: Callable[[socket.socket], Transport]) -> Open:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Opened]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as peer:
                yield make(ours), peer

    return opened


class ASGIPeer:
    """What an ASGI server was given to send."""

    def __init__(self, receive: trio.MemoryReceiveChannel[bytes]) -> None:
        self._receive = receive

    async def receive_some(self) -> bytes:
        return await self._receive.receive()

    async def aclose(self) -> None:
        await self._receive.aclose()


def asgi(make: Callable[[Callable[[Any], Any]], Transport]) -> Open:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Opened]:
        sending, receiving = trio.open_memory_channel[bytes](1_000)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await sending.send(message["body"])
            elif message["type"] == "websocket.send":
                await sending.send(message["text"].encode())

        yield make(send), ASGIPeer(receiving)

    return opened


TRANSPORTS = {
    "memory": fake(MemoryTransport),
    "stalling": fake(stalling),
    "websocket": native(lambda sock: WebSocketTransport(sock, PLAIN)),
    "uni_websocket": native(lambda sock: UnidirectionalTransport(sock, CENTRIFUGE_JSON)),
    "http_stream": native(lambda sock: HTTPStreamTransport(sock, EVENT_STREAM)),
    "asgi_websocket": asgi(lambda send: ASGIWebSocketTransport(send, PLAIN_ASGI, "websocket")),
    "asgi_stream": asgi(lambda send: ASGIStreamTransport(send, CENTRIFUGE_STREAM, "http_stream")),
}


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_a_transport_keeps_its_contract(kind: str) -> None:
    """Natively, behind ASGI and in memory alike."""
    await check_transport(TRANSPORTS[kind])


@asynccontextmanager
async def open_memory_presence() -> AsyncIterator[MemoryPresence]:
    yield MemoryPresence()


async def test_presence_in_memory_keeps_its_contract() -> None:
    """The default store of a node."""
    await check_presence_store(open_memory_presence)


@asynccontextmanager
async def open_late_presence() -> AsyncIterator[LatePresence]:
    store = LatePresence()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        yield store
        nursery.cancel_scope.cancel()


async def test_presence_that_answers_late_keeps_its_contract() -> None:
    """A store whose answers are all receipts."""
    await check_presence_store(open_late_presence)


@asynccontextmanager
async def open_late_broker() -> AsyncIterator[LateBroker]:
    yield LateBroker(MemoryBroker(idempotency_ttl=30))


async def test_a_broker_that_answers_late_keeps_its_contract(autojump_clock: MockClock) -> None:
    """A broker whose answers are all receipts."""
    await check_broker(open_late_broker, idempotency_ttl=30)


def test_no_test_framework_is_needed() -> None:
    """A suite runs where pytest is not installed."""
    code = """
import sys
sys.modules["pytest"] = None  # as if it were not there
from contextlib import asynccontextmanager
import trio
from repeater.brokers.memory_presence import MemoryPresence
from repeater.testing import check_presence_store

@asynccontextmanager
async def opened():
    yield MemoryPresence()

trio.run(check_presence_store, opened)
print("it holds")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=PROCESS_STARTS,
    )
    assert done.stdout == "it holds\n"


class Unordered(MemoryBroker):
    """History is newest first where it should be oldest first."""

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Page:
        found, top = super().history(channel, options, since=since, limit=limit, reverse=reverse)
        return found[::-1], top


class Forgetful(MemoryBroker):
    """Publishes each time, whatever the key."""

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Outcome:
        return super().submit(publication, options, skip_history=skip_history, row=row)


class Mute(MemoryBroker):
    """Announces nothing."""

    def announce(self, announcement: Announcement) -> None:
        pass


class Crashing(MemoryBroker):
    """Raises what no broker may."""

    def remove_history(self, channel: str) -> None:
        raise ZeroDivisionError


class Backwards(LateAnswers):
    """Answers the newest publication first."""

    async def run(self, intake: EventSink) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().run, intake)
            while True:
                await trio.sleep(0.01)
                while self.open:
                    receipt, outcome = self.open.pop()
                    receipt.settle(outcome)
                    await trio.lowlevel.checkpoint()


class Rounding(ForwardingBroker):
    """Keeps versions as floating point numbers, as some stores do."""

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        rounded = msgspec.structs.replace(publication, version=int(float(publication.version)))
        return super().submit(
            rounded,
            options,
            idempotency_key=idempotency_key,
            skip_history=skip_history,
            row=row,
        )


BROKEN_BROKERS: dict[Callable[[], Broker], str] = {
    Unordered: r"oldest first, at most `limit`.*since None, limit None: expected \[b'1', b'2',",
    Forgetful: "A repeated idempotency key gets the first result.*the second result: expected",
    Backwards: "A receipt of a channel is settled after all the earlier.*are settled: expected",
    Rounding: "A version may be any unsigned.*the offset of version 18446744073709551615",
    Mute: "A join is handed on in its turn.*Nothing came of it within 60 seconds",
}


@pytest.mark.parametrize("broken", BROKEN_BROKERS)
async def test_a_broken_broker_is_named(
    broken: Callable[[], Broker], autojump_clock: MockClock
) -> None:
    """The error says the rule, and what was expected and found."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield broken()

    with pytest.raises(AssertionError, match=BROKEN_BROKERS[broken]):
        await check_broker(opened, idempotency_ttl=300)


async def test_a_crashing_broker_raises_its_own_error(autojump_clock: MockClock) -> None:
    """An error that is not a broken rule comes out unchanged, with a note of the rule."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[MemoryBroker]:
        yield Crashing()

    with pytest.raises(ZeroDivisionError) as caught:
        await check_broker(opened, idempotency_ttl=300)
    assert caught.value.__notes__[-1].startswith("while this rule was checked: Removed")


class Sticky(MemoryPresence):
    """Removes nobody."""

    def remove(self, channel: str, client: str) -> None:
        pass


class Live(MemoryPresence):
    """Answers with what it works on."""

    def members(self, channel: str) -> Mapping[str, ClientInfo]:
        return self._channels.get(channel, {})


@pytest.mark.parametrize(
    ("broken", "text"),
    [(Sticky, "Who was removed is not there"), (Live, "An answer is of one moment")],
)
async def test_a_broken_store_is_named(broken: type[MemoryPresence], text: str) -> None:
    """The error begins with the rule."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[MemoryPresence]:
        yield broken()

    with pytest.raises(AssertionError, match=f"^{text}"):
        await check_presence_store(opened)


class Boastful(MemoryTransport):
    """Says that it took more than there was."""

    def write(self, chunk: Chunk) -> int:
        return super().write(chunk) + 1


class Undead(MemoryTransport):
    """Writes on after its end."""

    def abort(self) -> None:
        pass


class Sleeper(StallingTransport):
    """Its end wakes nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.allow(100_000)

    def abort(self) -> None:
        self.aborted = True


class Lossy(StallingTransport):
    """A cancelled send has sent all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.allow(100_000)

    async def send_some(self, chunk: Chunk) -> int:
        try:
            return await super().send_some(chunk)
        except trio.Cancelled:
            self.sent.append(bytes(chunk))
            raise


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (Boastful, "What `write` and `send_some` say.*it says that it took"),
        (Undead, "After `abort`.*write did not raise"),
        (Sleeper, "`abort` ends a `send_some` that waits.*Nothing came of it"),
        (Lossy, "A `send_some` that is cancelled"),
    ],
)
async def test_a_broken_transport_is_named(
    broken: Callable[[], MemoryTransport], text: str, autojump_clock: MockClock
) -> None:
    """The error says the rule."""
    with pytest.raises(AssertionError, match=f"^{text}"):
        await check_transport(fake(broken))


@pytest.mark.parametrize(
    "codec",
    [
        PLAIN,
        PLAIN_ASGI,
        CENTRIFUGE_JSON,
        CENTRIFUGE_JSON_ASGI,
        CENTRIFUGE_STREAM,
        EVENT_STREAM,
    ],
    ids=repr,
)
def test_messages_are_decoded(codec: Codec) -> None:
    """The fakes give what was said, one value for each message, however it was framed."""
    transport = MemoryTransport(codec)
    if codec.ping is not None:
        transport.write(codec.ping)
    short, long = b'{"n": 1}', msgspec.json.encode("x" * 70_000)
    texts = (short, b'"' + b"y" * 200 + b'"', long)
    chunks = codec.publications([Publication("c", text) for text in texts])
    for chunk in chunks:
        transport.write(chunk)
    messages = [one for one in transport.messages() if one != {}]
    data = [one if not codec.pushes else one["push"]["pub"]["data"] for one in messages]
    assert data == [msgspec.json.decode(text) for text in texts]


def test_what_came_in_part_waits_for_its_rest() -> None:
    """Half a frame is not a message yet."""
    transport = MemoryTransport(CENTRIFUGE_JSON)
    frame = CENTRIFUGE_JSON.push(Push(disconnect=Disconnect(3001, "shutdown")))
    transport.write(frame[:5])
    assert transport.messages() == []
    transport.write(frame[5:])
    assert transport.messages() == [{"push": {"disconnect": {"code": 3001, "reason": "shutdown"}}}]


def test_what_is_no_json_is_text() -> None:
    """A message of another kind is given as it is."""
    transport = MemoryTransport()
    transport.write(b"hello")
    assert transport.messages() == ["hello"]


async def test_parts_of_a_test_node() -> None:
    """A test gives the node its own presence store, back end and events."""

    class Told:
        def __init__(self) -> None:
            self.names: list[str] = []

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: self.names.append(name)

    class Asked:
        kinds = frozenset[str]()
        forward_headers = frozenset[str]()

    presence, events, backend = MemoryPresence(), Told(), Asked()
    async with open_test_node(
        presence=presence,
        events=events,  # type: ignore[arg-type]
        backend=backend,  # type: ignore[arg-type]
    ) as node:
        assert node.presence_store is presence
        assert node.backend is not None
        assert node.backend.kinds is backend.kinds
        transport = MemoryTransport()
        async with connect(node, transport, ["c"]) as client:
            await node.publish(Publication("c", b'{"n":1}'))
            await trio.testing.wait_all_tasks_blocked()
            client.disconnect(SHUTDOWN)
        assert transport.messages() == [{"n": 1}]
    assert {"channel_occupied", "channel_vacated", "shut_down_by"} <= set(events.names)
