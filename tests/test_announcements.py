"""Joins and leaves: held for a moment, and left out where they cancel each other."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.clients.client import Client
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Announcement
from tests.brokers import TestBroker
from tests.conversation import Talk, members, talking

HOLD = 0.1
OPTIONS = NodeOptions(
    insecure=True,
    channel=ChannelOptions(presence=True, join_leave=True, force_push_join_leave=True),
)


@asynccontextmanager
async def listening(options: NodeOptions = OPTIONS) -> AsyncIterator[tuple[Node, Talk]]:
    """A node, and a member of the channel that has heard its own join."""
    async with open_node(options) as node, talking(node) as listener:
        await listener.subscribe()
        await trio.sleep(1)
        await listener.news()
        yield node, listener


def living_clients() -> list[Client]:
    """Every client that is not freed yet."""
    return [one for one in gc.get_objects() if type(one) is Client]


async def heard(listener: Talk) -> list[str]:
    """What the listener was told since the last call: `join`, `leave`, or a publication's data."""
    return [
        str(push["pub"]["data"]) if "pub" in push else next(iter(push.keys() - {"channel"}))
        for push in await listener.pushes()
    ]


async def test_who_stays_is_announced_after_the_hold(autojump_clock: MockClock) -> None:
    """A join is told 100 ms after it came, not before; the leave likewise."""
    async with listening() as (node, listener), talking(node) as talk:
        await talk.subscribe()
        await trio.sleep(HOLD * 0.9)
        assert await heard(listener) == []
        await trio.sleep(HOLD * 0.2)
        assert await heard(listener) == ["join"]
        await talk.ask(unsubscribe={"channel": "c"})
        await trio.sleep(HOLD * 0.9)
        assert await heard(listener) == []
        await trio.sleep(HOLD * 0.2)
        assert await heard(listener) == ["leave"]


@pytest.mark.parametrize("member", [False, True])
async def test_what_cancels_out_is_not_announced(autojump_clock: MockClock, member: bool) -> None:
    """A join and a leave, or a leave and a join, of one client within 100 ms: nobody hears."""
    async with listening() as (node, listener), talking(node) as talk:
        if member:
            await talk.subscribe()
            await trio.sleep(1)
            await heard(listener)
        for _ in range(3):
            if member:
                await talk.ask(unsubscribe={"channel": "c"})
                await trio.sleep(HOLD / 2)
                await talk.subscribe()
            else:
                await talk.subscribe()
                await trio.sleep(HOLD / 2)
                await talk.ask(unsubscribe={"channel": "c"})
        await trio.sleep(1)
        assert await heard(listener) == []
        present = {listener.client.id, *([talk.client.id] if member else [])}
        assert set(await members(node)) == present
        if member:
            await talk.ask(unsubscribe={"channel": "c"})
            await trio.sleep(1)
            assert await heard(listener) == ["leave"]


async def test_a_flood_of_joins_and_leaves_is_not_multiplied(autojump_clock: MockClock) -> None:
    """800 pairs in one message cause no announcement; the client that stays is announced once."""
    async with listening() as (node, listener), talking(node) as talk:
        talk.client.throttle = None
        commands: list[dict[str, Any]] = []
        for number in range(1, 200, 2):
            commands.append({"id": number, "subscribe": {"channel": "c"}})
            commands.append({"id": number + 1, "unsubscribe": {"channel": "c"}})
        commands.append({"id": 1_000, "subscribe": {"channel": "c"}})
        await talk.say(*commands)
        await trio.sleep(1)
        assert await heard(listener) == ["join"]


async def test_a_connection_that_ends_at_once_is_not_announced(autojump_clock: MockClock) -> None:
    """A client that connects, subscribes and is gone within 100 ms leaves no trace."""
    async with listening() as (node, listener):
        async with talking(node) as talk:
            await talk.subscribe()
        await trio.sleep(1)
        assert await heard(listener) == []
        assert not node.attendance._announcements._held


async def test_a_join_comes_before_the_first_message(autojump_clock: MockClock) -> None:
    """A member that publishes at once is announced at once, before its message."""
    async with listening() as (node, listener), talking(node) as talk:
        await talk.say(
            {"id": 1, "subscribe": {"channel": "c"}},
            {"id": 2, "publish": {"channel": "c", "data": 7}},
            {"id": 3, "publish": {"channel": "c", "data": 8}},
        )
        assert await heard(listener) == ["join", "7", "8"]
        await talk.ask(unsubscribe={"channel": "c"})
        await trio.sleep(1)
        assert await heard(listener) == ["leave"]


async def test_each_client_is_held_by_itself(autojump_clock: MockClock) -> None:
    """Clients that come one after the other are announced in order, each after its own time."""
    async with listening() as (node, listener), talking(node) as one, talking(node) as other:
        await one.subscribe()
        await trio.sleep(HOLD * 0.6)
        await other.subscribe()
        await trio.sleep(HOLD * 0.6)
        joins = await listener.pushes("join")
        assert [join["info"]["client"] for join in joins] == [one.client.id]
        await trio.sleep(HOLD * 0.6)
        joins = await listener.pushes("join")
        assert [join["info"]["client"] for join in joins] == [other.client.id]


async def test_an_announcement_has_a_deadline(autojump_clock: MockClock) -> None:
    """A broker that takes no announcement holds up the others for the publish timeout each."""

    class Stuck(TestBroker):
        stuck = True

        def announce(self, announcement: Announcement) -> None:
            if self.stuck:
                raise trio.WouldBlock
            super().announce(announcement)

        async def wait_room(self) -> None:
            if self.stuck:
                await trio.sleep_forever()
            await super().wait_room()

    broker = Stuck()
    options = NodeOptions(insecure=True, channel=OPTIONS.channel, publish_timeout=2)
    async with open_node(options, broker=broker) as node, talking(node) as talk:
        begin = trio.current_time()
        assert await talk.subscribe() == {}
        assert trio.current_time() == begin  # the reply does not wait for the announcement
        await trio.sleep(2.05)
        assert node.broker_errors["announce"] == 0
        await trio.sleep(0.1)
        assert node.broker_errors["announce"] == 1
        broker.stuck = False
        async with talking(node) as other:
            await other.subscribe()
            await trio.sleep(1)
            assert "join" in await heard(talk)


@pytest.mark.parametrize("how", ["gone", "unsubscribed"])
async def test_a_member_that_left_is_freed(autojump_clock: MockClock, how: str) -> None:
    """A closed connection with presence and announcements is freed without a garbage collector."""
    async with listening() as (node, _):

        async def live() -> None:
            async with talking(node) as talk:
                await talk.subscribe()
                await trio.sleep(1)
                if how == "unsubscribed":
                    await talk.ask(unsubscribe={"channel": "c"})

        gc.collect()
        before = living_clients()  # the listener, and what pytest still holds of earlier tests
        gc.disable()
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(live)
            await trio.sleep(1)
            await wait_all_tasks_blocked()
            assert len(living_clients()) == len(before)
        finally:
            gc.enable()
