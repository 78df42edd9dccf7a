"""The Trio client against a real server: what a user of it relies on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from repeater.brokers.memory import MemoryBroker
from repeater.config import load_settings
from repeater.errors import FORCE_DISCONNECT, POSITION_LOST, SHUTDOWN
from repeater.publication import Publication
from repeater.serving.server import Server, open_server
from repeater.subscriber import (
    Subscriber,
    SubscriberError,
    SubscriptionError,
    open_subscriber,
    websocket_url,
)
from tests.certificates import Authority
from tests.deadlines import LOOP_ANSWERS

SOON = (0.001, 0.01)  # seconds between attempts: a test does not wait


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[Server]:
    with trio.fail_after(LOOP_ANSWERS):
        chosen = {"dev": True, "port": 0, **settings}
        async with open_server(load_settings(**chosen)) as server:
            yield server


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


async def publish(server: Server, *texts: str) -> None:
    for text in texts:
        await server.node.publish(Publication("news", text.encode()))


async def take(events: Subscriber, count: int) -> list[str]:
    return [(await anext(events)).text for _ in range(count)]


async def test_events_arrive_in_order() -> None:
    """Channel, text, decoded data and offset of each publication, in order."""
    async with running() as server, open_subscriber(url(server), ["news", "sport"]) as events:
        await publish(server, '{"n":1}', "2")
        first, second = await anext(events), await anext(events)
        assert (first.channel, first.data, first.offset) == ("news", {"n": 1}, 1)
        assert (second.text, second.offset) == ("2", 2)


async def test_half_a_surrogate_pair() -> None:
    """It arrives as it was written, and decodes as the standard library decodes it."""
    async with running() as server, open_subscriber(url(server), ["news"]) as events:
        await publish(server, r'"cut \ud83d"', "2")
        first, second = await anext(events), await anext(events)
        assert first.text == r'"cut \ud83d"'
        assert first.data == "cut \ud83d"
        assert second.data == 2


async def test_missed_events_come_first() -> None:
    """After a lost connection: what was published meanwhile, each once, then the live ones."""
    told: list[str] = []
    gaps: list[str] = []
    async with (
        running() as server,
        open_subscriber(
            url(server),
            ["news"],
            backoff=SOON,
            on_reconnect=lambda reason, _: told.append(reason),
            on_gap=gaps.append,
        ) as events,
    ):
        await publish(server, "1")
        assert await take(events, 1) == ["1"]
        for client in tuple(server.node.registry.clients):
            client.disconnect(SHUTDOWN)
        await publish(server, "2", "3")
        assert await take(events, 2) == ["2", "3"]
        await publish(server, "4")
        assert await take(events, 1) == ["4"]
        assert told
        assert told[0] == "disconnected: 3001 shutdown"
        assert gaps == []


async def test_a_lost_position_is_recovered() -> None:
    """A subscription that the server ends for its position is taken up again by itself."""
    async with running() as server, open_subscriber(url(server), ["news"]) as events:
        (client,) = server.node.registry.clients
        client.end_subscription(client.channels["news"], POSITION_LOST)
        await publish(server, "1")
        assert await take(events, 1) == ["1"]


async def test_a_gap_is_told() -> None:
    """Where the history of the interruption is lost, the user is told; live events go on."""
    gaps: list[str] = []
    async with running() as first:
        port = first.port
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[str](10)

            async def listen(
                task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
            ) -> None:
                where = f"http://127.0.0.1:{port}"
                async with open_subscriber(
                    where, ["news"], backoff=SOON, on_gap=gaps.append
                ) as events:
                    task_status.started()
                    async for event in events:
                        await send.send(event.text)

            await nursery.start(listen)
            await publish(first, "1")
            assert await receive.receive() == "1"
            (client,) = first.node.registry.clients
            restarted = MemoryBroker()._streams
            first.node.broker._streams = restarted  # type: ignore[attr-defined]
            client.disconnect(SHUTDOWN)
            while first.node.registry.clients:
                await trio.lowlevel.checkpoint()
            while not gaps:
                await trio.testing.wait_all_tasks_blocked(0.001)
            await publish(first, "2")
            assert await receive.receive() == "2"
            assert gaps == ["news"]
            nursery.cancel_scope.cancel()


async def test_the_server_says_stay_away() -> None:
    """A code that forbids to come back ends the iteration with its reason."""
    async with running() as server:

        async def listen() -> None:
            async with open_subscriber(url(server), ["news"], backoff=SOON) as events:
                for client in tuple(server.node.registry.clients):
                    client.disconnect(FORCE_DISCONNECT)
                await anext(events)

        with pytest.raises(SubscriberError, match="3503 force disconnect"):
            await listen()


async def test_without_reconnect_the_iteration_ends() -> None:
    """A subscriber that is not to come back ends with its connection."""
    async with (
        running() as server,
        open_subscriber(url(server), ["news"], reconnect=False) as events,
    ):
        for client in tuple(server.node.registry.clients):
            client.disconnect(SHUTDOWN)
        assert [event async for event in events] == []


async def test_a_refused_channel() -> None:
    """An unknown namespace is an error with the protocol's code, before the block begins."""
    async with running() as server:
        with pytest.raises(SubscriptionError, match="102 unknown channel") as caught:
            async with open_subscriber(url(server), ["nowhere:1"]):
                pass
        assert caught.value.code == 102


