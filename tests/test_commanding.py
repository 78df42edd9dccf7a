"""What a back end does to its users' connections, whatever those do at the same time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant, Overrides, SubscriptionGrant
from repeater.brokers.receipts import Answer
from repeater.clients.client import Client
from repeater.clients.connections import Selection, selected
from repeater.clients.session import Session
from repeater.errors import (
    CHANNEL_LIMIT,
    EXPIRED,
    FORCE_DISCONNECT,
    SERVER_UNSUBSCRIBE,
    BrokerError,
    Disconnect,
    ErrorCode,
    ReplyError,
)
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import ClientInfo, Publication, StreamPosition
from repeater.testing import MemoryTransport, connect
from tests.brokers import HeldHistory
from tests.engines import ForwardingPresence, Gate

pytestmark = pytest.mark.usefixtures("announced_at_once")

SEEN = ChannelOptions(
    presence=True, join_leave=True, force_push_join_leave=True, allow_recovery=True
)
NOTHING = SubscriptionGrant()


class GatedPresence(ForwardingPresence):
    """A store that carries out changes late, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.failing = False

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        return self.gate.answer(lambda: self._add(channel, info))

    def remove(self, channel: str, client: str) -> Answer[None]:
        return self.gate.answer(lambda: self.memory.remove(channel, client))

    def _add(self, channel: str, info: ClientInfo) -> None:
        if self.failing:
            raise BrokerError("presence is down")
        self.memory.add(channel, info)


class GatedBroker(HeldHistory):
    """A history that answers late, with what was true when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.after = defaultdict(lambda: self.gate)


class World(msgspec.Struct):
    """A node whose back ends can be held up."""

    node: Node
    broker: GatedBroker
    presence: GatedPresence

    async def members(self, channel: str = "news") -> Mapping[str, ClientInfo]:
        return self.presence.memory.members(channel)


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    chosen = {"insecure": True, "channel": SEEN, **options}
    broker, presence = GatedBroker(), GatedPresence()
    async with open_node(NodeOptions(**chosen), broker=broker, presence=presence) as node:
        yield World(node, broker, presence)
        await wait_all_tasks_blocked()
        assert not node.attendance._leaving


def end_of(client: Client) -> Disconnect | None:
    """Why it ended, if it has; a function, because what it says changes."""
    return client.end


class Talk:
    """One client's side."""

    def __init__(self, node: Node, client: Client, transport: MemoryTransport) -> None:
        self.client = client
        self.transport = transport
        self.session = Session(node, client)
        self._read = 0

    async def say(self, **command: Any) -> None:
        await self.session.receive(json.dumps(command))

    async def heard(self) -> list[Any]:
        """What has come since the last look, once nothing moves any more."""
        await wait_all_tasks_blocked()
        new, self._read = self.transport.sent[self._read :], len(self.transport.sent)
        return [json.loads(chunk) for chunk in new]

    async def pushes(self) -> list[tuple[str, str]]:
        """The same, in short: which push, of which channel."""
        return [short(one) for one in await self.heard()]


def short(message: Any) -> tuple[str, str]:
    if "push" not in message:
        (name,) = message.keys() - {"id"}
        return name, "reply"
    channel = message["push"].pop("channel", "")
    (name,) = message["push"]
    return name, channel


@asynccontextmanager
async def talking(
    node: Node, user: str = "alice", *, connected: bool = True
) -> AsyncIterator[Talk]:
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with connect(node, transport, ready=False) as client:
        client.grant = ConnectionGrant(user=user)
        talk = Talk(node, client, transport)
        if connected:
            await talk.say(connect={}, id=1)
            await talk.heard()
        yield talk


async def test_subscribe() -> None:
    """The push comes first, then the join and what is published; the grant is in it."""
    async with world() as it, talking(it.node) as alice, talking(it.node, "bob") as bob:
        await it.node.publish(Publication("news", b"1"))
        grant = SubscriptionGrant(info=b'{"a":1}', data=b'"welcome"')
        await it.node.subscribe("alice", "news", grant=grant)
        subscribed, joined = await alice.heard()
        await it.node.publish(Publication("news", b"2"))
        (published,) = await alice.heard()
        push = subscribed["push"]
        assert push["channel"] == "news"
        assert push["subscribe"].pop("epoch")
        assert push["subscribe"] == {
            "recoverable": True, "positioned": True, "offset": 1, "data": "welcome"
        }  # fmt: skip
        assert joined["push"]["join"]["info"]["chan_info"] == {"a": 1}
        assert published["push"]["pub"]["data"] == 2
        assert [*await it.members()] == [alice.client.id]
        assert await bob.heard() == []


