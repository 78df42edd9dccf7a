"""Channels are held before their history is read, and released after the last listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant
from repeater.brokers.receipts import Answer, Receipt
from repeater.errors import FORCE_DISCONNECT, SERVER_ERROR, BrokerError, Disconnect
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import ClientInfo, Publication
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import HeldChannels
from tests.conversation import FakeVerifier, Talk, talking
from tests.engines import ForwardingPresence, Gate

POSITIONED = NodeOptions(channel=ChannelOptions(force_positioning=True))
NAMES = ("a", "b", "c")


class NotingBroker(HeldChannels):
    """Answers neither hold nor history while its gates are shut."""

    def named(self, call: str) -> list[str]:
        """The channels of the calls of one kind, in order."""
        return [channel for name, channel in self.calls if name == call]


class NotingPresence(ForwardingPresence):
    """Notes whom it is asked to add, and answers when its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.asked: list[str] = []

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        self.asked.append(channel)
        return self.gate.answer(lambda: self.memory.add(channel, info))


async def test_hold_comes_before_history() -> None:
    """History is asked when the channel is held, not before; what came meanwhile is not missed."""
    broker = NotingBroker()
    async with (
        open_test_node(POSITIONED, broker=broker) as node,
        talking(node) as talk,
        trio.open_nursery() as nursery,
    ):
        broker.holding.shut()
        nursery.start_soon(talk.session.receive, talk.command(subscribe={"channel": "c"}))
        await wait_all_tasks_blocked()
        assert broker.calls == [("hold", "c")]
        await node.publish(Publication("c", b"1"))
        assert await talk.news() == []
        broker.holding.open()
        (reply,) = await talk.news()
        assert broker.calls == [("hold", "c"), ("history", "c")]
        assert reply["subscribe"]["offset"] == 1
        await node.publish(Publication("c", b"2"))
        assert await talk.data() == [2]


async def test_many_channels_are_asked_side_by_side() -> None:
    """All are held before any history; presence and history of all are asked before an answer."""
    options = NodeOptions(channel=ChannelOptions(presence=True))
    broker, presence = NotingBroker(), NotingPresence()
    async with (
        open_test_node(options, broker=broker, presence=presence) as node,
        talking(node, connected=False) as talk,
        trio.open_nursery() as nursery,
    ):
        broker.holding.shut()
        presence.gate.shut()
        command = talk.command(connect={"subs": {name: {} for name in NAMES}})
        nursery.start_soon(talk.session.receive, command)
        await wait_all_tasks_blocked()
        assert broker.calls == [("hold", name) for name in NAMES]
        assert presence.asked == []
        broker.holding.open()
        await wait_all_tasks_blocked()
        assert broker.named("history") == presence.asked == [*NAMES]
        assert await talk.news() == []
        presence.gate.open()
        (reply,) = await talk.news()
        assert set(reply["connect"]["subs"]) == {*NAMES}


async def test_a_channel_that_is_never_held(autojump_clock: MockClock) -> None:
    """After the publish timeout the subscription fails, 100, and the channel is released."""
    broker = NotingBroker()
    options = NodeOptions(publish_timeout=3, channel=ChannelOptions(force_positioning=True))
    async with open_test_node(options, broker=broker) as node, talking(node, ends=False) as talk:
        broker.holding.shut()
        start = trio.current_time()
        assert (await talk.subscribe())["code"] == 100
        assert trio.current_time() - start == pytest.approx(3, abs=0.1)
        assert broker.calls == [("hold", "c"), ("release", "c")]
        assert node.broker_errors == {"subscribe": 1}


class DownBroker(NotingBroker):
    """Can hold nothing: says so at once, or late."""

    late = False

    def hold(self, channel: str) -> Answer[None]:
        answer = super().hold(channel)
        if not self.late:
            raise BrokerError("down")
        failed: Receipt[None] = Receipt()
        assert isinstance(answer, Receipt)
        answer.when_settled(lambda _: failed.settle(BrokerError("down")))
        return failed


