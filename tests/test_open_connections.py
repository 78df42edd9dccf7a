"""Connections are counted when they are accepted, and who stays silent makes room for others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from repeater.front.open_connections import four_fifths_of_descriptors
from repeater.serving.server import Server
from tests.deadlines import LOOP_ANSWERS
from tests.knocking import BROWSER, ask, knocking, refused, status_of
from tests.processes import serving, starts_processes
from tests.serving import UPGRADE, Peer, frame, peer, running

EVENT = b'{"channel":"news","data":1}'
KEY = "k" * 16
HONEST = "127.0.0.2"
CONNECT = frame(b'{"connect":{},"id":1}')


@asynccontextmanager
async def coming(server: Server, address: str = "127.0.0.1") -> AsyncIterator[Peer]:
    """A raw connection from this address."""
    stream = await trio.open_tcp_stream("127.0.0.1", server.port, local_address=address)
    async with stream:
        yield Peer(stream)


async def upgrade(client: Peer, path: str = "/ws?channel=news") -> bytes:
    await client.stream.send_all(UPGRADE.format(path=path, more="").encode())
    return await client.until(b"\r\n\r\n")


async def accepted(server: Server, number: int) -> None:
    while server.acceptor.statistics().accepted < number:
        await trio.lowlevel.checkpoint()


async def silent(stack: AsyncExitStack, server: Server, number: int) -> list[Peer]:
    """So many connections that say nothing, all accepted."""
    before = server.acceptor.statistics().accepted
    peers = [await stack.enter_async_context(coming(server)) for _ in range(number)]
    await accepted(server, before + number)
    return peers


async def test_silent_connections_make_room() -> None:
    """At the limit of all connections the oldest silent ones go; others are served at once."""
    async with running(limits={"open_connections": 8}) as server, AsyncExitStack() as stack:
        crowd = await silent(stack, server, 20)
        assert server.acceptor.statistics().open <= 8
        listener = await stack.enter_async_context(coming(server, HONEST))
        assert b" 101 " in await upgrade(listener)
        back_end = await stack.enter_async_context(coming(server, HONEST))
        assert b" 200 " in await back_end.call("POST", "/api/publish", EVENT)
        crowd += await silent(stack, server, 20)
        assert b" 200 " in await back_end.call("POST", "/api/publish", EVENT)
        await listener.until(b"\x81\x011\x81\x011")
        assert await crowd[0].rest() == b""
        assert server.acceptor.statistics().open <= 8
        assert server.node.statistics().limited["open_connections"] >= 34


async def test_who_is_known_makes_no_room() -> None:
    """With nobody silent a new connection is closed at once, and counted."""
    async with running(limits={"open_connections": 3}) as server, AsyncExitStack() as stack:
        for path in ("/ws?channel=news", "/connection/websocket", "/connection/uni_websocket"):
            client = await stack.enter_async_context(coming(server))
            assert b" 101 " in await upgrade(client, path)
            if path != "/ws?channel=news":
                await client.stream.send_all(CONNECT if "uni" not in path else frame(b"{}"))
                await client.until(b"connect")
        late = await stack.enter_async_context(coming(server, HONEST))
        assert await late.rest() == b""
        assert server.node.statistics().limited == {"open_connections": 1}
        assert len(server.node.registry.clients) == 3


async def test_an_idle_page_connection_makes_room() -> None:
    """One request and then silence holds nothing against others."""
    async with running(limits={"open_connections": 4}) as server, AsyncExitStack() as stack:
        for _ in range(10):
            client = await stack.enter_async_context(coming(server))
            assert b" 200 " in await client.call("GET", "/health")
        late = await stack.enter_async_context(coming(server, HONEST))
        assert b" 101 " in await upgrade(late)


async def test_a_handshake_without_connect_is_nobody() -> None:
    """A WebSocket that never sends `connect` is the first to go; after it the connection stays."""
    limits = {"open_connections": 3}
    async with running(limits=limits) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(coming(server)) for _ in range(3)]
        for client in clients:
            assert b" 101 " in await upgrade(client, "/connection/websocket")
        await clients[0].stream.send_all(CONNECT)
        await clients[0].until(b'"connect"')
        late = await stack.enter_async_context(coming(server, HONEST))
        assert b" 101 " in await upgrade(late)
        assert await clients[1].rest() == b""
        await clients[0].stream.send_all(frame(b'{"subscribe":{"channel":"news"},"id":2}'))
        await clients[0].until(b'"subscribe"')


@pytest.mark.parametrize("limit", ["pending_per_address", "pending_connections"])
async def test_the_oldest_silent_connection_goes(limit: str) -> None:
    """Above the bound, and after a second in which an honest client has said something."""
    async with running(limits={limit: 3}) as server, AsyncExitStack() as stack:
        crowd = await silent(stack, server, 5)
        assert server.acceptor.statistics().open == 5
        await trio.sleep(1.05)
        crowd += await silent(stack, server, 2)
        for client in crowd[:2]:
            assert await client.rest() == b""
        assert server.node.statistics().limited == {"pending_connections": 2}
        assert server.node.refusals.counts == {"limit": 2}
        assert server.acceptor.statistics().open == 5


async def test_silent_connections_count_for_their_address() -> None:
    """With two of them an address is full: a third is closed within a second, others come in."""
    limits = {"connections_per_address": 2}
    async with running(dev=False, allow_anonymous=True, limits=limits) as server:
        async with AsyncExitStack() as stack:
            await silent(stack, server, 2)
            (third,) = await silent(stack, server, 1)
            before = trio.current_time()
            assert await third.rest() == b""
            assert trio.current_time() - before < 2
            assert server.node.statistics().limited == {"connections_per_address": 1}
            other = await stack.enter_async_context(coming(server, HONEST))
            assert b" 101 " in await upgrade(other)
        await server.acceptor.wait_empty()
        assert server.node.places.counted == ({}, {})
        async with coming(server) as client:
            assert b" 101 " in await upgrade(client)


@pytest.mark.parametrize("way", ["native", "asgi"])
async def test_calls_with_the_key_are_never_refused(way: str) -> None:
    """An address that has too many connections may call, and a call's connection does not count."""
    limits = {"connections_per_address": 1}
    async with running(dev=False, api_key=KEY, limits=limits) as server:
        async with AsyncExitStack() as stack:
            await silent(stack, server, 1)
            for key, status in ((KEY, b" 200 "), ("wrong", b" 429 ")):
                client = await stack.enter_async_context(coming(server))
                if way == "asgi":
                    await client.call("GET", "/nothing")
                head = f"X-API-Key: {key}\r\n"
                assert status in await client.call("POST", "/api/publish", EVENT, head)
                if key == KEY:
                    await trio.sleep(1.1)  # the connection is not one too many any more
                    assert status in await client.call("POST", "/api/publish", EVENT, head)
            assert server.node.places.counted[0] == {"127.0.0.1": 1}
        await server.acceptor.wait_empty()
        assert server.node.places.counted == ({}, {})