async def test_subscribe_recovers() -> None:
    """What was missed comes behind the push, whose offset is where it was."""
    async with world() as it, talking(it.node) as alice:
        for data in (b"1", b"2", b"3"):
            position = await it.node.publish(Publication("news", data))
        assert position is not None
        since = StreamPosition(1, position.epoch)
        await it.node.subscribe("alice", "news", since=since)
        subscribed, *published, joined = await alice.heard()
        assert subscribed["push"]["subscribe"]["offset"] == 1
        assert subscribed["push"]["subscribe"]["recovered"] is True
        assert "publications" not in subscribed["push"]["subscribe"]
        assert [one["push"]["pub"]["offset"] for one in published] == [2, 3]
        assert "join" in joined["push"]


async def test_subscribe_from_a_lost_position() -> None:
    """Not recovered: it is told so, and goes on at the top."""
    async with world() as it, talking(it.node) as alice:
        await it.node.publish(Publication("news", b"1"))
        await it.node.subscribe("alice", "news", since=StreamPosition(1, "other"))
        (subscribed, joined) = await alice.heard()
        result = subscribed["push"]["subscribe"]
        assert (result["offset"], result["was_recovering"]) == (1, True)
        assert "recovered" not in result
        assert "join" in joined["push"]


async def test_overrides() -> None:
    """They win over the channel's options."""
    overrides = Overrides(presence=True, force_recovery=True)
    async with world(channel=ChannelOptions()) as it, talking(it.node) as alice:
        await it.node.subscribe("alice", "news", grant=SubscriptionGrant(overrides=overrides))
        (subscribed,) = await alice.heard()
        assert subscribed["push"]["subscribe"]["recoverable"] is True
        assert [*await it.members()] == [alice.client.id]


async def test_the_target() -> None:
    """Exactly that user's connections; `client` and `session` only narrow it down."""
    async with (
        world() as it,
        talking(it.node) as one,
        talking(it.node) as two,
        talking(it.node, "") as anonymous,
        connect(it.node, MemoryTransport()) as plain,
    ):
        two.client.session = "s2"

        def found(user: str = "", client: str = "", session: str = "") -> set[Client]:
            return set(selected(it.node, Selection(user=user, client=client, session=session)))

        assert found(user="alice") == {one.client, two.client}
        assert found(user="alice", client=one.client.id) == {one.client}
        assert found(user="alice", session="s2") == {two.client}
        assert found(user="alice", client=one.client.id, session="s2") == set()
        assert found(client=one.client.id) == set()
        assert found() == {anonymous.client, plain}
        assert found(user="nobody") == set()


async def test_subscribe_skips_whom_it_can_not_tell() -> None:
    """A plain subscriber has no word for it, and who is connecting is answered first."""
    async with (
        world() as it,
        talking(it.node, "", connected=False) as early,
        connect(it.node, MemoryTransport(), ["plain"]) as plain,
    ):
        early.client.identify(ConnectionGrant())
        await it.node.subscribe("", "news")
        assert set(it.node.hub.channels) == {"plain"}
        await it.node.unsubscribe("")
        assert not plain.channels
        assert not it.node.hub.channels


async def test_who_hears_it_already_is_left_alone() -> None:
    """By the server's doing or its own; and its own attempt later is 105."""
    async with world() as it, talking(it.node) as alice:
        await it.node.subscribe("alice", "news")
        assert await alice.pushes() == [("subscribe", "news"), ("join", "news")]
        await it.node.subscribe("alice", "news")
        await alice.say(subscribe={"channel": "news"}, id=2)
        (reply,) = await alice.heard()
        assert reply["error"]["code"] == 105


async def test_the_channel_limit() -> None:
    """A connection that is full is closed (3505); another one is subscribed."""
    async with world(channel_limit=1) as it, talking(it.node) as full, talking(it.node) as free:
        await full.say(subscribe={"channel": "a"}, id=2)
        await it.node.subscribe("alice", "news")
        assert end_of(full.client) is CHANNEL_LIMIT
        assert set(free.client.channels) == {"news"}


