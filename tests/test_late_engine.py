"""A whole node on an engine whose answers are all receipts: the same conversation, and its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.api.methods import call
from repeater.brokers.contract import Outcome
from repeater.brokers.receipts import Answer, Receipt, settled
from repeater.errors import SERVER_ERROR, BrokerError, IntakeFullError
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import LateAnswers, LateBroker
from tests.conversation import members, talking
from tests.engines import LatePresence

pytestmark = pytest.mark.usefixtures("announced_at_once")

OPTIONS = NodeOptions(
    channel=ChannelOptions(presence=True, join_leave=True, force_push_join_leave=True)
)


@asynccontextmanager
async def late_node() -> AsyncIterator[Node]:
    presence = LatePresence()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(presence.run)
        async with open_test_node(OPTIONS, broker=LateBroker(), presence=presence) as node:
            yield node
        nursery.cancel_scope.cancel()


async def test_a_conversation() -> None:
    """Subscribe, publish, history, presence, recovery and the leave are as in memory."""
    async with late_node() as node, talking(node) as talk, talking(node) as other:
        first = await talk.subscribe(recoverable=True)
        await other.subscribe()
        await talk.news()
        await other.news()
        assert (await talk.ask(publish={"channel": "c", "data": 1}))["publish"] == {}
        assert await talk.data() == await other.data() == [1]
        await talk.ask(unsubscribe={"channel": "c"})
        await wait_all_tasks_blocked()
        await node.publish(Publication("c", b"2"))
        await wait_all_tasks_blocked()
        assert set(await members(node)) == {other.client.id}
        assert [next(iter(one.keys() - {"channel"})) for one in await other.pushes()] == [
            "leave",
            "pub",
        ]
        back = await talk.subscribe(recoverable=True, recover=True, epoch=first["epoch"], offset=1)
        assert back["recovered"] is True
        assert [one["data"] for one in back["publications"]] == [2]
        assert set(await members(node)) == {talk.client.id, other.client.id}
        reply = await talk.ask(history={"channel": "c", "limit": -1})
        assert [one["data"] for one in reply["history"]["publications"]] == [1, 2]
        stats = await talk.ask(presence_stats={"channel": "c"})
        assert stats["presence_stats"] == {"num_clients": 2, "num_users": 1}


async def test_back_and_forth() -> None:
    """However fast a client comes and goes, it is present if its last command was to come."""
    async with late_node() as node, talking(node) as talk:
        for _ in range(20):
            await talk.subscribe()
            await talk.ask(unsubscribe={"channel": "c"})
        await wait_all_tasks_blocked()
        assert not await members(node)
        await talk.subscribe()
        await talk.ask(unsubscribe={"channel": "c"})
        await talk.subscribe()
        await wait_all_tasks_blocked()
        assert set(await members(node)) == {talk.client.id}


async def test_a_batch_and_a_plain_subscriber() -> None:
    """All events of a batch arrive, in order, and each item has its position."""
    transport = MemoryTransport()
    items = [{"publish": {"channel": "c", "data": number}} for number in range(100)]
    async with late_node() as node, connect(node, transport, ["c"]):
        answer = await call(node, "batch", msgspec.json.encode({"commands": items}))
        await wait_all_tasks_blocked()
        replies = msgspec.json.decode(answer.body)["replies"]
        assert [one["publish"]["offset"] for one in replies] == [*range(1, 101)]
        assert transport.messages() == [*range(100)]


async def test_the_end_of_the_node_answers_all() -> None:
    """Whoever waits for a receipt when the node ends gets its position."""
    outcomes: list[str] = []

    async def publish(node: Node) -> None:
        try:
            position = await node.publish(Publication("c", b"1"))
        except (BrokerError, IntakeFullError) as error:
            outcomes.append(type(error).__name__)
        else:
            assert position is not None
            outcomes.append("published")

    async with trio.open_nursery() as nursery:
        async with late_node() as node:
            for _ in range(50):
                nursery.start_soon(publish, node)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        with pytest.raises(IntakeFullError):
            await node.publish(Publication("c", b"1"))
    assert outcomes == ["published"] * 50


async def test_what_was_accepted_before_a_shutdown_is_delivered() -> None:
    """A submission without an answer yet reaches its subscribers, and then they leave."""
    transport = MemoryTransport()
    answers: list[Answer[Outcome]] = []
    async with late_node() as node, connect(node, transport, ["c"]):
        answers += [node.submit(Publication("c", b"%d" % number)) for number in range(10)]
        assert not any(isinstance(one, Receipt) and one.settled for one in answers)
        await node.shut_down()
        assert transport.messages() == [*range(10)]
    positions = [await settled(one) for one in answers]
    assert [one and one.offset for one in positions] == [*range(1, 11)]


async def test_a_silent_engine_does_not_hold_up_a_shutdown(autojump_clock: MockClock) -> None:
    """The node waits as long as a publisher does, at most half of the shutdown's time."""

    class Silent(LateAnswers):
        async def finish(self) -> None:
            await trio.sleep_forever()

    broker = Silent()
    began = trio.current_time()
    async with open_test_node(broker=broker) as node:
        await node.shut_down()
    assert trio.current_time() - began <= node.options.shutdown_timeout * 0.6


async def test_a_client_that_is_cut_while_it_joins() -> None:
    """Nothing of it is left in hub or presence, whatever the engine answers later."""
    async with late_node() as node:
        async with talking(node) as talk, trio.open_nursery() as nursery:
            nursery.start_soon(talk.session.receive, talk.command(subscribe={"channel": "c"}))
            await trio.lowlevel.checkpoint()
            talk.client.cut(SERVER_ERROR)
        await wait_all_tasks_blocked()
        assert not node.hub.channels
        assert not await members(node)
