"""Every SDK with tokens: who it is, what it may hear, and how it stays."""

from __future__ import annotations

import time
from typing import Any

import pytest

from repeater.errors import NO_PONG
from repeater.options import ChannelOptions
from tests.sdk.harness import SDK, only_client, publish, running, sign

pytestmark = pytest.mark.sdk

SECRET = "a secret of at least thirty-two bytes"
# The name of the setting that verifies HS256 tokens; everything else here is the protocol's.
SETTINGS: dict[str, Any] = {"token": {"hmac_secret_key": SECRET}}
KEPT = ChannelOptions(
    history_size=100,
    history_ttl=60,
    force_recovery=True,
    presence=True,
    allow_subscribe_for_client=True,
    allow_presence_for_subscriber=True,
)
CLOSED: dict[str, Any] = {"settings": SETTINGS, "insecure": False, "channel": KEPT}


def token(seconds: float = 60, **claims: Any) -> str:
    """A token of user 42 that expires so many seconds from now."""
    return sign({"sub": "42", "exp": int(time.time() + seconds), **claims}, SECRET)


async def test_a_token_says_who_it_is(sdk: SDK) -> None:
    """The user and the info of the token are what presence shows of the client."""
    async with (
        running(**CLOSED) as server,
        sdk.client(server, token=token(info={"name": "Ada"})) as client,
    ):
        await client.subscribe("news")
        (present,) = (await client.call("presence", channel="news")).values()
        assert (present["user"], present["conn_info"]) == ("42", {"name": "Ada"})


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        sign({"sub": "42"}, "another secret of at least 32 bytes"),
        token(channel="news"),
        "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiI0MiJ9.",
    ],
    ids=["garbled", "forged", "subscription", "none"],
)
async def test_a_bad_token_is_final(sdk: SDK, bad: str) -> None:
    """Sent away with 3500, for good."""
    async with (
        running(**CLOSED) as server,
        sdk.client(server, connect=False, token=bad) as client,
    ):
        await client.call("connect")
        assert (await client.heard("disconnected"))["code"] == 3500


async def test_an_expired_token_is_replaced(sdk: SDK) -> None:
    """Error 109: the SDK asks its callback for another, and is in."""
    async with (
        running(**CLOSED) as server,
        sdk.client(server, connect=False, token=token(-60), tokens=[token()]) as client,
    ):
        await client.call("connect")
        await client.heard("token")
        await client.heard("connected")


async def test_a_token_is_refreshed_in_time(sdk: SDK) -> None:
    """The SDK refreshes before the token ends, and the connection is never lost."""
    async with (
        running(**CLOSED) as server,
        sdk.client(server, connect=False, tokens=[token(2), token()]) as client,
    ):
        await client.call("connect")
        await client.heard("token")
        await client.heard("connected")
        await client.heard("token")
        await client.subscribe("news")
        assert not client.waiting("connected")
        assert len(client.waiting("connecting")) == 1


async def test_a_private_channel(sdk: SDK) -> None:
    """Without a token 103; with one of this user and channel it is subscribed."""
    async with running(**CLOSED) as server, sdk.client(server, token=token()) as client:
        await client.call("subscribe", channel="$none", options={})
        assert (await client.heard("unsubscribed", "$none"))["code"] == 103
        await client.subscribe("$given", token=token(channel="$given"))
        await client.subscribe("$fetched", tokens=[token(channel="$fetched")])
        await publish(server, "$fetched", 1)
        assert await client.data("$fetched", 1) == [1]


@pytest.mark.needs("a new token for a subscription")
async def test_an_expired_subscription_token_is_replaced(sdk: SDK) -> None:
    """Error 109 for one subscription: the SDK asks the callback, and is subscribed."""
    async with running(**CLOSED) as server, sdk.client(server, token=token()) as client:
        old, new = token(-60, channel="$c"), token(channel="$c")
        await client.subscribe("$c", token=old, tokens=[new])
        await client.heard("token", "$c")