async def test_a_channel_that_can_not_be_held() -> None:
    """Who needs its history is asked to try again, and so is a plain subscriber."""
    broker = DownBroker()
    async with open_test_node(broker=broker) as node:
        async with talking(node, ends=False) as talk:
            error = await talk.subscribe(positioned=True)
            assert (error["code"], error["temporary"]) == (100, True)
        plain = MemoryTransport()
        async with connect(node, plain, ["c"]):
            await trio.Event().wait()  # until it is ended
        assert plain.closed_with == Disconnect(3004, "internal server error: the engine: down")
        assert node.refusals.counts == {"engine": 2}
        assert broker.calls == [("hold", "c"), ("release", "c")] * 2
        assert node.broker_errors == {"subscribe": 2}


@pytest.mark.parametrize("late", [False, True])
async def test_a_subscription_that_waits_for_the_engine(late: bool) -> None:
    """Without history and presence it goes live, and hears what comes when the engine is back."""
    broker = DownBroker()
    broker.late = late
    async with open_test_node(broker=broker) as node, talking(node, ends=False) as talk:
        assert await talk.subscribe() == {}
        assert broker.calls == [("hold", "c")]  # and it is not released: the broker remembers it
        await node.publish(Publication("c", b"1"))
        assert await talk.data() == [1]
        assert node.broker_errors == {"subscribe": 1}
        await talk.ask(unsubscribe={"channel": "c"})
        assert broker.calls == [("hold", "c"), ("release", "c")]


End = Callable[[Node, Talk], Awaitable[object]]


async def unsubscribe(node: Node, talk: Talk) -> None:
    await talk.ask(unsubscribe={"channel": "c"})


async def cut(node: Node, talk: Talk) -> None:
    talk.client.cut(SERVER_ERROR)


async def close(node: Node, talk: Talk) -> None:
    talk.client.scope.cancel()


ENDS: dict[str, End] = {
    "unsubscribe": unsubscribe,
    "cut": cut,
    "close": close,
    "server unsubscribe": lambda node, talk: node.unsubscribe("ann", "c"),
    "server disconnect": lambda node, talk: node.disconnect("ann", why=FORCE_DISCONNECT),
}


# A client's own commands are carried out one after the other.
CASES = [*((way, False) for way in ENDS), *((way, True) for way in ENDS if way != "unsubscribe")]


@pytest.mark.parametrize(("way", "joining"), CASES)
async def test_release_comes_after_the_last_listener(way: str, joining: bool) -> None:
    """However a subscription ends, live or while it joins, its channel is released once."""
    broker, talks = NotingBroker(), list[Talk]()
    verifier = FakeVerifier({"t": ConnectionGrant("ann")})
    async with open_test_node(broker=broker, verifier=verifier) as node, talking(node) as other:

        async def live() -> None:
            async with talking(node, connected=False) as talk:
                talks.append(talk)
                await talk.connect("t")
                await talk.subscribe()
                await trio.sleep_forever()

        await other.subscribe()
        async with trio.open_nursery() as nursery:
            if joining:
                broker.holding.shut()
            nursery.start_soon(live)
            await wait_all_tasks_blocked()
            assert broker.calls == [("hold", "c")] * 2
            await ENDS[way](node, talks[0])
            await wait_all_tasks_blocked()
            broker.holding.open()
            await wait_all_tasks_blocked()
            assert broker.named("release") == []  # The other one still listens.
            await other.ask(unsubscribe={"channel": "c"})
            await wait_all_tasks_blocked()
            assert broker.named("release") == ["c"]
            nursery.cancel_scope.cancel()
    assert broker.named("release") == ["c"]


async def test_a_channel_is_held_again() -> None:
    """Who comes after the release holds the channel anew."""
    broker = NotingBroker()
    async with open_test_node(broker=broker) as node, talking(node) as talk:
        for _ in range(2):
            await talk.subscribe()
            await talk.ask(unsubscribe={"channel": "c"})
    assert broker.calls == [("hold", "c"), ("release", "c")] * 2
