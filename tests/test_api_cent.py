"""The published `cent` library, unmodified, on every method that it has; both of its clients.

Every test has a server of one process, and one with two workers: nobody sees which.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import cent
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from repeater.config import Settings, load_settings
from repeater.serving.server import Server, open_server
from tests.deadlines import LOOP_ANSWERS
from tests.working import Workers, open_workers

T = TypeVar("T")
KEY = "secret"
SETTINGS = {
    "port": 0,
    "host": "127.0.0.1",
    "api_key": KEY,
    "allow_anonymous": True,
    "channel": {"presence": True, "allow_recovery": True, "allow_subscribe_for_client": True,
                "allow_subscribe_for_anonymous": True},
    "namespaces": {"bare": {"history_size": 0}},
}  # fmt: skip


Running = Callable[[], AbstractAsyncContextManager[Server | Workers]]


@pytest.fixture(params=[1, 2], ids=["process", "workers"])
def running(request: pytest.FixtureRequest) -> Running:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Server | Workers]:
        settings: Settings = load_settings(**SETTINGS)
        with trio.fail_after(LOOP_ANSWERS):
            workers: int = request.param
            async with open_server(settings) if workers == 1 else open_workers(settings) as server:
                yield server

    return opened


@asynccontextmanager
async def listening(server: Server | Workers) -> AsyncIterator[WebSocketConnection]:
    """An anonymous Centrifugo client."""
    host = f"127.0.0.1:{server.port}"
    async with trio.open_nursery() as nursery:
        # The stream is ours: the library leaves it open when the server hangs up first.
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            socket = await wrap_client_stream(nursery, stream, host, "/connection/websocket")
            await socket.send_message('{"connect":{},"id":1}')
            assert "connect" in json.loads(await socket.get_message())
            yield socket
        nursery.cancel_scope.cancel()


async def pushed(socket: WebSocketConnection) -> object:
    """The next push that is not a join or leave."""
    return json.loads(await socket.get_message())["push"]


async def in_thread(server: Server | Workers, use: Callable[[cent.Client], T], key: str = KEY) -> T:
    """Let the synchronous client do something, beside the server."""

    def run() -> T:
        client = cent.Client(f"http://127.0.0.1:{server.port}/api", key, timeout=LOOP_ANSWERS)
        try:
            return use(client)
        finally:
            client.close()

    return await trio.to_thread.run_sync(run)


async def test_publishing_and_reading(running: Running) -> None:
    """publish, broadcast, history, history_remove; with all of their fields."""

    def use(client: cent.Client) -> None:
        first = client.publish(
            cent.PublishRequest(channel="news", data={"n": 1}, tags={"a": "b"}, idempotency_key="k")
        )
        assert first.offset == 1
        again = client.publish(
            cent.PublishRequest(channel="news", data={"n": 9}, idempotency_key="k")
        )
        assert again == first
        sent = client.broadcast(cent.BroadcastRequest(channels=["news", "x:y"], data=2))
        assert sent.responses[0].result is not None
        assert sent.responses[0].result.offset == 2
        assert sent.responses[1].error is not None
        assert sent.responses[1].error.code == 102
        bare = client.publish(cent.PublishRequest(channel="bare:a", data=1, skip_history=True))
        assert (bare.offset, bare.epoch) == (0, "")
        since = cent.StreamPosition(offset=1, epoch=first.epoch)
        read = client.history(cent.HistoryRequest(channel="news", limit=10, since=since))
        assert [one.data for one in read.publications] == [2]
        read = client.history(cent.HistoryRequest(channel="news", limit=1, reverse=True))
        assert (read.offset, read.epoch) == (2, first.epoch)
        read = client.history(cent.HistoryRequest(channel="news", limit=-1))
        assert read.publications[0].tags == {"a": "b"}
        client.history_remove(cent.HistoryRemoveRequest(channel="news"))
        read = client.history(cent.HistoryRequest(channel="news", limit=-1))
        assert (read.publications, read.offset) == ([], 2)

    async with running() as server:
        await in_thread(server, use)


async def test_connections(running: Running) -> None:
    """subscribe, presence, channels, info, unsubscribe, refresh, disconnect of a real client."""

    def subscribe(client: cent.Client) -> None:
        client.publish(cent.PublishRequest(channel="news", data=1))
        override = cent.ChannelOptionsOverride(force_recovery=cent.BoolValue(value=True))
        client.subscribe(
            cent.SubscribeRequest(
                channel="news", user="", info={"i": 1}, data={"d": 1}, override=override,
            )
        )  # fmt: skip

    def look(client: cent.Client) -> None:
        (member,) = client.presence(cent.PresenceRequest(channel="news")).presence.values()
        assert (member.user, member.chan_info) == ("", {"i": 1})
        stats = client.presence_stats(cent.PresenceStatsRequest(channel="news"))
        assert (stats.num_clients, stats.num_users) == (1, 1)
        found = client.channels(cent.ChannelsRequest(pattern="ne*")).channels
        assert {name: one.num_clients for name, one in found.items()} == {"news": 1}
        (node,) = client.info(cent.InfoRequest()).nodes
        assert (node.num_clients, node.num_channels, node.num_subs) == (1, 1, 1)
        assert node.metrics is not None
        assert node.metrics.items["publications"] == 1
        client.refresh(cent.RefreshRequest(user="", expire_at=int(time.time()) + 60))
        client.unsubscribe(cent.UnsubscribeRequest(user="", channel="news"))
        client.disconnect(
            cent.DisconnectRequest(
                user="", disconnect=cent.Disconnect(code=4_000, reason="later"), whitelist=["x"]
            )
        )

    async with running() as server, listening(server) as socket:
        await in_thread(server, subscribe)
        push = await pushed(socket)
        assert isinstance(push, dict)
        assert push["channel"] == "news"
        assert push["subscribe"]["data"] == {"d": 1}
        assert push["subscribe"]["recoverable"] is True
        assert push["subscribe"]["offset"] == 1
        await in_thread(server, look)
        push = await pushed(socket)
        assert isinstance(push, dict)
        assert set(push["refresh"]) == {"expires", "ttl"}
        push = await pushed(socket)
        ended = {"code": 2000, "reason": "server unsubscribe"}
        assert push == {"channel": "news", "unsubscribe": ended}
        with pytest.raises(ConnectionClosed) as caught:
            await socket.get_message()
        why = caught.value.reason
        assert why is not None
        assert (why.code, why.reason) == (4_000, "later")


async def test_a_batch(running: Running) -> None:
    """Replies in order, each of its own type."""

    def use(client: cent.Client) -> None:
        requests: list[cent.CentRequest[Any]] = [
            cent.PublishRequest(channel="news", data=1),
            cent.BroadcastRequest(channels=["news"], data=2),
            cent.SubscribeRequest(channel="news", user="42"),
            cent.UnsubscribeRequest(channel="news", user="42"),
            cent.DisconnectRequest(user="42"),
            cent.RefreshRequest(user="42"),
            cent.PresenceRequest(channel="news"),
            cent.PresenceStatsRequest(channel="news"),
            cent.HistoryRequest(channel="news", limit=-1),
            cent.HistoryRemoveRequest(channel="news"),
            cent.ChannelsRequest(),
            cent.InfoRequest(),
        ]
        replies = client.batch(cent.BatchRequest(requests=requests, parallel=True)).replies
        expected = [request.__returning__ for request in requests]
        assert [type(reply) for reply in replies] == expected
        history = replies[8]
        assert isinstance(history, cent.HistoryResult)
        assert [one.data for one in history.publications] == [1, 2]

    async with running() as server:
        await in_thread(server, use)


async def test_errors(running: Running) -> None:
    """An API error is the library's own, with code and text; a wrong key is another."""

    def use(client: cent.Client) -> None:
        lost = cent.StreamPosition(offset=1, epoch="other")
        calls: dict[int, Callable[[], object]] = {
            107: lambda: client.publish(cent.PublishRequest(channel="", data=1)),
            102: lambda: client.publish(cent.PublishRequest(channel="x:y", data=1)),
            108: lambda: client.history(cent.HistoryRequest(channel="bare:a")),
            112: lambda: client.history(cent.HistoryRequest(channel="news", since=lost)),
        }
        for code, make in calls.items():
            with pytest.raises(cent.CentApiResponseError) as caught:
                make()
            assert caught.value.code == code

    def use_wrongly(client: cent.Client) -> None:
        with pytest.raises(cent.CentUnauthorizedError):
            client.info(cent.InfoRequest())

    async with running() as server:
        await in_thread(server, use)
        await in_thread(server, use_wrongly, "wrong")


async def test_the_asynchronous_client(running: Running) -> None:
    """On asyncio, in a thread of its own: the same answers over one kept connection."""

    async def use(url: str) -> None:
        client = cent.AsyncClient(url, KEY, timeout=LOOP_ANSWERS)
        try:
            for number in range(1, 4):
                done = await client.publish(cent.PublishRequest(channel="news", data=number))
                assert done.offset == number
            read = await client.history(cent.HistoryRequest(channel="news", limit=-1))
            assert [one.data for one in read.publications] == [1, 2, 3]
            with pytest.raises(cent.CentApiResponseError):
                await client.publish(cent.PublishRequest(channel="x:y", data=1))
        finally:
            await client.close()

    async with running() as server:
        url = f"http://127.0.0.1:{server.port}/api"
        await trio.to_thread.run_sync(lambda: asyncio.run(use(url)))
