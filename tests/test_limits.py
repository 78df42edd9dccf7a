"""How much clients may take: who is too many is refused, counted, and nobody else notices."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant
from repeater.clients.limits import Place
from repeater.clients.session import Session
from repeater.clients.throttle import TokenBucket
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import CHANNEL_LIMIT, CONNECTION_LIMIT, TOO_MANY_REQUESTS
from repeater.options import LimitOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, CENTRIFUGE_UNI_ASGI
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.limiting import PATHS, emptied, inside, knock, limited, talking
from tests.refusing import usual
from tests.serving import peer, running


def published(number: int) -> bytes:
    return b'{"publish":{"channel":"news","data":1},"id":%d}' % number


def unsubscribed(number: int) -> bytes:
    return b'{"unsubscribe":{"channel":"news"},"id":%d}' % number


def codes(replies: list[Any]) -> list[int]:
    """The error code of each reply, 0 for none."""
    return [reply.get("error", {}).get("code", 0) for reply in replies]


# ---- the bucket


@given(
    st.integers(1, 20),
    st.integers(1, 100),
    st.lists(st.floats(0, 2), min_size=1, max_size=100),
)
def test_a_bucket_never_gives_more_than_its_rate(
    burst: int, per_second: int, pauses: list[float]
) -> None:
    """In any stretch of time: the burst, and the rate's share of that time."""
    taken: list[float] = []

    async def main() -> None:
        bucket = TokenBucket()
        for pause in pauses:
            await trio.sleep(pause)
            if not bucket.take(burst, per_second):
                taken.append(trio.current_time())

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert taken
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            stretch = taken[last] - taken[first]
            assert last - first + 1 <= burst + stretch * per_second + 1e-6


async def test_a_bucket_says_how_long_to_wait(autojump_clock: MockClock) -> None:
    """After exactly that time there is a token."""
    bucket = TokenBucket()
    assert bucket.take(1, 0.5) == 0
    wait = bucket.take(1, 0.5)
    assert wait == pytest.approx(2)
    await trio.sleep(wait)
    assert bucket.take(1, 0.5) == 0


# ---- commands


async def test_too_many_commands_fail_and_the_connection_goes_on(
    autojump_clock: MockClock,
) -> None:
    """Error 111 for each one too many, in order, and none a second later."""
    async with open_test_node(limited(commands_per_second=2)) as node, talking(node) as talk:
        replies = await talk.say(*(unsubscribed(number) for number in range(2, 6)))
        assert codes(replies) == [0, 0, 111, 111]
        assert [reply["id"] for reply in replies] == [2, 3, 4, 5]
        assert replies[2]["error"]["temporary"] is True
        assert node.statistics().limited == {"commands_per_second": 2}
        await trio.sleep(1)
        assert codes(await talk.say(unsubscribed(6), unsubscribed(7))) == [0, 0]


async def test_publishes_have_their_own_rate(autojump_clock: MockClock) -> None:
    """One that is too many is not published; other commands are not touched."""
    async with (
        open_test_node(limited(publishes_per_second=1, publish_burst=2)) as node,
        talking(node) as talk,
    ):
        replies = await talk.say(*(published(number) for number in (2, 3, 4)), unsubscribed(5))
        assert codes(replies) == [0, 0, 111, 0]
        await wait_all_tasks_blocked()
        assert node.statistics().repeater.publications == 2
        assert node.statistics().limited == {"publishes_per_second": 1}


async def test_each_client_has_its_own_rate(autojump_clock: MockClock) -> None:
    """What one has used up is nobody else's."""
    async with (
        open_test_node(limited(commands_per_second=1)) as node,
        talking(node) as talk,
        talking(node) as other,
    ):
        assert codes(await talk.say(unsubscribed(2), unsubscribed(3))) == [0, 111]
        assert codes(await other.say(unsubscribed(2))) == [0]


async def test_who_does_not_listen_is_disconnected(autojump_clock: MockClock) -> None:
    """After so many refusals within a minute: 3013, which asks to come back later."""
    options = limited(commands_per_second=1, refusals_per_minute=5)
    async with open_test_node(options) as node:
        async with talking(node) as talk:
            replies = await talk.say(*(unsubscribed(number) for number in range(2, 20)))
            assert codes(replies) == [0] + [111] * 5
            assert usual(talk.session._client.end) == TOO_MANY_REQUESTS
            await trio.lowlevel.checkpoint()
        assert usual(talk.transport.closed_with) == TOO_MANY_REQUESTS
        assert node.statistics().ended == {3013: 1}
        assert node.statistics().limited == {"commands_per_second": 6}


async def test_a_few_refusals_a_minute_are_forgiven(autojump_clock: MockClock) -> None:
    """Refusals are counted by the minute, not for a connection's life."""
    options = limited(commands_per_second=1, refusals_per_minute=6)
    async with open_test_node(options) as node, talking(node) as talk:
        for number in range(2, 42, 2):
            assert codes(await talk.say(unsubscribed(number), unsubscribed(number + 1))) == [0, 111]
            await trio.sleep(10)
        assert node.statistics().ended == {}