@pytest.mark.parametrize("way", ["native", "asgi"])
async def test_who_is_too_many_of_an_address(way: str) -> None:
    """Subscriptions get 429, an `EventSource` its 200; a health check is answered."""
    async with running(limits={"connections_per_address": 1}) as server, peer(server):
        await accepted(server, 1)
        for kind in ("websocket", "stream"):
            assert await status_of(server, way, kind) == 429
        status, head, _ = await refused(server, way, "/events?channel=news")
        assert status == 429
        assert b"retry-after: " in head
        status, _, body = await refused(server, way, "/events?channel=news", **BROWSER)
        assert status == 200
        assert b"connections_per_address" in body
        async with peer(server) as client:
            assert b" 200 " in await client.call("GET", "/health")
            assert b" 429 " in await client.call("POST", "/emulation", b"{}")
        async with peer(server) as idle:
            assert b" 200 " in await idle.call("GET", "/health")
            await trio.sleep(1.05)
            async with peer(server):  # and so it can't keep what is too many open
                assert await idle.rest() == b""


@pytest.mark.parametrize("way", ["h2"])
async def test_a_stream_of_http2_is_a_connection_of_its_address(way: str) -> None:
    """The first of a connection is counted with it, and every other one for itself."""
    import h2.config
    import h2.connection
    from h2.events import ResponseReceived

    async with (
        running(limits={"connections_per_address": 2}) as server,
        peer(server, protocols=[way]) as client,
    ):
        http = h2.connection.H2Connection(h2.config.H2Configuration())
        http.initiate_connection()
        for number in (1, 3, 5):
            head = {":method": "GET", ":scheme": "https", ":authority": "localhost"}
            http.send_headers(
                number, [*head.items(), (":path", "/events?channel=news")], end_stream=True
            )
        statuses: list[bytes] = []
        while len(statuses) < 3:
            await client.stream.send_all(http.data_to_send())
            for event in http.receive_data(await client.stream.receive_some()):
                if isinstance(event, ResponseReceived):
                    statuses += [bytes(v) for n, v in event.headers if bytes(n) == b":status"]
        assert sorted(statuses) == [b"200", b"200", b"429"]


