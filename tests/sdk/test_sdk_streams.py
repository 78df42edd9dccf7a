"""Every SDK on channels with history: reading it, coming back to it, and differences."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from repeater.errors import NO_PONG
from repeater.options import ChannelOptions
from repeater.serving.server import Server
from tests.sdk.harness import SDK, CallError, Peer, only_client, publish, running
from tests.working import Workers

pytestmark = pytest.mark.sdk

KEPT = ChannelOptions(history_size=100, history_ttl=60, force_recovery=True)


async def miss(server: Server | Workers, client: Peer, channel: str, *data: Any) -> None:
    """Cut the client's connection, publish while it is away, wait until it is back."""
    only_client(server).cut(NO_PONG)
    await publish(server, channel, *data)
    await client.heard("connected")


async def test_history_is_read(sdk: SDK) -> None:
    """From its begin, from a position, backwards; without a limit only the position."""
    async with running(channel=KEPT) as server, sdk.client(server) as client:
        await publish(server, "news", *range(1, 6))

        async def read(**options: Any) -> tuple[list[Any], list[int]]:
            result = await client.call("history", channel="news", options=options)
            assert result["offset"] == 5
            publications = result["publications"]
            return [one["data"] for one in publications], [one["offset"] for one in publications]

        top = await client.call("history", channel="news", options={})
        assert top["publications"] == []
        assert await read(limit=2) == ([1, 2], [1, 2])
        since = {"offset": 2, "epoch": top["epoch"]}
        assert await read(limit=2, since=since) == ([3, 4], [3, 4])
        assert await read(limit=2, reverse=True) == ([5, 4], [5, 4])
        assert await read(limit=10, since=since, reverse=True) == ([1], [1])


async def test_history_of_another_epoch(sdk: SDK) -> None:
    """A position of a stream that is gone raises 112."""
    async with running(channel=KEPT) as server, sdk.client(server) as client:
        await publish(server, "news", 1)
        options = {"limit": 1, "since": {"offset": 1, "epoch": "gone"}}
        with pytest.raises(CallError) as caught:
            await client.call("history", channel="news", options=options)
        assert caught.value.code == 112


async def test_what_was_missed_is_recovered(sdk: SDK) -> None:
    """Back after a dropped connection: everything published meanwhile, once and in order."""
    async with running(channel=KEPT) as server, sdk.client(server) as client:
        first = await client.subscribe("news")
        assert (first["recoverable"], first["was_recovering"]) == (True, False)
        await publish(server, "news", 1)
        assert await client.data("news", 1) == [1]
        await miss(server, client, "news", 2, 3, 4)
        again = await client.heard("subscribed", "news")
        assert (again["was_recovering"], again["recovered"]) == (True, True)
        await publish(server, "news", 5)
        assert await client.data("news", 4) == [2, 3, 4, 5]
        assert not client.waiting("publication")


async def test_recovery_time_after_time(sdk: SDK) -> None:
    """Ten drops with publications before, during and after each: no loss, nothing doubled."""
    async with running(channel=KEPT) as server, sdk.client(server) as client:
        await client.subscribe("news")
        for turn in range(10):
            await publish(server, "news", [turn, "before"])
            await miss(server, client, "news", [turn, "away"])
            await publish(server, "news", [turn, "after"])
        expected = [[turn, when] for turn in range(10) for when in ("before", "away", "after")]
        assert await client.data("news", 30) == expected
        assert not client.waiting("publication")
        assert all(one["recovered"] for one in client.waiting("subscribed"))


async def test_nothing_missed_is_recovered_too(sdk: SDK) -> None:
    """Back before anything was published: recovered, with nothing in it."""
    async with running(channel=KEPT) as server, sdk.client(server) as client:
        await publish(server, "news", 1)
        await client.subscribe("news")
        await miss(server, client, "news")
        assert (await client.heard("subscribed", "news"))["recovered"]
        await publish(server, "news", 2)
        assert await client.data("news", 1) == [2]


async def test_history_too_short_is_told(sdk: SDK) -> None:
    """More missed than the history keeps: told so, given none of it, and heard on."""
    short = ChannelOptions(history_size=2, history_ttl=60, force_recovery=True)
    async with running(channel=short) as server, sdk.client(server) as client:
        await client.subscribe("news")
        await publish(server, "news", 0)
        await client.data("news", 1)
        await miss(server, client, "news", 1, 2, 3, 4, 5)
        again = await client.heard("subscribed", "news")
        assert (again["was_recovering"], again["recovered"]) == (True, False)
        assert again["position"]["offset"] == 6
        await publish(server, "news", "live")
        assert await client.data("news", 1) == ["live"]


async def test_a_new_epoch_is_told(sdk: SDK) -> None:
    """After a restart that lost the streams nothing is claimed to be recovered."""
    async with AsyncExitStack() as stack:
        async with running(channel=KEPT) as server:
            client = await stack.enter_async_context(sdk.client(server))
            await client.subscribe("news")
            await publish(server, "news", 1, 2)
            assert await client.data("news", 2) == [1, 2]
        async with running(port=server.port, channel=KEPT) as server:
            await publish(server, "news", "a", "b", "c")  # Past the offset that the client has.
            again = await client.heard("subscribed", "news")
            assert (again["was_recovering"], again["recovered"]) == (True, False)
            await publish(server, "news", "last")
            heard = await client.data("news", 1)
            while heard[-1] != "last":
                heard += await client.data("news", 1)
            # Back before, between or after the first three.
        assert heard == ["a", "b", "c", "last"][-len(heard) :]


