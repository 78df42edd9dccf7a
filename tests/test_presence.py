"""Who is in a channel, and the telling of who comes and goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant, Overrides, SubscriptionGrant
from repeater.brokers.receipts import Answer
from repeater.errors import POSITION_LOST, SERVER_ERROR, BrokerError
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import Announcement, ClientInfo
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import HeldChannels, TestBroker
from tests.conversation import FakeVerifier, Talk, members, talking
from tests.engines import ForwardingPresence, Gate

pytestmark = pytest.mark.usefixtures("announced_at_once")

OPTIONS = NodeOptions(
    insecure=True,
    channel=ChannelOptions(presence=True, join_leave=True, force_push_join_leave=True),
)
ANN, BOB = ConnectionGrant("ann", info=b'{"n":1}'), ConnectionGrant("bob")
VERIFIER = FakeVerifier({"ann": ANN, "bob": BOB})


class SlowPresence(ForwardingPresence):
    """A store whose changes can be held, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.changing = Gate()
        self.failing = False
        self.asked: list[str] = []
        self.removed: Callable[[str], None] = lambda client: None

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        self.asked.append(info.client)
        return self.changing.answer(lambda: self.memory.add(channel, info))

    def remove(self, channel: str, client: str) -> Answer[None]:
        self.removed(client)
        return self.changing.answer(lambda: self._remove(channel, client))

    def _remove(self, channel: str, client: str) -> None:
        if self.failing:
            raise BrokerError("presence is down")
        self.memory.remove(channel, client)


async def stats(talk: Talk) -> Any:
    return (await talk.ask(presence_stats={"channel": "c"}))["presence_stats"]


