"""Every SDK, unmodified: connect, subscribe, publish, receive, leave, and come back."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from repeater.errors import BAD_REQUEST, NO_PONG, Disconnect
from repeater.options import ChannelOptions
from repeater.publication import Publication
from tests.sdk.harness import SDK, CallError, only_client, ping, publish, running

pytestmark = pytest.mark.sdk

LISTEN_ONLY: dict[str, Any] = {
    "insecure": False,
    "allow_anonymous": True,
    "channel": ChannelOptions(allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True),
    "namespaces": {"closed": ChannelOptions()},
}


async def test_a_client_hears_itself(sdk: SDK) -> None:
    """What a subscriber publishes comes back to it, numbered and with its own id."""
    async with running() as server, sdk.client(server, connect=False) as client:
        await client.call("connect")
        connected = await client.heard("connected")
        await client.subscribe("news")
        await client.call("publish", channel="news", data={"n": 1})
        heard = await client.heard("publication", "news")
        assert heard["data"] == {"n": 1}
        assert heard["offset"] == 1
        assert heard["info"]["client"] == connected["id"] == only_client(server).id
        assert heard["info"]["user"] == ""


async def test_data_arrives_as_it_was_published(sdk: SDK) -> None:
    """Whatever JSON a back end publishes, the SDK decodes to the same value."""
    values = [
        0,
        -1.5,
        True,
        "",
        "é\u2028\U0001f600\n",
        [],
        {},
        {"a": [1, {"b": None}]},
        "x" * 50_000,
    ]
    async with running() as server, sdk.client(server) as client:
        await client.subscribe("news")
        await publish(server, "news", *values, tags={"kind": "é"})
        for value in values:
            heard = await client.heard("publication", "news")
            assert (heard["data"], heard["tags"], heard["info"]) == (value, {"kind": "é"}, None)


async def test_pretty_printed_data(sdk: SDK) -> None:
    """Newlines between tokens do not break a message apart."""
    async with running() as server, sdk.client(server) as client:
        await client.subscribe("news")
        await server.node.publish(Publication("news", b'{\n  "a": 1,\r\n  "b": "\\n"\n}'))
        assert await client.data("news", 1) == [{"a": 1, "b": "\n"}]


async def test_order_and_two_listeners(sdk: SDK) -> None:
    """Two hundred publications reach both subscribers, all of them and in order."""
    async with (
        running() as server,
        sdk.client(server) as one,
        sdk.client(server) as other,
    ):
        await one.subscribe("news")
        await other.subscribe("news")
        await publish(server, "news", *range(200))
        assert await one.data("news", 200) == await other.data("news", 200) == [*range(200)]


async def test_unsubscribed_means_silence(sdk: SDK) -> None:
    """After unsubscribe nothing of the channel arrives; another one goes on."""
    async with running() as server, sdk.client(server) as client:
        await client.subscribe("news")
        await client.subscribe("sport")
        await client.call("unsubscribe", channel="news")
        await client.heard("unsubscribed", "news")
        await client.call("publish", channel="sport", data=1)  # Commands are taken in order.
        await publish(server, "news", 1)
        await publish(server, "sport", 2)
        assert await client.data("sport", 2) == [1, 2]
        assert not client.waiting("publication", "news")
        await client.subscribe("news")
        await publish(server, "news", 3)
        assert await client.data("news", 1) == [3]


async def test_subscriptions_made_before_the_connection(sdk: SDK) -> None:
    """Fifty subscriptions made before connect, which JavaScript pipelines, all work."""
    channels = [f"c{number}" for number in range(50)]
    async with running() as server, sdk.client(server, connect=False) as client:
        for channel in channels:
            await client.call("subscribe", channel=channel, options={})
        await client.call("connect")
        for channel in channels:
            await client.heard("subscribed", channel)
            await publish(server, channel, channel)
            assert await client.data(channel, 1) == [channel]


async def test_a_dropped_connection_is_made_again(sdk: SDK) -> None:
    """After an unannounced cut, the SDK comes back under a new id and subscribes again."""
    async with running() as server, sdk.client(server) as client:
        await client.subscribe("news")
        before = only_client(server).id
        only_client(server).cut(NO_PONG)
        assert (await client.heard("connected"))["id"] != before
        await client.heard("subscribed", "news")
        await publish(server, "news", "again")
        assert await client.data("news", 1) == ["again"]


async def test_a_restarted_server(sdk: SDK) -> None:
    """Told of the shutdown, the SDK tries until the next server is up, and subscribes again."""
    async with AsyncExitStack() as stack:
        async with running() as server:
            client = await stack.enter_async_context(sdk.client(server))
            await client.subscribe("news")
            await client.heard("connecting")
        assert (await client.heard("connecting"))["code"] == 3001
        async with running(port=server.port) as server:
            await client.heard("connected")
            await client.heard("subscribed", "news")
            await publish(server, "news", "again")
            assert await client.data("news", 1) == ["again"]


@pytest.mark.parametrize("end", [BAD_REQUEST, Disconnect(3503, "force disconnect")])
async def test_a_terminal_code_is_final(sdk: SDK, end: Disconnect) -> None:
    """Sent away with a code from 3500 on, the SDK stays away and tells why."""
    async with running() as server, sdk.client(server) as client:
        only_client(server).disconnect(end)
        heard = await client.heard("disconnected")
        assert (heard["code"], heard["reason"]) == (end.code, end.reason)
        assert len(client.waiting("connecting")) == 1


async def test_pings_are_answered(sdk: SDK) -> None:
    """A ping goes out and is answered: the client is the same as before."""
    async with running() as server, sdk.client(server) as client:
        mine = only_client(server)
        await ping(mine)
        assert only_client(server) is mine
        assert not client.waiting("connected")


@pytest.mark.parametrize(
    ("channel", "code"), [("closed:news", 103), ("unknown:news", 102), ("é", 107), ("x" * 300, 107)]
)
async def test_a_refused_subscription(sdk: SDK, channel: str, code: int) -> None:
    """The SDK gives the subscription up with our code, and the connection goes on."""
    async with running(**LISTEN_ONLY) as server, sdk.client(server) as client:
        await client.call("subscribe", channel=channel, options={})
        assert (await client.heard("unsubscribed", channel))["code"] == code
        await client.subscribe("news")


async def test_a_refused_publication(sdk: SDK) -> None:
    """Where clients may only listen, publish raises 103."""
    async with running(**LISTEN_ONLY) as server, sdk.client(server) as client:
        with pytest.raises(CallError) as caught:
            await client.call("publish", channel="news", data=1)
        assert caught.value.code == 103


async def test_rpc_is_not_available(sdk: SDK) -> None:
    """Without a handler every RPC raises 108, and the connection goes on."""
    async with running() as server, sdk.client(server) as client:
        with pytest.raises(CallError) as caught:
            await client.call("rpc", method="sum", data=[1, 2])
        assert caught.value.code == 108
        await client.subscribe("news")


@pytest.mark.needs("send")
async def test_send_is_not_available(sdk: SDK) -> None:
    """Without a handler an asynchronous message ends the connection with 3508, for good."""
    async with running() as server, sdk.client(server) as client:
        await client.call("send", data={"hi": 1})
        assert (await client.heard("disconnected"))["code"] == 3508


async def test_strangers_are_sent_away(sdk: SDK) -> None:
    """Where credentials are needed, a client without them hears 3501 and stays away."""
    async with (
        running(insecure=False) as server,
        sdk.client(server, connect=False) as client,
    ):
        await client.call("connect")
        assert (await client.heard("disconnected"))["code"] == 3501