async def test_asked_for_and_not_allowed(sdk: SDK) -> None:
    """A client that asks for recovery where it is not allowed subscribes without it."""
    plain = ChannelOptions(allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True)
    changes: dict[str, Any] = {"insecure": False, "allow_anonymous": True, "channel": plain}
    async with running(**changes) as server, sdk.client(server) as client:
        assert not (await client.subscribe("news", recoverable=True))["recoverable"]


async def test_cache_recovery_brings_the_newest(sdk: SDK) -> None:
    """In cache mode a client that comes back gets the newest publication, and no other."""
    cache = ChannelOptions(
        history_size=1, history_ttl=60, force_recovery=True, force_recovery_mode="cache"
    )
    async with running(channel=cache) as server, sdk.client(server) as client:
        await client.subscribe("price")
        await publish(server, "price", 1)
        await client.data("price", 1)
        await miss(server, client, "price", 2, 3, 4)
        assert (await client.heard("subscribed", "price"))["recovered"]
        await publish(server, "price", 5)
        assert await client.data("price", 2) == [4, 5]
        assert not client.waiting("publication")


async def test_cache_recovery_of_a_first_visit(sdk: SDK) -> None:
    """With `auto_cache_recover` a new subscriber begins with the newest publication."""
    cache = ChannelOptions(
        history_size=1,
        history_ttl=60,
        force_recovery=True,
        force_recovery_mode="cache",
        auto_cache_recover=True,
    )
    async with running(channel=cache) as server, sdk.client(server) as client:
        await publish(server, "price", 1, 2)
        await client.subscribe("price")
        assert await client.data("price", 1) == [2]


@pytest.mark.needs("deltas")
async def test_differences_are_put_together(sdk: SDK) -> None:
    """Sent as Fossil deltas the SDK gives out whole data, over a dropped connection as well."""
    delta = ChannelOptions(
        history_size=100,
        history_ttl=60,
        force_recovery=True,
        allowed_delta_types=frozenset({"fossil"}),
        delta_publish=True,
    )
    text = "all of this text is the same each time, and é is two bytes. " * 10
    values = [{"text": text, "count": count, "é": "\U0001f600" * count} for count in range(12)]
    async with running(channel=delta) as server, sdk.client(server) as client:
        await client.subscribe("news", delta="fossil")
        golden = [{"title": "hello world", "count": count} for count in (1, 2)]
        await publish(server, "news", *golden)  # (protocol, appendix A)
        assert await client.data("news", 2) == golden
        await publish(server, "news", *values[:4])
        assert await client.data("news", 4) == values[:4]
        await miss(server, client, "news", *values[4:8])
        assert (await client.heard("subscribed", "news"))["recovered"]
        await publish(server, "news", *values[8:], "something else altogether")
        assert await client.data("news", 9) == [*values[4:], "something else altogether"]


@pytest.mark.needs("deltas")
async def test_delta_where_it_is_not_allowed(sdk: SDK) -> None:
    """A client that asks for deltas and is not granted them reads plain data."""
    async with running(channel=KEPT) as server, sdk.client(server) as client:
        await client.subscribe("news", delta="fossil")
        await publish(server, "news", {"a": 1}, {"a": 2})
        assert await client.data("news", 2) == [{"a": 1}, {"a": 2}]


@pytest.mark.needs("tags filters")
async def test_tags_are_filtered(sdk: SDK) -> None:
    """Only publications with matching tags arrive; a gap in their offsets is not a loss."""
    filtered = ChannelOptions(
        history_size=100, history_ttl=60, force_recovery=True, allow_tags_filter=True
    )
    either = {
        "op": "or",
        "nodes": [
            {"key": "ticker", "cmp": "eq", "val": "AAA"},
            {"key": "price", "cmp": "gte", "val": "100"},
        ],
    }
    async with running(channel=filtered) as server, sdk.client(server) as client:
        await client.subscribe("prices", tags_filter=either)
        await publish(server, "prices", 1, tags={"ticker": "AAA"})
        await publish(server, "prices", 2, tags={"ticker": "BBB", "price": "99"})
        await publish(server, "prices", 3)
        await publish(server, "prices", 4, tags={"ticker": "BBB", "price": "100.5"})
        assert await client.data("prices", 2) == [1, 4]
        assert not client.waiting("unsubscribed")


@pytest.mark.needs("tags filters")
async def test_tags_filter_where_it_is_not_allowed(sdk: SDK) -> None:
    """The subscription is given up with 107."""
    async with running() as server, sdk.client(server) as client:
        leaf = {"key": "ticker", "cmp": "eq", "val": "AAA"}
        await client.call("subscribe", channel="prices", options={"tags_filter": leaf})
        assert (await client.heard("unsubscribed", "prices"))["code"] == 107