async def test_a_subscription_token_is_refreshed_in_time(sdk: SDK) -> None:
    """The SDK refreshes before it ends, and the subscription is never lost."""
    async with running(**CLOSED) as server, sdk.client(server, token=token()) as client:
        await client.subscribe("$c", tokens=[token(2, channel="$c"), token(channel="$c")])
        await client.heard("token", "$c")
        await client.heard("token", "$c")
        await publish(server, "$c", 1)
        assert await client.data("$c", 1) == [1]
        assert not client.waiting("unsubscribed")
        assert len(client.waiting("subscribing", "$c")) == 1


async def test_a_server_side_subscription(sdk: SDK) -> None:
    """A channel of the token is heard without asking, and recovered like any other."""
    async with (
        running(**CLOSED) as server,
        sdk.client(server, connect=False, token=token(channels=["inbox"])) as client,
    ):
        await client.call("connect")
        first = await client.heard("subscribed", "inbox")
        assert (first["recoverable"], first["was_recovering"]) == (True, False)
        await publish(server, "inbox", 1)
        assert await client.data("inbox", 1) == [1]
        only_client(server).cut(NO_PONG)
        await publish(server, "inbox", 2, 3)
        again = await client.heard("subscribed", "inbox")
        assert (again["was_recovering"], again["recovered"]) == (True, True)
        await publish(server, "inbox", 4)
        assert await client.data("inbox", 3) == [2, 3, 4]


@pytest.mark.needs("a new token for a subscription")
@pytest.mark.parametrize(("claim", "seconds"), [("exp", -60), ("nbf", 60)])
async def test_a_subscription_survives_a_refresh_by_a_late_token(
    sdk: SDK, claim: str, seconds: int
) -> None:
    """One that has expired, or is not valid yet: the SDK subscribes again with another one."""
    async with running(**CLOSED) as server, sdk.client(server, token=token()) as client:
        # The time is asked now: the tests were collected some minutes ago.
        bad = token(channel="$c", **{claim: int(time.time()) + seconds})
        tokens = [token(2, channel="$c"), bad, token(channel="$c")]
        await client.subscribe("$c", tokens=tokens)
        again = await client.heard("subscribing", "$c")
        while again["code"] != 2501:
            again = await client.heard("subscribing", "$c")
        await client.heard("subscribed", "$c")
        await publish(server, "$c", 1)
        assert await client.data("$c", 1) == [1]
        assert not client.waiting("unsubscribed")
        assert not client.waiting("disconnected")
        assert len(client.waiting("connecting")) == 1


async def test_a_connection_survives_a_refresh_by_an_expired_token(sdk: SDK) -> None:
    """3005: the SDK comes back, with another token."""
    async with (
        running(**CLOSED) as server,
        sdk.client(server, connect=False, tokens=[token(2), token(-60), token()]) as client,
    ):
        await client.call("connect")
        await client.heard("connected")
        await client.heard("connected")
        assert not client.waiting("disconnected")


async def test_a_bad_subscription_token_costs_its_subscription(sdk: SDK) -> None:
    """103 for that one; the connection and the others live on."""
    forged = sign({"sub": "42", "channel": "$bad"}, "another secret of at least 32 bytes")
    async with running(**CLOSED) as server, sdk.client(server, token=token()) as client:
        await client.subscribe("news")
        await client.call("subscribe", channel="$bad", options={"token": forged})
        assert (await client.heard("unsubscribed", "$bad"))["code"] == 103
        await publish(server, "news", 1)
        assert await client.data("news", 1) == [1]
        assert not client.waiting("disconnected")


async def test_an_expired_date_of_a_token_is_replaced(sdk: SDK) -> None:
    """A past `expire_at` is 109 like a past `exp`."""
    past = {"expire_at": int(time.time()) - 60}
    async with (
        running(**CLOSED) as server,
        sdk.client(server, connect=False, token=token(**past), tokens=[token()]) as client,
    ):
        await client.call("connect")
        await client.heard("connected")


@pytest.mark.needs("a new token for a subscription")
async def test_an_expired_date_of_a_subscription_token_is_replaced(sdk: SDK) -> None:
    """A past `expire_at` is 109 like a past `exp`."""
    past = {"expire_at": int(time.time()) - 60}
    async with running(**CLOSED) as server, sdk.client(server, token=token()) as client:
        tokens = [token(channel="$c")]
        await client.subscribe("$c", token=token(channel="$c", **past), tokens=tokens)