async def test_nobody_there() -> None:
    """A server that can't be reached is one clear error."""
    with pytest.raises(SubscriberError, match="cannot connect"):
        async with open_subscriber("http://127.0.0.1:9", ["news"]):
            pass


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://h:1", "ws://h:1/connection/websocket"),
        ("https://h/base/", "wss://h/base/connection/websocket"),
        ("ws://h", "ws://h/connection/websocket"),
    ],
)
def test_the_endpoint_of_a_server(base: str, expected: str) -> None:
    """http and https become ws and wss; a path in front stays."""
    assert websocket_url(base) == expected


@pytest.mark.parametrize("base", ["", "h:1", "ftp://h", "http://"])
def test_no_server(base: str) -> None:
    """An invalid URL is named as such."""
    with pytest.raises(SubscriberError, match="not a server's URL"):
        websocket_url(base)


@pytest.mark.parametrize("error", [OSError("no token today"), trio.TooSlowError()], ids=repr)
async def test_an_error_of_get_token_is_the_users(error: Exception) -> None:
    """What the user's own function raises comes out as it is, and is not "cannot connect"."""

    async def get_token() -> str:
        raise error

    async with running() as server:
        with pytest.raises(type(error)) as caught:
            async with open_subscriber(url(server), ["news"], get_token=get_token):
                pass
    assert caught.value is error


async def test_an_error_of_a_hook_is_the_users() -> None:
    """A hook that fails while the block waits ends it with the hook's own exception."""
    error = OSError("the disk is full")

    def on_reconnect(_reason: str, _delay: float) -> None:
        raise error

    async with running() as server:
        with pytest.raises(OSError, match="the disk is full") as caught:  # noqa: PT012
            async with open_subscriber(url(server), ["news"], on_reconnect=on_reconnect):
                for client in tuple(server.node.registry.clients):
                    client.disconnect(SHUTDOWN)
                await trio.sleep_forever()
    assert caught.value is error


async def test_a_get_token_that_takes_too_long() -> None:
    """Asking for a token has the deadline of connecting."""
    async with running() as server:
        with pytest.raises(SubscriberError, match="no answer in time"):
            async with open_subscriber(
                url(server),
                ["news"],
                get_token=trio.sleep_forever,
                connect_timeout=0.01,
            ):
                pass


async def test_a_certificate_of_ones_own(authority: Authority) -> None:
    """`ssl_context` verifies the server's certificate; Python's authorities do not know it."""
    async with running(**authority.settings) as server:
        base = f"https://localhost:{server.port}"
        async with open_subscriber(base, ["news"], ssl_context=authority.client()) as events:
            await publish(server, "1")
            assert await take(events, 1) == ["1"]
        with pytest.raises(SubscriberError, match=r"cannot connect.*certificate"):
            async with open_subscriber(base, ["news"]):
                pass


