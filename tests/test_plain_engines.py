"""A plain subscriber begins in the past in whatever keeps the streams: a disk, workers, Valkey."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from repeater.brokers.contract import Broker
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication
from repeater.testing import open_test_node
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url
from tests.deadlines import LOOP_ANSWERS
from tests.plain_readers import Reader
from tests.valkeys import VALKEY, valkey
from tests.worker_links import supervising

OPTIONS = NodeOptions(channel=ChannelOptions(history_size=5, history_ttl=600))


@asynccontextmanager
async def engine(kind: str, folder: Path) -> AsyncIterator[Broker]:
    match kind:
        case "sqlite":
            async with open_sqlite_broker(folder) as broker:
                yield broker
        case "worker":
            async with supervising() as supervisor, supervisor.worker() as link:
                yield link.broker
        case "valkey":
            with valkey(VALKEY) as server:
                servers = open_servers([parse_url(server.unix_url)], timeout=LOOP_ANSWERS)
                yield ValkeyBroker(servers, idempotency_ttl=5)
        case _:
            yield MemoryBroker()


async def heard(reader: Reader, count: int) -> list[object]:
    while len(found := reader.read()) < count:  # noqa: ASYNC110  # nobody tells
        await trio.sleep(0.005)
    return found


async def began(node: Node, since: str) -> list[object]:
    """What a client gets at once."""
    reader = Reader("ws", "a", "b", since=since)
    async with reader.connected(node):
        return reader.read()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["memory", "sqlite", "worker", "valkey"])
async def test_every_engine_has_a_past(kind: str, tmp_path: Path) -> None:
    """All of it, the newest, and those since a time; what is gone is said; then live events."""
    async with (
        engine(kind, tmp_path) as broker,
        open_test_node(OPTIONS, broker=broker) as node,
    ):
        for number in range(4):
            await node.publish(Publication("a", json.dumps(number).encode()))
        while (await node.history("b"))[1].offset == 0:
            await node.publish(Publication("b", b'"b"', tags={"k": "v"}))
        assert await began(node, "start") == [0, 1, 2, 3, "b"]
        assert await began(node, "last:2") == [2, 3, "b"]
        (*_, newest), _ = await node.history("b")
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=newest.time + 1)
        await trio.sleep(0.01)
        await node.publish(Publication("a", b"4"))
        assert await began(node, f"time:{at.isoformat()}") == [4]
        reader = Reader("ws", "a", "b", since="start")
        async with reader.connected(node):
            await heard(reader, 6)
            await node.publish(Publication("a", b"5"))
            assert await heard(reader, 7) == [0, 1, 2, 3, 4, "b", 5]
        await node.publish(Publication("a", b"6"))
        async with reader.connected(node, by_since=True):
            assert (await heard(reader, 8))[-1] == 6
        assert await began(node, "start") == [("a",), 2, 3, 4, 5, 6, "b"]
