"""Every SDK at the hands of a back end: subscribed, unsubscribed, refreshed, sent away."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from repeater.api.methods import call
from repeater.options import ChannelOptions
from repeater.serving.server import Server
from tests.sdk.harness import SDK, publish, running
from tests.working import Workers

pytestmark = pytest.mark.sdk

RECOVERABLE = ChannelOptions(allow_recovery=True)


async def ask(server: Server | Workers, method: str, **body: Any) -> Any:
    """One call of the server API, as its HTTP routes make it."""
    answer = await call(server.node, method, msgspec.json.encode(body))
    return msgspec.json.decode(answer.body)["result"]


async def test_a_subscription_by_the_server(sdk: SDK) -> None:
    """It is told, gets what it missed and what comes, comes back to it, and loses it again."""
    async with running(channel=RECOVERABLE) as server, sdk.client(server) as client:
        position = await ask(server, "publish", channel="news", data=0)
        await publish(server, "news", 1, 2)
        since = {"offset": 1, "epoch": position["epoch"]}
        await ask(server, "subscribe", channel="news", data={"a": 1}, recover_since=since)
        await client.heard("subscribed", "news")
        await publish(server, "news", 3)
        assert await client.data("news", 3) == [1, 2, 3]
        await ask(server, "refresh", expire_at=2**40)
        await publish(server, "news", 4)
        assert await client.data("news", 1) == [4]
        await ask(server, "unsubscribe", channel="news")
        await client.heard("unsubscribed", "news")
        await publish(server, "news", 5)
        await ask(server, "disconnect")
        heard = await client.heard("disconnected")
        assert (heard["code"], heard["reason"]) == (3503, "force disconnect")
        assert not client.waiting("publication", "news")


async def test_an_own_subscription_ended_by_the_server(sdk: SDK) -> None:
    """It is unsubscribed for good, and the connection goes on."""
    async with running() as server, sdk.client(server) as client:
        await client.subscribe("news")
        await ask(server, "unsubscribe")
        heard = await client.heard("unsubscribed", "news")
        assert heard["code"] == 2000
        await client.subscribe("sport")
        await publish(server, "sport", 1)
        assert await client.data("sport", 1) == [1]


async def test_sent_away_for_now(sdk: SDK) -> None:
    """An expired connection, or one with a code below 3500, comes back by itself."""
    async with running() as server, sdk.client(server) as client:
        await ask(server, "refresh", expired=True)
        await client.heard("connected")
        await ask(server, "disconnect", disconnect={"code": 3011, "reason": "force reconnect"})
        await client.heard("connected")