@pytest.mark.parametrize("held", ["presence", "broker"])
async def test_a_client_that_ends_while_it_is_subscribed(held: str) -> None:
    """Nothing is left of it, in the hub or in the presence, and the call succeeds."""
    async with world() as it, trio.open_nursery() as nursery:
        gate: Gate = getattr(it, held).gate
        async with talking(it.node) as alice:
            gate.shut()
            nursery.start_soon(it.node.subscribe, "alice", "news")
            await wait_all_tasks_blocked()
            assert set(alice.client.channels) == {"news"}
            sent = len(alice.transport.sent)
        assert not it.node.hub.channels
        gate.open()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert await it.members() == {}
        assert alice.transport.sent[sent:] == []


async def test_a_client_that_subscribes_at_the_same_time() -> None:
    """The server was first: the client is told 105, and hears the channel once."""
    async with world() as it, talking(it.node) as alice, trio.open_nursery() as nursery:
        it.broker.gate.shut()
        nursery.start_soon(it.node.subscribe, "alice", "news")
        await wait_all_tasks_blocked()
        await alice.say(subscribe={"channel": "news"}, id=2)
        await it.node.publish(Publication("news", b"1"))
        assert await alice.pushes() == [("error", "reply")]
        it.broker.gate.open()
        assert await alice.pushes() == [("subscribe", "news"), ("join", "news")]
        assert alice.client.channels["news"].server_side
        await it.node.publish(Publication("news", b"2"))
        (published,) = await alice.heard()
        assert published["push"]["pub"]["offset"] == 2


async def test_the_client_was_first() -> None:
    """Its own subscription goes on, and the server's call does nothing."""
    async with world() as it, talking(it.node) as alice, trio.open_nursery() as nursery:
        it.broker.gate.shut()
        nursery.start_soon(
            lambda: alice.say(subscribe={"channel": "news", "recoverable": True}, id=2)
        )
        await wait_all_tasks_blocked()
        await it.node.subscribe("alice", "news")
        it.broker.gate.open()
        assert await alice.pushes() == [("subscribe", "reply"), ("join", "news")]
        assert not alice.client.channels["news"].server_side


@pytest.mark.parametrize("held", ["presence", "broker"])
async def test_unsubscribed_while_it_subscribes(held: str) -> None:
    """The client hears of the end behind the reply, and nobody stays counted who has left."""
    async with world() as it, talking(it.node) as alice, trio.open_nursery() as nursery:
        gate: Gate = getattr(it, held).gate
        gate.shut()
        nursery.start_soon(
            lambda: alice.say(subscribe={"channel": "news", "recoverable": True}, id=2)
        )
        await wait_all_tasks_blocked()
        await it.node.unsubscribe("alice", "news")
        assert not alice.client.channels
        gate.open()
        _, ended = await alice.heard()
        assert ended["push"]["unsubscribe"] == {"code": 2000, "reason": "server unsubscribe"}
        assert await it.members() == {}
        assert not it.node.hub.channels


async def test_subscribed_again_before_the_first_attempt_came_through() -> None:
    """Only the second subscription is there, and it stays counted."""
    async with world() as it, talking(it.node) as alice, trio.open_nursery() as nursery:
        it.presence.gate.shut()
        nursery.start_soon(it.node.subscribe, "alice", "news")
        await wait_all_tasks_blocked()
        await it.node.unsubscribe("alice", "news")
        nursery.start_soon(it.node.subscribe, "alice", "news")
        await wait_all_tasks_blocked()
        it.presence.gate.open()
        assert await alice.pushes() == [("subscribe", "news"), ("join", "news")]
        assert [*await it.members()] == [alice.client.id]
        await it.node.unsubscribe("alice", "news")
        assert await alice.pushes() == [("unsubscribe", "news")]
        assert await it.members() == {}


@pytest.mark.parametrize("held", ["presence", "broker"])
async def test_a_failing_back_end(held: str) -> None:
    """The call fails; the client stays, was told nothing, and is nowhere counted."""
    async with world() as it, talking(it.node) as alice, trio.open_nursery() as nursery:
        getattr(it, held).failing = True
        with pytest.raises(BrokerError):
            await it.node.subscribe("alice", "news")
        assert "subscribe" not in [name for name, _ in await alice.pushes()]
        assert end_of(alice.client) is None
        assert not it.node.hub.channels
        assert await it.members() == {}
        getattr(it, held).failing = False
        nursery.start_soon(it.node.subscribe, "alice", "news")
        assert ("subscribe", "news") in await alice.pushes()


