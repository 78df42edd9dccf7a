"""Feeds with a durable history, inside a worker, and on an engine that nodes share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.clients.feed import Feed
from repeater.config import given_settings
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import StreamPosition
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS
from tests.valkeys import valkey
from tests.working import open_workers

OPTIONS = NodeOptions(insecure=True, channel=ChannelOptions(history_size=1_000))


@asynccontextmanager
async def durable(folder: Path) -> AsyncIterator[list[Node]]:
    async with open_sqlite_broker(folder) as broker, open_node(OPTIONS, broker=broker) as node:
        yield [node, node]


@asynccontextmanager
async def workers(_folder: Path) -> AsyncIterator[list[Node]]:
    async with open_workers(given_settings(OPTIONS, port=0)) as both:
        yield list(both.nodes)


@asynccontextmanager
async def shared(_folder: Path) -> AsyncIterator[list[Node]]:
    with valkey() as server:
        async with AsyncExitStack() as stack:
            nodes = []
            for _ in range(2):
                servers = open_servers([parse_url(server.unix_url)], timeout=LOOP_ANSWERS)
                node = open_node(OPTIONS, broker=ValkeyBroker(servers))
                nodes.append(await stack.enter_async_context(node))
            yield nodes


async def numbers(feed: Feed, last: int) -> list[int]:
    """What the feed gives up to this number."""
    found: list[int] = []
    with trio.fail_after(LOOP_ANSWERS):
        async for publication in feed:
            found.append(int(publication.data))
            if found[-1] == last:
                break
    return found


@pytest.mark.parametrize("opened", [durable, workers, shared], ids=lambda opened: opened.__name__)
async def test_each_once_and_in_order(opened: object, tmp_path: Path) -> None:
    """From the beginning of the block on, whoever publishes; behind by more than fits, too."""
    async with opened(tmp_path) as (here, there):  # type: ignore[operator]
        await there.publish("news", 0)
        async with here.listen("news", limit=1_000) as feed:
            for number in range(1, 100):
                await (here, there)[number % 2].publish("news", number)
            assert await numbers(feed, 99) == list(range(1, 100))
            await there.publish("news", 100)
            assert await numbers(feed, 100) == [100]
        again = here.listen("news", since=StreamPosition(90, ""))
        await there.publish("news", 101)
        assert await numbers(again, 101) == list(range(90, 102))
        del again


@pytest.mark.parametrize("opened", [durable, workers], ids=lambda opened: opened.__name__)
async def test_what_the_program_publishes_itself_after_the_call(
    opened: object, tmp_path: Path
) -> None:
    """It is heard without a block, too: an engine in this process, and a supervisor, keep order."""
    async with opened(tmp_path) as (here, _):  # type: ignore[operator]
        for channel in ("a", "b", "c"):
            feed = here.listen(channel)
            await here.publish(channel, 1)
            await here.publish(channel, 2)
            assert await numbers(feed, 2) == [1, 2]
