"""Events for a back end: which, in which order, and what becomes of them when it is away."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from repeater.access.grants import Caller, ConnectionGrant, SubscriptionGrant
from repeater.access.http_client import make_client
from repeater.backend.delivery import open_events
from repeater.backend.signature import HEADER
from repeater.errors import CONNECTION_CLOSED, SLOW, UNSUBSCRIBED_EXPIRED
from repeater.node import Node, open_node
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.application import pieces
from tests.conversation import FakeVerifier, talking
from tests.event_receivers import SECRET, URL, Receiver, opened, options_with
from tests.knocking import knocking
from tests.serving import running


@asynccontextmanager
async def telling_node(receiver: Receiver, **options: Any) -> AsyncIterator[Node]:
    """A node open to everybody that tells the receiver."""
    async with (
        opened(receiver, **options) as events,
        open_node(NodeOptions(insecure=True), events=events) as node,
    ):
        yield node


async def test_a_connections_life(autojump_clock: MockClock) -> None:
    """Everything that happens to a connection is told in order, with code and reason."""
    receiver = Receiver()
    async with telling_node(receiver) as node, talking(node) as talk:
        await talk.call("subscribe", channel="news")
        await talk.call("subscribe", channel="chat")
        await talk.call("unsubscribe", channel="news")
        talk.client.end_subscription(talk.client.channels["chat"], UNSUBSCRIBED_EXPIRED)
        await talk.call("subscribe", channel="late")
        client = talk.client.id
    assert receiver.told() == [
        "connected", "channel_occupied news", "subscribed news", "channel_occupied chat",
        "subscribed chat", "unsubscribed news", "channel_vacated news", "unsubscribed chat",
        "channel_vacated chat", "channel_occupied late", "subscribed late", "unsubscribed late",
        "disconnected", "channel_vacated late",
    ]  # fmt: skip
    own = [one for one in receiver.events if "client" in one]
    assert [one["seq"] for one in own] == list(range(1, 9))
    assert {one["client"] for one in own} == {client}
    assert own[0]["user"] == ""
    ends = [(one["code"], one["reason"]) for one in own if "code" in one]
    assert ends == [
        (0, "client unsubscribe"), (2_501, "subscription expired"), (1, "disconnect"),
        (3_000, "connection closed"),
    ]  # fmt: skip
    assert len({one["id"] for one in receiver.events}) == len(receiver.events)
    assert len({batch["run"] for batch in receiver.batches}) == 1


async def test_shared_channels() -> None:
    """Occupied is the first listener, vacated the last; plain subscribers count like others."""
    receiver = Receiver()
    only = frozenset({"channel_occupied", "channel_vacated", "disconnected"})
    async with (
        telling_node(receiver, events=only) as node,
        connect(node, MemoryTransport(), ["news"]),
        connect(node, MemoryTransport(), ["news"]) as other,
    ):
        other.cut(SLOW)
    assert receiver.told() == [
        "channel_occupied news", "disconnected", "disconnected", "channel_vacated news",
    ]  # fmt: skip
    assert [one.get("code") for one in receiver.events] == [None, 3_008, 3_000, None]


@pytest.mark.parametrize("kind", ["websocket", "stream"])
@pytest.mark.parametrize("way", ["native", "asgi", "h2"])
async def test_a_plain_subscriber_is_told_of_by_its_user(way: str, kind: str) -> None:
    """From its first event on, with the meta of its token."""
    receiver = Receiver()
    async with opened(receiver) as events, running(dev=False) as server:
        grant = ConnectionGrant("ann", meta=b'{"team":7}', channels={"news": SubscriptionGrant()})
        server.node.verifier = FakeVerifier({"ann": grant})
        server.node.registry._events = events
        async with knocking(server, way, kind, "channel=news&token=ann") as status:
            assert status == 200
            while not server.node.hub.channels:
                await trio.lowlevel.checkpoint()
    names = ["connected", "subscribed", "unsubscribed", "disconnected"]
    own = [one for one in receiver.events if "client" in one]
    assert [one["event"] for one in own] == names
    assert all((one["user"], one["meta"]) == ("ann", {"team": 7}) for one in own)


async def test_who_ends_in_the_turn_of_its_connect_is_not_told_of() -> None:
    """`connected` without `disconnected` would leave a user online for ever."""
    receiver = Receiver()
    async with telling_node(receiver) as node:
        async with connect(node, MemoryTransport(CENTRIFUGE_JSON_ASGI), ready=False) as client:
            client.identify(ConnectionGrant("ann"))
            client.disconnect(SLOW)
            client.became_ready()
            await trio.lowlevel.checkpoint()
        assert node.events is not None
        assert not node.events._sequences  # type: ignore[attr-defined]
    assert receiver.told() == []


async def test_who_never_connected_is_not_told_of() -> None:
    """Neither a connection without `connect`, nor a subscription that never went live."""
    receiver = Receiver()
    async with (
        opened(receiver) as events,
        open_node(NodeOptions(), events=events) as node,
        talking(node, connected=False, ends=True) as talk,
    ):
        await talk.call("connect")
    assert not receiver.requests


async def test_nothing_is_made_when_nobody_listens() -> None:
    """Without event callbacks a plain client does not even get an id."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["news"]) as client:
        assert client._id == ""
        assert node.statistics().events is None