def told(pushes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Joins and leaves as pairs of kind and connection id."""
    return [
        (kind, push[kind]["info"]["client"])
        for push in pushes
        for kind in ("join", "leave")
        if kind in push
    ]


async def test_connections_of_one_user() -> None:
    """Each connection is there by its own id; users are counted once."""
    async with (
        open_node(OPTIONS, verifier=VERIFIER) as node,
        talking(node, connected=False) as first,
        talking(node, connected=False) as second,
        talking(node, connected=False) as third,
    ):
        for talk, token in ((first, "ann"), (second, "ann"), (third, "bob")):
            await talk.connect(token)
            await talk.subscribe()
        assert await stats(first) == {"num_clients": 3, "num_users": 2}
        reply = await first.ask(presence={"channel": "c"})
        assert reply["presence"]["presence"] == {
            first.client.id: {"user": "ann", "client": first.client.id, "conn_info": {"n": 1}},
            second.client.id: {"user": "ann", "client": second.client.id, "conn_info": {"n": 1}},
            third.client.id: {"user": "bob", "client": third.client.id},
        }
        await second.ask(unsubscribe={"channel": "c"})
        await wait_all_tasks_blocked()
        assert await stats(first) == {"num_clients": 2, "num_users": 2}
        first.client.disconnect(SERVER_ERROR)


async def test_nobody_is_there() -> None:
    """An empty channel's presence is an empty object, and its numbers are zeros."""
    async with open_node(OPTIONS) as node, talking(node) as talk:
        reply = await talk.ask(presence={"channel": "c"})
        assert reply["presence"] == {"presence": {}}
        assert await stats(talk) == {"num_clients": 0, "num_users": 0}


async def test_joins_and_leaves() -> None:
    """The joiner hears its own join behind its reply; the others hear all, in order."""
    async with open_node(OPTIONS) as node, talking(node) as first:
        await first.subscribe()
        reply, own = await first.news()
        assert "subscribe" in reply
        assert told([own["push"]]) == [("join", first.client.id)]
        async with talking(node) as second:
            await second.subscribe()
            name = second.client.id
            assert told(await second.pushes()) == [("join", name)]
            await second.ask(unsubscribe={"channel": "c"})
            await wait_all_tasks_blocked()
            await second.subscribe()
            await second.news()
        expected = [("join", name), ("leave", name), ("join", name), ("leave", name)]
        assert told(await first.pushes()) == expected


@pytest.mark.parametrize("how", ["cut", "disconnect"])
async def test_leave_comes_after_the_socket_is_gone(how: str) -> None:
    """Presence and the leave are carried out when the connection has ended, and not before."""
    states: list[bool] = []

    class Watching(TestBroker):
        def announce(self, announcement: Announcement) -> None:
            if not announcement.joined:
                states.append(transport.released or transport.aborted)
            super().announce(announcement)

    class Lingering(MemoryTransport):
        async def close(self, disconnect: Any) -> None:
            await wait_all_tasks_blocked()
            await super().close(disconnect)

    transport = Lingering(CENTRIFUGE_JSON_ASGI)
    async with open_node(OPTIONS, broker=Watching()) as node:
        async with connect(node, transport, ready=False) as client:
            talk = Talk(node, client, transport)
            await talk.connect()
            await talk.subscribe()
            await talk.news()  # the join is announced
            getattr(client, how)(SERVER_ERROR)
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        assert states == [True]
        assert not await members(node)
        assert transport.aborted is (how == "cut")


async def test_back_at_once_is_present() -> None:
    """Who subscribes right after its 2500 is taken out of the store first, and then added again."""
    store = SlowPresence()
    async with (
        open_node(OPTIONS, presence=store) as node,
        talking(node) as talk,
        talking(node) as other,
        trio.open_nursery() as nursery,
    ):
        await other.subscribe()
        await talk.subscribe()
        await talk.news()
        await other.news()
        store.changing.shut()
        talk.client.end_subscription(talk.client.channels["c"], POSITION_LOST)
        nursery.start_soon(talk.session.receive, talk.command(subscribe={"channel": "c"}))
        assert [list(message) for message in await talk.news()] == [["push"]]
        store.changing.open()
        reply, *pushes = await talk.news()
        assert "subscribe" in reply
        # Its own leave comes before or after the reply, and always before its join.
        assert told([push["push"] for push in pushes])[-1] == ("join", talk.client.id)
        assert set(store.memory.members("c")) == {talk.client.id, other.client.id}
        assert [kind for kind, _ in told(await other.pushes())] == ["leave", "join"]


async def test_gone_again_while_its_leave_is_carried_out() -> None:
    """A client that is cut while it waits for its last leave is not there, nor announced."""
    store = SlowPresence()
    async with (
        open_node(OPTIONS, presence=store) as node,
        talking(node) as other,
        trio.open_nursery() as nursery,
    ):
        await other.subscribe()
        back = trio.Event()

        async def live() -> None:
            async with talking(node, connected=False) as talk:
                await talk.connect()
                await talk.subscribe()
                await back.wait()
                await talk.ask(unsubscribe={"channel": "c"})
                await talk.subscribe()

        nursery.start_soon(live)
        await wait_all_tasks_blocked()
        store.changing.shut()
        back.set()
        await wait_all_tasks_blocked()
        (client,) = [one for one in node.registry.clients if one is not other.client]
        # In one turn: the leave is done, and the client ended.
        store.changing.open()
        client.cut(SERVER_ERROR)
        pushes = told(await other.pushes())
        assert pushes[1:] == [("join", client.id), ("leave", client.id)]
        assert set(store.memory.members("c")) == {other.client.id}


async def test_cut_before_it_is_added() -> None:
    """The store is not told of a client that was ended while the broker began to hold the channel.

    The answer and the end come in one turn, so the task that waits for the answer goes on.
    """
    store, broker = SlowPresence(), HeldChannels()
    async with (
        open_node(OPTIONS, presence=store, broker=broker) as node,
        trio.open_nursery() as nursery,
    ):

        async def live() -> None:
            async with talking(node) as talk:
                await talk.subscribe()

        broker.holding.shut()
        nursery.start_soon(live)
        await wait_all_tasks_blocked()
        (client,) = node.registry.clients
        broker.holding.open()
        client.cut(SERVER_ERROR)
        await wait_all_tasks_blocked()
        assert store.asked == []
        assert not store.memory.members("c")


async def test_leave_is_told_though_it_wanted_back() -> None:
    """A client that is cut while its leave still waits its turn has left once, not never."""
    store = SlowPresence()
    async with (
        open_node(OPTIONS, presence=store) as node,
        talking(node) as other,
        trio.open_nursery() as nursery,
    ):
        await other.subscribe()
        async with talking(node) as slow:
            await slow.subscribe()
            async with talking(node) as talk:
                await talk.subscribe()
                await talk.news()
                await other.news()
                store.changing.shut()
                await slow.ask(unsubscribe={"channel": "c"})
                await wait_all_tasks_blocked()  # The store is asked, and does not answer.
                await talk.ask(unsubscribe={"channel": "c"})
                nursery.start_soon(talk.session.receive, talk.command(subscribe={"channel": "c"}))
                await wait_all_tasks_blocked()
                talk.client.cut(SERVER_ERROR)
                await trio.lowlevel.checkpoint()
            store.changing.open()
            names = [slow.client.id, talk.client.id]
            assert told(await other.pushes()) == [("leave", name) for name in names]


async def test_cut_while_it_is_added() -> None:
    """A client that is cut while the store adds it is taken out again, and nobody is told."""
    store = SlowPresence()
    async with (
        open_node(OPTIONS, presence=store) as node,
        talking(node) as other,
        trio.open_nursery() as nursery,
    ):
        await other.subscribe()
        await other.news()

        async def live() -> None:
            async with talking(node) as talk:
                await talk.subscribe()

        store.changing.shut()
        nursery.start_soon(live)
        await wait_all_tasks_blocked()
        (client,) = [one for one in node.registry.clients if one is not other.client]
        store.changing.open()
        client.cut(SERVER_ERROR)
        assert await other.pushes() == []
        assert set(store.memory.members("c")) == {other.client.id}


async def test_no_leave_without_a_join() -> None:
    """Who was refused while it joined, 112 or 100, has not come, and so does not go."""
    broker = TestBroker()
    async with open_node(OPTIONS, broker=broker) as node, talking(node) as other:
        await other.subscribe()
        await other.news()
        async with talking(node) as talk:
            error = await talk.subscribe(
                recoverable=True, recover=True, epoch="other", offset=1, flag=2
            )
            assert error["code"] == 112
            broker.failing = True
            assert (await talk.subscribe(positioned=True))["code"] == 100
        assert await other.pushes() == []
        assert set(await members(node)) == {other.client.id}


async def test_leave_is_told_though_the_store_fails() -> None:
    """A store that can't remove somebody does not keep the leave from being told."""
    store = SlowPresence()
    async with open_node(OPTIONS, presence=store) as node, talking(node) as other:
        await other.subscribe()
        async with talking(node) as talk:
            await talk.subscribe()
            await other.news()
            store.failing = True
        assert told(await other.pushes()) == [("leave", talk.client.id)]


async def test_departures_wait_for_a_silent_store_once(autojump_clock: MockClock) -> None:
    """A store that hangs holds up all departures of one round for the publish timeout together;
    each is counted, and those that are answered in time are not."""
    store = SlowPresence()
    options = msgspec.structs.replace(OPTIONS, publish_timeout=3)
    async with open_node(options, presence=store) as node, talking(node) as other:
        await other.subscribe()
        start = trio.current_time()
        store.removed = lambda _client: store.changing.shut()
        await cut_many(node, 50)
        await trio.sleep(2.9)
        assert node.broker_errors["presence"] == 0
        await trio.sleep(0.2)
        assert node.broker_errors["presence"] == 50
        assert trio.current_time() - start < 4
        store.removed = lambda _client: None
        store.changing.open()
        await cut_many(node, 5)
        await trio.sleep(0.1)
        assert node.broker_errors["presence"] == 50
        assert set(store.memory.members("c")) == {other.client.id}


async def test_failing_announcement_fails_nothing() -> None:
    """A join that can't be announced does not fail the subscribe."""

    class Mute(TestBroker):
        def announce(self, announcement: Announcement) -> None:
            raise BrokerError("announcing is down")

    async with open_node(OPTIONS, broker=Mute()) as node, talking(node) as talk:
        assert await talk.subscribe() == {}
        assert len(await talk.news()) == 1
        await talk.ask(unsubscribe={"channel": "c"})
        await wait_all_tasks_blocked()
        assert not await members(node)


@pytest.mark.parametrize(
    ("overrides", "present", "heard"),
    [
        (Overrides(), True, True),
        (Overrides(presence=False), False, True),
        (Overrides(join_leave=False), True, False),
        (Overrides(force_push_join_leave=False), True, False),
    ],
)
async def test_overrides(overrides: Overrides, present: bool, heard: bool) -> None:
    """A grant may turn off presence, announcements, or their being pushed unasked."""
    grant = ConnectionGrant("ann", channels={"c": SubscriptionGrant(overrides=overrides)})
    verifier = FakeVerifier({"t": grant})
    async with (
        open_node(OPTIONS, verifier=verifier) as node,
        talking(node, connected=False) as talk,
    ):
        await talk.connect("t")
        await wait_all_tasks_blocked()
        assert bool(await members(node)) is present
        assert bool(told(await talk.pushes())) is heard


async def test_plain_subscribers_are_not_counted() -> None:
    """A plain WebSocket client is nobody's presence."""
    async with open_test_node(OPTIONS) as node, connect(node, MemoryTransport(), ["c"]):
        await wait_all_tasks_blocked()
        assert not await members(node)


async def test_many_leave_at_once() -> None:
    """However many are cut in one turn, each is removed, and each leave is told once."""
    async with open_node(OPTIONS) as node, talking(node) as other:
        await other.subscribe()
        await cut_many(node, 50)
        pushes = told(await other.pushes())
        assert sorted(name for kind, name in pushes[1:] if kind == "leave") == sorted(
            name for kind, name in pushes[1:] if kind == "join"
        )
        assert len(pushes) == 101
        assert set(await members(node)) == {other.client.id}


async def cut_many(node: Node, count: int) -> None:
    """So many clients subscribe, and then they are cut together."""
    before = set(node.registry.clients)

    async def live() -> None:
        async with talking(node, connected=False) as talk:
            await talk.connect()
            await talk.subscribe()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(live)
        await wait_all_tasks_blocked()
        for client in set(node.registry.clients) - before:
            client.cut(SERVER_ERROR)