async def test_without_limits_nothing_is_kept_or_counted() -> None:
    """A thousand commands at once, and no bucket anywhere."""
    async with open_test_node(limited(commands_per_second=0)) as node, talking(node) as talk:
        assert not any(codes(await talk.say(*map(unsubscribed, range(2, 1_002)))))
        assert talk.session._client.throttle is None
        assert node.statistics().limited == {}


async def test_a_changed_limit_holds_from_the_next_command_on(autojump_clock: MockClock) -> None:
    """For connections that are there, too."""
    async with open_test_node() as node, talking(node) as talk:
        node.options = msgspec.structs.replace(
            node.options, limits=LimitOptions(commands_per_second=1, command_burst=1)
        )
        assert codes(await talk.say(unsubscribed(2), unsubscribed(3))) == [0, 111]
        node.options = msgspec.structs.replace(node.options, limits=LimitOptions())
        assert codes(await talk.say(unsubscribed(4), unsubscribed(5))) == [0, 0]


async def test_one_subscription_too_many_is_counted() -> None:
    """Error 106, as ever."""
    options = NodeOptions(channel_limit=1)
    async with open_test_node(options) as node, talking(node) as talk:
        lines = (b'{"subscribe":{"channel":"%c"},"id":%d}' % (97 + n, n) for n in (2, 3))
        assert codes(await talk.say(*lines)) == [0, 106]
        assert node.statistics().limited == {"channel_limit": 1}


async def test_one_server_side_subscription_too_many_is_counted() -> None:
    """Closed with 3505, as ever."""
    async with open_test_node(NodeOptions(channel_limit=0)) as node:
        transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
        async with connect(node, transport, ready=False) as client:
            await Session(node, client).receive('{"connect":{"subs":{"news":{}}},"id":1}')
            assert usual(client.end) == CHANNEL_LIMIT
        assert node.statistics().limited == {"channel_limit": 1}


# ---- connections of one user


async def test_a_user_may_have_so_many_connections() -> None:
    """One more is closed with 3504; others and the anonymous are not counted, and room returns."""
    async with open_test_node(limited(connections_per_user=2)) as node:
        async with AsyncExitStack() as stack:
            for user in ("ann", "ann", "bob", "", "", ""):
                talk = await stack.enter_async_context(talking(node, user))
                assert talk.session._client.ready
            async with talking(node, "ann") as late:
                assert usual(late.session._client.end) == CONNECTION_LIMIT
            assert node.statistics().limited == {"connections_per_user": 1}
        async with talking(node, "ann") as talk:
            assert talk.session._client.ready


async def test_a_unidirectional_connection_counts_like_any() -> None:
    """It is told by its close, too."""
    async with (
        open_test_node(limited(connections_per_user=1)) as node,
        talking(node, "ann"),
        connect(node, MemoryTransport(CENTRIFUGE_UNI_ASGI), ready=False) as client,
    ):
        client.grant = ConnectionGrant("ann")
        client.place = Place(node.places)
        await UnidirectionalSession(node, client).receive("{}")
        assert usual(client.end) == CONNECTION_LIMIT


# ---- connections


@pytest.mark.parametrize("reused", [False, True], ids=["native", "asgi"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_full_server_answers_503(path: str, reused: bool) -> None:
    """Before the upgrade; the API still works, and a client that leaves makes room."""
    async with running(limits={"connections": 1}) as server:
        async with inside(server, path, reused=reused), peer(server) as back_end:
            assert b" 503 " in await knock(server, path, reused=reused)
            body = b'{"channel":"news","data":1}'
            assert b" 200 " in await back_end.call("POST", "/api/publish", body)
            assert server.node.statistics().limited == {"connections": 1}
        await emptied(server)
        async with inside(server, path, reused=reused):
            pass


@pytest.mark.parametrize("reused", [False, True], ids=["native", "asgi"])
@pytest.mark.parametrize("path", PATHS)
async def test_an_address_may_have_so_many_connections(path: str, reused: bool) -> None:
    """One more gets 429 before its upgrade; nothing is remembered of who has left."""
    async with running(limits={"connections_per_address": 2}) as server:
        async with (
            inside(server, path, reused=reused),
            inside(server, path, reused=not reused),
        ):
            assert b" 429 " in await knock(server, path, reused=reused)
            assert server.node.statistics().limited == {"connections_per_address": 1}
        await emptied(server)
        assert server.node.places.counted == ({}, {})
        async with inside(server, path, reused=reused):
            pass


async def test_too_many_new_connections_get_503(slow_clock: MockClock) -> None:
    """The burst comes in, the rest does not; refused ones are not in the hub."""
    limits = {"connection_rate": 1, "connection_burst": 3}
    async with running(limits=limits) as server, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(inside(server, PATHS[0], reused=False))
        assert b" 503 " in await knock(server, PATHS[0], reused=False)
        assert server.node.statistics().limited == {"connection_rate": 1}
        assert server.node.statistics().clients == 3


async def test_no_address_is_remembered_without_the_limit() -> None:
    """What is off costs nothing."""
    async with running() as server, inside(server, PATHS[0], reused=False):
        assert server.node.places.counted == ({}, {})