async def test_a_cancelled_call() -> None:
    """Nothing gathers for a client that nobody will tell."""
    async with world() as it, talking(it.node) as alice, trio.open_nursery() as nursery:
        it.broker.gate.shut()
        nursery.start_soon(it.node.subscribe, "alice", "news")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert not it.node.hub.channels
            assert await it.members() == {}
            assert "subscribe" not in [name for name, _ in await alice.pushes()]


async def test_many_connections() -> None:
    """More than are subscribed at once: all of them are."""
    async with world() as it:
        transports = [MemoryTransport(CENTRIFUGE_JSON_ASGI) for _ in range(150)]
        scopes = [trio.CancelScope() for _ in transports]
        clients = []
        for transport, scope in zip(transports, scopes, strict=True):
            client = Client(it.node.registry, transport, scope, ready=False)
            client.identify(ConnectionGrant(user="alice"))
            client.became_ready()
            clients.append(client)
        await it.node.subscribe("alice", "news")
        assert it.node.hub.channels["news"].size == 150
        await it.node.disconnect("alice")
        for client in clients:
            assert end_of(client) is FORCE_DISCONNECT
            await client.leave()


async def test_unsubscribe() -> None:
    """From one channel or from all, subscribed by the server or by the client; each is told."""
    async with world() as it, talking(it.node) as alice:
        await it.node.subscribe("alice", "a")
        for channel in ("b", "c"):
            await alice.say(subscribe={"channel": channel}, id=2)
        await alice.heard()
        await it.node.unsubscribe("alice", "a")
        (ended,) = await alice.heard()
        assert ended["push"]["unsubscribe"] == {
            "code": SERVER_UNSUBSCRIBE.code,
            "reason": SERVER_UNSUBSCRIBE.reason,
        }
        await it.node.unsubscribe("alice")
        assert await alice.pushes() == [("unsubscribe", "b"), ("unsubscribe", "c")]
        await it.node.unsubscribe("alice", "a")
        assert await alice.heard() == []
        with pytest.raises(ReplyError) as caught:
            await it.node.unsubscribe("alice", "unknown:a")
        assert caught.value.code is ErrorCode.UNKNOWN_CHANNEL


async def test_disconnect() -> None:
    """With the code that is given, but for those in the whitelist."""
    why = Disconnect(4_000, "come back")
    async with world() as it, talking(it.node) as kept:
        async with talking(it.node) as gone:
            await it.node.disconnect("alice", why=why, whitelist={kept.client.id})
        assert gone.transport.closed_with == why
        assert end_of(kept.client) is None


async def test_refresh(autojump_clock: MockClock) -> None:
    """Another expiry: told, kept to, and taken away again; the client need not do anything."""
    async with world(expired_close_delay=5.0) as it:
        now = int(it.node.unix_time())
        async with talking(it.node) as alice:
            await it.node.refresh("alice", expire_at=now + 10)
            (pushed,) = await alice.heard()
            assert pushed["push"]["refresh"]["expires"] is True
            assert 9 <= pushed["push"]["refresh"]["ttl"] <= 10  # whole seconds, rounded down
            await it.node.refresh("alice")
            (pushed,) = await alice.heard()
            assert pushed["push"] == {"refresh": {}}
            await trio.sleep(16)
            assert end_of(alice.client) is None
            now = int(it.node.unix_time())
            await it.node.refresh("alice", expire_at=now + 2)
            await trio.sleep(7 + 1.5)
            assert end_of(alice.client) is EXPIRED
        async with talking(it.node) as again:
            await it.node.refresh("alice", expire_at=1)
            assert end_of(again.client) is EXPIRED


async def test_refresh_of_the_info() -> None:
    """Every client that asks sees it, and a client that leaves meanwhile stays gone."""
    async with world() as it, talking(it.node) as alice, trio.open_nursery() as nursery:
        for channel in ("news", "sport"):
            await it.node.subscribe("alice", channel)
        it.presence.gate.shut()
        nursery.start_soon(lambda: it.node.refresh("alice", info=b'{"name":"Alice"}'))
        await wait_all_tasks_blocked()
        await it.node.unsubscribe("alice", "sport")
        it.presence.gate.open()
        await wait_all_tasks_blocked()
        (member,) = (await it.members()).values()
        assert bytes(member.conn_info or b"") == b'{"name":"Alice"}'
        assert await it.members("sport") == {}
        assert end_of(alice.client) is None
