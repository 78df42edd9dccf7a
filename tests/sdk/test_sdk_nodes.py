"""Every SDK on two nodes behind one address, while one of them dies: it recovers on the other."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w
import trio

from tests.deadlines import PROCESS_STARTS
from tests.drill.links import Http
from tests.drill.target import call
from tests.processes import ServerProcess, serving
from tests.relay import Relay
from tests.sdk.harness import SDK
from tests.valkeys import valkey

pytestmark = [
    pytest.mark.sdk,
    # Each takes ten seconds, so one client stands for all that speak Protobuf.
    pytest.mark.parametrize("driver", ["python", "node", "chromium", "go-protobuf"], indirect=True),
]

_KEPT = {"history_size": 100, "history_ttl": 60, "force_recovery": True}
_DELTA = {**_KEPT, "allowed_delta_types": ["fossil"], "delta_publish": True}
_TEXT = "all of this text is the same each time, and é is two bytes. " * 10


@pytest.fixture
def workers() -> None:
    """One process each: the nodes are several already."""


class Nodes(NamedTuple):
    """Two nodes; clients go to the first one while it is there."""

    relay: Relay
    first: ServerProcess
    other_port: int

    async def publish(self, channel: str, *data: Any) -> None:
        """Publish by the node that stays."""
        async with await trio.open_tcp_stream("127.0.0.1", self.other_port) as stream:
            http = Http(stream)
            for one in data:
                await call(http, "publish", {"channel": channel, "data": one})


async def _wait_ready(port: int) -> None:
    """Wait until a node has reached the engine; until then it refuses everybody."""
    with trio.fail_after(PROCESS_STARTS):
        while True:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                if await Http(stream).request("GET", "/health/ready") == 200:
                    return
            await trio.sleep(0.05)


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[Nodes]:
    """Two processes on one engine, and the address of both."""
    file = folder / "repeater.toml"
    with valkey() as server:
        settings = {"dev": True, "api_key": "drill", "engine": "valkey", "engine_url": server.url}
        short, cache = {"history_size": 2}, {"force_recovery_mode": "cache", "history_size": 1}
        namespaces = {"short": {**_KEPT, **short}, "cache": {**_KEPT, **cache}, "delta": _DELTA}
        file.write_text(tomli_w.dumps({**settings, "channel": _KEPT, "namespaces": namespaces}))
        arguments = ("--config", str(file), "--host", "127.0.0.1")
        async with (
            serving(*arguments) as first,
            serving(*arguments) as other,
            trio.open_nursery() as nursery,
        ):
            ports = [await first.port(), await other.port()]
            for port in ports:
                await _wait_ready(port)
            relay = Relay(ports)
            await nursery.start(relay.run)
            yield Nodes(relay, first, ports[1])
            nursery.cancel_scope.cancel()


async def test_an_sdk_recovers_on_the_other_node(sdk: SDK, tmp_path: Path) -> None:
    """Everything once and in order, by history, cache and differences; what is lost is told."""
    values = [{"text": _TEXT, "count": count} for count in range(4)]
    async with two_nodes(tmp_path) as nodes, sdk.client(nodes.relay) as client:
        for channel in ("news", "short:news", "cache:price"):
            await client.subscribe(channel)
        await client.subscribe("delta:news", delta="fossil")
        for channel in ("news", "short:news", "cache:price"):
            await nodes.publish(channel, 0)
            assert await client.data(channel, 1) == [0]
        await nodes.publish("delta:news", *values[:2])
        assert await client.data("delta:news", 2) == values[:2]

        nodes.relay.hold()
        await nodes.first.end(signal.SIGKILL)
        for channel in ("news", "short:news", "cache:price"):
            await nodes.publish(channel, 1, 2, 3)
        await nodes.publish("delta:news", values[2])
        nodes.relay.let_in()

        for channel in ("news", "short:news", "cache:price", "delta:news"):
            again = await client.heard("subscribed", channel)
            assert (again["was_recovering"], again["recovered"]) == (True, channel != "short:news")
        for channel, expected in (("news", [1, 2, 3]), ("short:news", []), ("cache:price", [3])):
            await nodes.publish(channel, "live")
            assert await client.data(channel, len(expected) + 1) == [*expected, "live"]
        await nodes.publish("delta:news", values[3])
        assert await client.data("delta:news", 2) == values[2:]
        assert not client.waiting("publication")
