"""A rupture: publications may be missing for ever, and whoever has a position is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.errors import INSUFFICIENT_STATE
from repeater.node import Node
from repeater.publication import Publication, Rupture
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import TestBroker
from tests.conversation import Talk, talking


class Crowd(msgspec.Struct):
    """Listeners of all kinds, each in the channels `c` and `d`."""

    node: Node
    broker: TestBroker
    plain: MemoryTransport
    careless: Talk
    """Has no positions."""
    positioned: Talk
    """Has positions in subscriptions of its own."""
    nursery: trio.Nursery
    served: list[Talk] = []
    """Has positions in subscriptions that are the server's."""

    async def publish(self, *numbers: int, channel: str = "c") -> None:
        for number in numbers:
            await self.node.publish(Publication(channel, b"%d" % number))
        await wait_all_tasks_blocked()

    async def break_off(self, channel: str) -> None:
        self.node._intake.put_nowait(Rupture(channel))
        await wait_all_tasks_blocked()

    async def serve(self) -> None:
        """Connect the one whose subscriptions are the server's; returns before it is answered."""
        self.nursery.start_soon(self._be_served)
        await wait_all_tasks_blocked()

    async def _be_served(self) -> None:
        async with talking(self.node, connected=False) as talk:
            self.served.append(talk)
            await talk.connect(subs={"c": {}, "d": {}})
            await trio.sleep_forever()


@asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    plain, broker = MemoryTransport(), TestBroker()
    async with (
        open_test_node(broker=broker) as node,
        connect(node, plain, ["c", "d"]),
        talking(node) as careless,
        talking(node) as positioned,
        trio.open_nursery() as nursery,
    ):
        for channel in "cd":
            await careless.subscribe(channel)
        await careless.news()
        yield Crowd(node, broker, plain, careless, positioned, nursery)
        nursery.cancel_scope.cancel()


def ends(pushes: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """The channels that ended, with the codes."""
    return [
        (push["channel"], push["unsubscribe"]["code"]) for push in pushes if "unsubscribe" in push
    ]


@pytest.mark.parametrize(("ruptured", "ended"), [("c", ["c"]), ("", ["c", "d"])])
async def test_live_listeners_are_told(ruptured: str, ended: list[str]) -> None:
    """2500, or 3010 for the server's subscriptions; the others hear nothing and stay. A rupture
    without a name is one of every channel."""
    async with crowd() as it:
        for channel in "cd":
            await it.positioned.subscribe(channel, recoverable=True)
        await it.serve()
        for channel in "cd":
            await it.publish(1, channel=channel)
        await it.positioned.news()
        await it.break_off(ruptured)
        assert ends(await it.positioned.pushes()) == [(name, 2500) for name in ended]
        assert it.served[0].transport.closed_with == INSUFFICIENT_STATE
        assert it.node.statistics().repeater.gaps == len(ended)
        await it.publish(2)
        await it.publish(2, channel="d")
        assert it.plain.messages() == [1, 1, 2, 2]
        assert await it.careless.data() == [1, 1, 2, 2]
        heard = [] if ruptured == "" else [2]
        assert await it.positioned.data() == heard


async def test_who_was_told_recovers() -> None:
    """It comes back with its position and gets what it missed; then it hears what follows."""
    async with crowd() as it:
        first = await it.positioned.subscribe(recoverable=True)
        await it.publish(1)
        await it.break_off("c")
        await it.publish(2)
        await it.positioned.news()
        result = await it.positioned.subscribe(
            recoverable=True, recover=True, epoch=first["epoch"], offset=1
        )
        assert result["recovered"] is True
        assert [one["data"] for one in result["publications"]] == [2]
        await it.positioned.news()
        await it.publish(3, 4)
        pushes = await it.positioned.pushes()
        assert ends(pushes) == []
        assert [push["pub"]["data"] for push in pushes] == [3, 4]


async def test_listeners_ahead_are_told() -> None:
    """Whose history reached further than fan-out had come is told like the others."""
    async with crowd() as it:
        it.broker.sink.hold()
        await it.publish(1, 2)
        await it.positioned.subscribe(positioned=True)
        await it.serve()
        await it.positioned.news()
        channel = it.node.hub.channels["c"]
        assert len(channel.ahead) == 2
        await it.break_off("c")
        assert ends(await it.positioned.pushes()) == [("c", 2500)]
        assert it.served[0].transport.closed_with == INSUFFICIENT_STATE
        assert not channel.ahead
        it.broker.sink.release()
        assert await it.careless.data() == [1, 2]


async def test_joining_listeners_are_told_behind_their_answer() -> None:
    """Their history may be older than the rupture, so they start and are told at once."""
    async with crowd() as it:
        await it.publish(1)
        it.broker.after["c"].shut()
        command = it.positioned.command(subscribe={"channel": "c", "positioned": True})
        it.nursery.start_soon(it.positioned.session.receive, command)
        await it.serve()
        await it.break_off("c")
        assert await it.positioned.news() == []
        it.broker.after["c"].open()
        reply, *pushes = await it.positioned.news()
        assert reply["subscribe"]["positioned"] is True
        assert ends([one["push"] for one in pushes]) == [("c", 2500)]
        assert it.served[0].transport.closed_with == INSUFFICIENT_STATE


async def test_later_listeners_begin_anew() -> None:
    """Who joins after a rupture has its position from the history, and stays."""
    async with crowd() as it:
        await it.publish(1, 2)
        await it.break_off("c")
        result = await it.positioned.subscribe(positioned=True)
        await it.serve()
        await it.positioned.news()
        assert result["offset"] == 2
        await it.publish(3, 4)
        pushes = await it.positioned.pushes()
        assert [push["pub"]["data"] for push in pushes] == [3, 4]
        assert it.served[0].client.end is None
        # From there on a gap is noticed as ever.
        it.broker.fate = lambda event: [] if event.data == b"5" else [event]
        await it.publish(5, 6)
        assert ends(await it.positioned.pushes()) == [("c", 2500)]


async def test_what_was_lost_is_no_gap_later() -> None:
    """Who joined after the rupture is at the top, so what comes next disturbs nobody."""
    async with crowd() as it:
        await it.publish(1)
        it.broker.sink.hold()
        await it.publish(2, 3)
        assert len(it.broker.sink.lose("c")) == 2
        it.broker.sink.release()
        await wait_all_tasks_blocked()
        result = await it.positioned.subscribe(positioned=True)
        assert result["offset"] == 3
        await it.publish(4)
        assert await it.positioned.data() == [4]
        assert it.plain.messages() == await it.careless.data() == [1, 4]
        assert it.node.statistics().repeater.gaps == 1


async def test_events_around_a_rupture_keep_their_order() -> None:
    """What came before it in one batch is distributed before it, and what came behind, after."""
    async with crowd() as it:
        await it.positioned.subscribe(positioned=True)
        await it.positioned.news()
        it.node.submit(Publication("c", b"1"))
        it.node._intake.put_nowait(Rupture("c"))
        it.node.submit(Publication("c", b"2"))
        first, *rest = await it.positioned.pushes()
        assert first["pub"]["data"] == 1
        assert ends(rest) == [("c", 2500)]
        assert len(rest) == 1
        assert await it.careless.data() == [1, 2]


async def test_a_rupture_of_a_channel_without_listeners() -> None:
    """Nobody is told, and nothing is kept of it."""
    async with crowd() as it:
        await it.break_off("nobody")
        assert "nobody" not in it.node.hub.channels
        assert it.node.statistics().repeater.gaps == 0