@pytest.mark.parametrize("kind", ["websocket", "stream"])
@pytest.mark.parametrize("way", ["native", "asgi"])
async def test_a_trusted_proxy_names_the_client(way: str, kind: str) -> None:
    """The proxy's own connections count for nobody; each client's count for its address."""
    proxied = {"trusted_proxies": "127.0.0.1", "limits": {"connections_per_address": 1}}
    async with running(**proxied) as server, AsyncExitStack() as stack:
        await silent(stack, server, 5)
        assert server.node.places.counted == ({}, {})
        first = {"X-Forwarded-For": "1.2.3.4"}
        async with knocking(server, way, kind, **first) as status:
            assert status == 200
            assert await status_of(server, way, kind, **first) == 429
            other = {"X-Forwarded-For": "1.2.3.5"}
            assert await status_of(server, way, kind, **other) == 200


async def test_a_proxy_header_names_the_client() -> None:
    """The connection counts for the client from the end of the PROXY header on."""
    settings = {"trusted_proxies": "127.0.0.1", "proxy_protocol": True}
    limits = {"connections_per_address": 1}
    async with running(**settings, limits=limits) as server, AsyncExitStack() as stack:
        await silent(stack, server, 3)  # no header yet
        header = b"PROXY TCP4 1.2.3.4 9.9.9.9 1 2\r\n"
        first = await stack.enter_async_context(coming(server))
        await first.stream.send_all(header)
        while not server.node.places.counted[0]:
            await trio.lowlevel.checkpoint()
        assert server.node.places.counted[0] == {"1.2.3.4": 1}
        second = await stack.enter_async_context(coming(server))
        await second.stream.send_all(header)
        assert b" 429 " in await upgrade(second)
        third = await stack.enter_async_context(coming(server))
        await third.stream.send_all(header)
        assert await third.rest() == b""  # silent: within a second
        fourth = await stack.enter_async_context(coming(server))
        await fourth.stream.send_all(header.replace(b"1.2.3.4", b"1.2.3.5"))
        assert b" 101 " in await upgrade(fourth)


@pytest.mark.parametrize("way", ["native", "asgi"])
async def test_an_ended_subscription_gives_its_place_back(way: str) -> None:
    """Whoever leaves may come back at once, though the connection may end a little later."""
    async with running(limits={"connections_per_address": 1}) as server:
        for _ in range(3):
            assert await status_of(server, way, "websocket") == 200
            while server.node.places.counted[0]:
                await trio.lowlevel.checkpoint()
            assert len(server.node.places) == 0


async def test_a_long_request_is_not_pending() -> None:
    """Its connection waits for the server, so it is not the one that makes room."""
    limits = {"open_connections": 3}
    async with running(limits=limits) as server, AsyncExitStack() as stack:
        busy = await stack.enter_async_context(coming(server))
        head = b"POST /api/channels HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
        await busy.stream.send_all(head + b"Content-Length: 2\r\n\r\n{")
        await accepted(server, 1)
        await trio.testing.wait_all_tasks_blocked()
        await silent(stack, server, 8)
        await busy.stream.send_all(b"}")
        assert b" 200 " in await busy.until(b"\r\n\r\n")


async def test_limits_that_are_switched_off() -> None:
    """Zero means that pending connections have no bound."""
    limits = {"pending_connections": 0, "pending_per_address": 0}
    async with running(limits=limits) as server, AsyncExitStack() as stack:
        await silent(stack, server, 3)
        await trio.sleep(1.05)
        await silent(stack, server, 120)
        assert server.acceptor.statistics().open == 123
        assert server.node.statistics().limited == {}


def test_the_default_of_all_connections() -> None:
    """Four fifths of the descriptors that this process may have."""
    resource = pytest.importorskip("resource")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    expected = 0 if soft == resource.RLIM_INFINITY else soft * 4 // 5
    assert four_fifths_of_descriptors() == expected


@starts_processes
async def test_one_address_cannot_shut_others_out() -> None:
    """150 descriptors, 300 silent connections of one address: all others are served."""
    async with serving("--dev", descriptors=150) as server, AsyncExitStack() as stack:
        port = await server.port()
        for round_ in range(2):
            for _ in range(150):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                stack.push_async_callback(trio.aclose_forcefully, stream)
            with trio.fail_after(LOOP_ANSWERS):
                honest = await trio.open_tcp_stream("127.0.0.1", port, local_address=HONEST)
                async with honest:
                    status, _ = await ask(Peer(honest), "/health")
                    assert (round_, status) == (round_, 200)
        assert b"not accepting" not in server.log
        assert b"Traceback" not in server.log


async def test_a_websocket_that_is_handed_over_has_the_place_of_its_connection() -> None:
    """Its head is too long for the native handshake; it counts once, and is known all the same."""
    settings = {"limits": {"connections_per_address": 1}}
    async with running(**settings) as server, coming(server, HONEST) as client:
        cookie = f"Cookie: a={'b' * 9_000}\r\n"
        head = UPGRADE.format(path="/ws?channel=news", more=cookie)
        await client.stream.send_all(head.encode())
        assert b" 101 " in await client.until(b"\r\n\r\n")
        assert server.acceptor._open.pending == 0