async def test_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header is the time, the kind and the HMAC-SHA256 of both with path and body."""
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    receiver = Receiver()
    async with opened(receiver) as events:
        events.channel_occupied("news")
    (request,) = receiver.requests
    signed = b"1700000000\nevents\n/events\n" + request.content
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert request.headers[HEADER] == f"t=1700000000,kind=events,v1={digest}"
    assert receiver.events[0]["time"] == 1_700_000_000_500


async def test_batches_gather(autojump_clock: MockClock) -> None:
    """What happens within the delay is one batch, at most of its limit; the rest follows."""
    receiver = Receiver()
    async with opened(receiver, event_delay=1, event_batch=4) as events:
        events.channel_occupied("0")
        await trio.sleep(0.5)
        assert not receiver.batches
        events.channel_occupied("1")
        await trio.sleep(0.6)
        assert len(receiver.batches) == 1
        for number in range(9):
            events.channel_occupied(str(number))
        await trio.sleep(2)
    assert [len(batch["events"]) for batch in receiver.batches] == [2, 4, 4, 1]


@pytest.mark.parametrize(
    "refusal",
    [
        httpx.Response(500), httpx.Response(410), httpx.Response(302, headers={"location": URL}),
        httpx.ConnectError("refused"), httpx.ReadError("reset"),
    ],
    ids=repr,
)  # fmt: skip
async def test_retries_keep_the_order(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, refusal: Any
) -> None:
    """A batch that is not accepted comes again, the same, before any later event."""
    receiver = Receiver()
    receiver.refusals = [refusal] * 5
    caplog.set_level("INFO", "repeater.events")
    async with opened(receiver) as events:
        events.channel_occupied("a")
        await trio.sleep(1)
        events.channel_occupied("b")
        await trio.sleep(100)
        assert receiver.told() == ["channel_occupied a", "channel_occupied b"]
        seen = events.statistics()
        assert (seen.attempts, seen.failures, seen.delivered) == (7, 5, 2)
        assert (seen.waiting, seen.dropped) == (0, 0)
    bodies = [request.content for request in receiver.requests]
    assert len(set(bodies[:6])) == 1
    assert caplog.text.count("events are not accepted") == 1
    assert caplog.text.count("events are accepted again") == 1


async def test_a_batch_that_is_not_answered(autojump_clock: MockClock) -> None:
    """Silence costs the timeout, then the batch comes again; it may have been received twice."""
    receiver = Receiver()
    receiver.delay = 60
    async with opened(receiver, event_timeout=2) as events:
        events.channel_occupied("a")
        await trio.sleep(3)
        receiver.delay = 0
        await trio.sleep(10)
        assert events.statistics().delivered == 1
        assert len({request.content for request in receiver.requests}) == 1


async def test_a_long_answer_is_an_acceptance(autojump_clock: MockClock) -> None:
    """What a receiver says beside 200 does not matter, however much it says."""

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=pieces(b" " * 200_000))

    async with (
        make_client(httpx.MockTransport(answer)) as client,
        open_events(options_with(), client=client) as events,
    ):
        events.channel_occupied("a")
        await trio.sleep(1)
        assert events.statistics().delivered == 1


async def test_full_queue_drops_the_oldest(autojump_clock: MockClock) -> None:
    """While nobody takes them the newest are kept; the batches say how many are missing."""
    receiver = Receiver()
    receiver.refusals = [httpx.Response(500)] * 3
    async with opened(receiver, event_queue=10, event_batch=5) as events:
        for number in range(5):
            events.channel_occupied(str(number))
        await trio.sleep(0.2)
        for number in range(5, 30):
            events.channel_occupied(str(number))
        assert events.statistics().dropped == 15
        await trio.sleep(60)
        told = [int(one["channel"]) for one in receiver.events]
        assert told == [*range(5), *range(20, 30)]
        assert [batch["dropped"] for batch in receiver.batches] == [15, 15, 15]


async def test_the_end_delivers_what_is_left(autojump_clock: MockClock) -> None:
    """At shutdown nothing is waited for: neither for a gathering nor for a retry's turn."""
    receiver = Receiver()
    async with telling_node(receiver, event_delay=60) as node, talking(node):
        start = trio.current_time()
    assert receiver.told() == ["connected", "disconnected"]
    assert trio.current_time() - start < 1
    receiver = Receiver()
    receiver.refusals = [httpx.Response(500)] * 20
    async with telling_node(receiver, event_retry_max=3_600) as node, talking(node):
        await trio.sleep(20)
        waiting = len(receiver.refusals)
        start = trio.current_time()
    assert waiting
    assert receiver.told() == ["connected", "disconnected"]
    assert trio.current_time() - start < 9.5


