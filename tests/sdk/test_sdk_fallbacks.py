"""The JavaScript SDK without a WebSocket: by EventSource and by a streamed response.

In Chromium the page is of another origin than the server, so the browser asks for leave first. Node
has its EventSource from a package, in two versions: the SDK's own suite runs on the older one.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from repeater.errors import FORCE_DISCONNECT, NO_PONG
from repeater.options import ChannelOptions
from tests.relay import Relay, first_event_joined
from tests.sdk.harness import SDK, CallError, Reached, only_client, ping, publish, running

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.parametrize(
        ("driver", "transport"),
        [
            ("node", "sse"),
            ("node", "sse by eventsource 2"),
            ("node", "http_stream"),
            ("node-protobuf", "http_stream"),
            ("chromium", "sse"),
            ("chromium", "http_stream"),
            ("chromium-protobuf", "http_stream"),
        ],
        indirect=["driver"],
    ),
]

KEPT = ChannelOptions(history_size=100, history_ttl=60, force_recovery=True)


def fallback(server: Reached, transport: str) -> dict[str, Any]:
    """The SDK's options for this transport alone."""
    base = f"http://127.0.0.1:{server.port}"
    transport, _, package = transport.partition(" by ")
    return {
        "eventsource": package,
        "transports": [{"transport": transport, "endpoint": f"{base}/connection/{transport}"}],
        "emulationEndpoint": f"{base}/emulation",
    }


async def test_a_conversation(sdk: SDK, transport: str) -> None:
    """Subscribe, publish, hear, ask, be refused, and leave: as over a WebSocket."""
    async with running() as server, sdk.client(server, **fallback(server, transport)) as client:
        await client.subscribe("news")
        await client.call("publish", channel="news", data={"n": "é\n"})
        heard = await client.heard("publication", "news")
        assert (heard["data"], heard["offset"]) == ({"n": "é\n"}, 1)
        assert heard["info"]["client"] == only_client(server).id
        await publish(server, "news", *range(50))
        assert await client.data("news", 50) == list(range(50))
        history = await client.call("history", channel="news", options={"limit": 2})
        assert [one["offset"] for one in history["publications"]] == [1, 2]
        with pytest.raises(CallError) as caught:
            await client.call("rpc", method="any", data={})
        assert caught.value.code == 108
        await client.call("unsubscribe", channel="news")
        await client.call("disconnect")
        assert (await client.heard("disconnected"))["code"] == 0


async def test_what_was_missed_is_recovered(sdk: SDK, transport: str) -> None:
    """Cut three times: back each time with everything published meanwhile, once and in order."""
    async with (
        running(channel=KEPT) as server,
        sdk.client(server, **fallback(server, transport)) as client,
    ):
        await client.subscribe("news")
        for turn in range(3):
            only_client(server).cut(NO_PONG)
            await publish(server, "news", [turn, "away"])
            await client.heard("connected")
            again = await client.heard("subscribed", "news")
            assert (again["was_recovering"], again["recovered"]) == (True, True)
            await publish(server, "news", [turn, "after"])
            assert await client.data("news", 2) == [[turn, "away"], [turn, "after"]]


async def test_pings_are_answered(sdk: SDK, transport: str) -> None:
    """The SDK's pongs come by requests of their own, and keep the session."""
    async with running() as server, sdk.client(server, **fallback(server, transport)) as client:
        mine = only_client(server)
        await client.subscribe("news")
        for _ in range(2):
            await ping(mine)
            await publish(server, "news", 1)
            await client.heard("publication", "news")
            assert mine.end is None
        assert not client.waiting("disconnected")


async def test_the_server_may_end_it_for_good(sdk: SDK, transport: str) -> None:
    """A terminal disconnect is the stream's last message, and the SDK stays away."""
    async with running() as server, sdk.client(server, **fallback(server, transport)) as client:
        only_client(server).disconnect(FORCE_DISCONNECT)
        ended = await client.heard("disconnected")
        assert (ended["code"], ended["reason"]) == (3503, "force disconnect")


async def test_a_restarted_server(sdk: SDK, transport: str) -> None:
    """The session is gone with the server; the SDK makes another one."""
    async with AsyncExitStack() as stack:
        async with running() as server:
            port = server.port
            client = await stack.enter_async_context(
                sdk.client(server, **fallback(server, transport))
            )
            await client.subscribe("news")
        await client.heard("connecting")
        async with running(port=port) as server:
            await client.heard("connected")
            await client.heard("subscribed", "news")
            await publish(server, "news", "again")
            assert await client.data("news", 1) == ["again"]


async def test_the_first_bytes_in_one_segment(
    sdk: SDK, transport: str, nursery: trio.Nursery
) -> None:
    """The connect reply arrives behind the stream's head and opening, as a busy network does it."""
    async with running() as server:
        relay = Relay([server.port], first_event_joined)
        await nursery.start(relay.run)
        async with sdk.client(relay, **fallback(relay, transport)) as client:
            await client.subscribe("news")
            await publish(server, "news", 1)
            assert await client.data("news", 1) == [1]