async def test_missed_events_of_many_megabytes() -> None:
    """As much as one answer may have is recovered; more is told as a gap, once, and not again."""
    gaps: list[str] = []
    async with (
        running(outbox_limit=8_388_608) as server,
        open_subscriber(url(server), ["news"], backoff=SOON, on_gap=gaps.append) as events,
    ):
        await publish(server, "0")
        assert await take(events, 1) == ["0"]
        for count, lost in ((100, False), (100, True)):
            size = 80_000 if lost else 20_000
            for client in tuple(server.node.registry.clients):
                client.disconnect(SHUTDOWN)
            text = '"' + "x" * size + '"'
            await publish(server, *[text] * count)
            if lost:
                while not gaps:
                    await trio.testing.wait_all_tasks_blocked(0.001)
                await publish(server, "1")
                assert await take(events, 1) == ["1"]
            else:
                assert await take(events, count) == [text] * count
        assert gaps == ["news"]


async def test_a_message_that_is_too_large_ends_the_subscriber() -> None:
    """It would come again with each new connection: no endless loop, but the reason."""
    reconnects: list[str] = []
    async with running() as server:

        async def listen() -> None:
            async with open_subscriber(
                url(server),
                ["news"],
                backoff=SOON,
                message_limit=1_000,
                on_reconnect=lambda reason, _: reconnects.append(reason),
            ) as events:
                await publish(server, '"' + "x" * 2_000 + '"')
                await anext(events)

        with pytest.raises(SubscriberError, match="1009"):
            await listen()
    assert reconnects == []


async def test_pauses_grow_until_a_connection_brings_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that ends each connection at once is given more and more time; an event resets."""
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    delays: list[float] = []
    async with (
        running() as server,
        open_subscriber(
            url(server),
            ["news"],
            backoff=(0.001, 0.016),
            on_reconnect=lambda _, delay: delays.append(delay),
        ) as events,
    ):

        async def end_all(count: int) -> None:
            while len(delays) < count:
                for client in tuple(server.node.registry.clients):
                    if client.channels:
                        client.disconnect(SHUTDOWN)
                await trio.testing.wait_all_tasks_blocked(0.001)

        await end_all(6)
        assert delays == [0.001, 0.002, 0.004, 0.008, 0.016, 0.016]
        await publish(server, "1")
        assert await take(events, 1) == ["1"]
        await end_all(7)
        assert delays[6:] == [0.001]


async def test_many_channels_are_asked_for_in_several_messages() -> None:
    """The subscribe commands of hundreds of channels exceed what a server takes as one message."""
    names = [f"{number:0200}" for number in range(400)]
    async with (
        running(channel_limit=400) as server,
        open_subscriber(url(server), names) as events,
    ):
        await server.node.publish(Publication(names[-1], b"1"))
        assert (await anext(events)).channel == names[-1]


async def test_a_group_of_the_users_own_stays_whole() -> None:
    """Neither the block's own group nor one of a hook is unwrapped, if it has one error only."""
    group = ExceptionGroup("mine", [ValueError("one")])

    async def get_token() -> str:
        raise group

    async with running() as server:
        with pytest.raises(ExceptionGroup) as caught:
            async with open_subscriber(url(server), ["news"]):
                raise group
        assert caught.value is group
        with pytest.raises(ExceptionGroup) as caught:
            async with open_subscriber(url(server), ["news"], get_token=get_token):
                pass
        assert caught.value is group


async def test_an_oserror_of_a_gap_hook_is_the_users() -> None:
    """What `on_gap` raises while the client connects again is not "cannot connect"."""
    error = OSError("the disk is full")

    def on_gap(_channel: str) -> None:
        raise error

    async def listen(server: Server) -> None:
        async with open_subscriber(url(server), ["news"], backoff=SOON, on_gap=on_gap) as events:
            await publish(server, "1")
            assert await take(events, 1) == ["1"]
            for client in tuple(server.node.registry.clients):
                client.disconnect(SHUTDOWN)
            await publish(server, "2")
            await server.node.remove_history("news")
            await trio.sleep_forever()

    async with running() as server:
        with pytest.raises(OSError, match="the disk is full") as caught:
            await listen(server)
    assert caught.value is error