async def test_the_end_has_a_deadline(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that is away at the end does not keep the process: what is left is counted."""
    receiver = Receiver()
    receiver.refusals = [httpx.Response(500)] * 100_000
    async with opened(receiver) as events:
        async with open_node(NodeOptions(insecure=True), events=events) as node, talking(node):
            await trio.sleep(10)
        start = trio.current_time()
    assert trio.current_time() - start < 9.6
    seen = events.statistics()
    assert (seen.waiting, seen.delivered, seen.dropped) == (0, 0, 2)
    assert "events were not delivered" in caplog.text


async def test_a_cancelled_block_delivers_too(autojump_clock: MockClock) -> None:
    """Whatever ends the program, what happened is told, as long as one batch may take."""
    receiver = Receiver()
    receiver.delay = 1
    with trio.CancelScope() as scope:
        async with opened(receiver) as events:
            events.channel_occupied("a")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert receiver.told() == ["channel_occupied a"]


@given(
    seed=st.integers(0, 2**32),
    clients=st.integers(1, 5),
    queue=st.integers(1, 40),
    batch=st.integers(1, 10),
    failing=st.floats(0, 0.8),
)
@settings(max_examples=40)
def test_order_holds_whatever_fails(
    seed: int, clients: int, queue: int, batch: int, failing: float
) -> None:
    """Whatever is retried, repeated or dropped: after removing repeats, a connection's numbers
    only grow, and what is missing is what was counted as dropped."""
    chance = random.Random(seed)
    received: list[Any] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        await trio.sleep(chance.random())
        if chance.random() < failing:
            if chance.random() < 0.5:  # taken, but nobody hears of it
                received.extend(json.loads(request.content)["events"])
            return httpx.Response(500)
        received.extend(json.loads(request.content)["events"])
        return httpx.Response(200, content=pieces(b""))

    async def main() -> None:
        callers = [Caller(str(number), "memory") for number in range(clients)]
        options = options_with(event_queue=queue, event_batch=batch, event_retry_max=1)
        async with make_client(httpx.MockTransport(answer)) as client:
            async with open_events(options, client=client) as events:
                for caller in callers:
                    events.connected(caller)
                for number in range(60):
                    events.subscribed(chance.choice(callers), str(number))
                    if chance.random() < 0.3:
                        await trio.sleep(chance.random())
                for caller in callers:
                    events.disconnected(caller, CONNECTION_CLOSED)
                events.shut_down_by(trio.current_time() + 10_000)
            seen = events.statistics()
        unique = {one["id"]: one for one in received}
        assert len(unique) >= seen.delivered
        assert len(unique) + seen.dropped >= 60 + 2 * clients
        for caller in callers:
            own = [one["seq"] for one in unique.values() if one["client"] == caller.client]
            assert own == sorted(set(own))

    trio.run(main, clock=MockClock(autojump_threshold=0))
