"""Who may subscribe: each rule on each way in, and what holds while the server's answer waits."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import (
    ConnectionGrant,
    Denial,
    SubscriptionGrant,
)
from repeater.config import CurrentSettings, Settings, load_settings
from repeater.node import Node
from repeater.options import ChannelOptions, LimitOptions, NodeOptions
from repeater.serving.application import create_app
from repeater.testing import open_test_node
from repeater.web.subscriptions import SubscriptionRoutes
from tests.conversation import FakeVerifier
from tests.knocking import (
    PATHS,
    TOKENS,
    UPGRADE,
    every_kind,
    every_way,
    guarded,
    knock_by_http2,
    knocking,
    status_of,
)
from tests.serving import Peer, frame, peer, running


@every_way
@every_kind
async def test_origin(way: str, kind: str) -> None:
    """A page of our own host and one of the globs may connect; another one may not."""
    async with guarded(allowed_origins="https://*.friend.test") as server:
        for origin, status in (
            ("https://evil.test", 403),
            ("http://test.evil", 403),
            ("null", 403),
            ("https://a.friend.test", 200),
            ("http://test", 200),
        ):
            assert await status_of(server, way, kind, "token=ann", Origin=origin) == status


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", PATHS)
async def test_a_doubled_origin_is_nobody_s(kind: str, *, behind: bool) -> None:
    """400 natively and behind ASGI, where one of the two would do."""
    async with guarded() as server, peer(server) as client:
        if behind:
            assert b" 200 " in await client.call("GET", "/health")
        upgrade = UPGRADE if kind == "websocket" else {}
        lines = "".join(f"{name}: {value}\r\n" for name, value in upgrade.items())
        lines += "Host: test\r\nOrigin: http://test\r\nOrigin: http://test\r\n"
        target = f"{PATHS[kind]}?token=ann"
        await client.stream.send_all(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())
        assert b" 400 " in await client.until(b"\r\n\r\n")


@every_way
@every_kind
async def test_draining(way: str, kind: str) -> None:
    """A node that shuts down takes nobody in: 503."""
    async with guarded() as server:
        assert await status_of(server, way, kind, "token=ann") == 200
        server.node.draining = True
        assert await status_of(server, way, kind, "token=ann") == 503


@every_way
@every_kind
@pytest.mark.parametrize(
    ("limit", "status"),
    [
        ("connections", 503),
        ("connections_per_address", 429),
        ("connections_per_user", 429),
        ("connection_rate", 503),
    ],
)
async def test_limits(way: str, kind: str, limit: str, status: int, slow_clock: MockClock) -> None:
    """The second one is refused and counted once; places come back when connections end."""
    async with guarded(limits={limit: 1}) as server:
        async with knocking(server, way, kind, "token=ann") as first:
            assert first == 200
            assert len(server.node.places) == 1
            assert await status_of(server, way, kind, "token=ann") == status
            slow_clock.rate = 1
        assert server.node.statistics().limited == {limit: 1}
        await server.acceptor.wait_empty()
        assert len(server.node.places) == 0
        assert server.node.places.counted == ({}, {})


@every_way
@every_kind
@pytest.mark.parametrize(
    ("token", "status"), [("ann", 200), ("", 401), ("wrong", 401), ("over", 401), ("later", 503)]
)
async def test_token(way: str, kind: str, token: str, status: int) -> None:
    """401 for nobody and for what proves nothing any more; 503 while its keys can't be had."""
    async with guarded() as server:
        assert await status_of(server, way, kind, f"token={token}") == status


@every_way
@every_kind
async def test_denial(way: str, kind: str) -> None:
    """A blocked user gets 403, and is counted once."""
    async with guarded() as server:
        await server.node.denials.change(Denial("ann"))
        assert await status_of(server, way, kind, "token=ann") == 403
        assert server.node.statistics().limited == {"blocked": 1}


@every_way
@every_kind
@pytest.mark.parametrize(
    ("channels", "status"),
    [
        ("channel=news", 200),
        ("channel=nowhere:news", 400),
        ("channel=" + "a" * 300, 400),
        ("channel=a&channel=b&channel=c", 400),
        ("channel=a%23bob", 403),
    ],
)
async def test_channels(way: str, kind: str, channels: str, status: int) -> None:
    """400 for an invalid name and for too many; 403 for one of somebody else."""
    channel = {"allow_subscribe_for_client": True, "allow_user_limited_channels": True}
    async with guarded(channel=channel, channel_limit=2) as server:
        assert await status_of(server, way, kind, f"token=ann&{channels}") == status


@pytest.mark.parametrize("way", ["asgi", "h2"])
async def test_a_request_without_an_upgrade(way: str) -> None:
    """426, as natively; by HTTP/2 without the header that it forbids."""
    protocols = [way] if way == "h2" else []
    async with running() as server, peer(server, protocols=protocols) as client:
        if way == "asgi":
            assert b" 200 " in await client.call("GET", "/health")
            answer = await client.call("GET", "/ws")
            assert b" 426 " in answer
            assert b"upgrade: websocket\r\n" in answer
        else:
            assert await knock_by_http2(client, "stream", "/ws", {}) == 426


async def test_a_waiting_command_holds_its_sender_back() -> None:
    """Behind ASGI as well: while one command waits, the server's queue takes ten, TCP the rest."""

    class Waiting(FakeVerifier):
        async def verify_connection(self, token: str) -> ConnectionGrant:
            asked.set()
            await trio.sleep_forever()
            raise AssertionError

    asked, sent, size = trio.Event(), 0, 60_000
    message = frame(b'{"id":2,"rpc":{"data":"%s"}}' % (b"x" * size))

    async def flood(client: Peer) -> None:
        nonlocal sent
        while True:
            await client.stream.send_all(message)
            sent += 1

    async with running(close_timeout=0.1, shutdown_timeout=0.5) as server, peer(server) as client:
        server.node.verifier = Waiting()
        assert b" 200 " in await client.call("GET", "/health")
        lines = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        head = f"GET /connection/websocket HTTP/1.1\r\nHost: test\r\n{lines}\r\n"
        await client.stream.send_all(head.encode())
        assert b" 101 " in await client.until(b"\r\n\r\n")
        await client.stream.send_all(frame(b'{"id":1,"connect":{"token":"t"}}'))
        await asked.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, client)
            before = -1
            while sent != before:  # until not even the kernel takes more
                before = sent
                await trio.sleep(0.2)
            nursery.cancel_scope.cancel()
        # Ten in Hypercorn's queue, one in its parser; what loopback's buffers hold is some MiB.
        assert sent * size < 16 * 2**20


@pytest.mark.parametrize("size", [70_000, 10])
async def test_a_chunked_emulation_body_has_a_bound(size: int) -> None:
    """Without a length, too: nothing but this route stands in front of it."""
    async with running() as server, peer(server) as client:
        head = "POST /emulation HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.stream.send_all(f"{head}{size:x}\r\n".encode() + b"x" * size)
        await client.stream.send_all(b"\r\n0\r\n\r\n")
        status = b" 413 " if size > 65_536 else b" 400 "
        assert status in await client.until(b"\r\n\r\n")


@every_kind
async def test_under_a_stock_hypercorn(kind: str) -> None:
    """The application alone admits the same, without our server in front of it."""
    current = CurrentSettings(load_settings(dev=True, default_channel="news", allowed_hosts="test"))
    config, done = Config(), trio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config.bind = [f"fd://{listener.detach()}"]  # Hypercorn's from here on
    config.errorlog = None
    async with trio.open_nursery() as nursery:
        serving = partial(serve, create_app(settings=current), config)
        nursery.start_soon(partial(serving, shutdown_trigger=done.wait))
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            client = Peer(stream)
            upgrade = UPGRADE if kind == "websocket" else {}
            lines = "".join(f"{name}: {value}\r\n" for name, value in upgrade.items())
            head = f"GET {PATHS[kind]}?channel=news HTTP/1.1\r\nHost: test\r\n{lines}\r\n"
            await stream.send_all(head.encode())
            answer = await client.until(b"\r\n\r\n")
            assert (b" 101 " if kind == "websocket" else b" 200 ") in answer
        done.set()


# ---- while the ASGI server's first bytes wait


class SlowServer:
    """An ASGI server that takes its time with the first event of each answer."""

    def __init__(self, node: Node, settings: Settings) -> None:
        self._routes = SubscriptionRoutes(self._nothing, lambda: node, lambda: settings)
        self.go_on = trio.Event()

    async def _nothing(self, *_: Any) -> None:
        raise AssertionError("not ours")

    async def serve(self, kind: str, sent: list[Any], query: str = "channel=news") -> None:
        """One subscriber, until the server ends it."""
        waiting = [{"type": "websocket.connect"}] if kind == "websocket" else []

        async def receive() -> Any:
            if waiting:
                return waiting.pop()
            return await trio.sleep_forever()

        async def send(event: Any) -> None:
            sent.append(event)
            if event["type"] in ("websocket.accept", "http.response.start"):
                await self.go_on.wait()

        scope: dict[str, Any] = {
            "type": "websocket" if kind == "websocket" else "http",
            "http_version": "1.1",
            "method": "GET",
            "path": PATHS[kind],
            "query_string": query.encode(),
            "headers": [(b"host", b"test")],
            "client": ("127.0.0.1", 1),
            "extensions": {"websocket.http.response": {}},
        }
        await self._routes(scope, receive, send)


@asynccontextmanager
async def slow_server(**limits: Any) -> AsyncIterator[tuple[Node, SlowServer, trio.Nursery]]:
    channel = ChannelOptions(allow_subscribe_for_client=True)
    options = NodeOptions(default_channel="news", limits=LimitOptions(**limits), channel=channel)
    settings = load_settings(dev=True, allowed_hosts="test")
    async with open_test_node(options, verifier=TOKENS) as node, trio.open_nursery() as nursery:
        yield node, SlowServer(node, settings), nursery
        nursery.cancel_scope.cancel()


@every_kind
@pytest.mark.parametrize(
    ("limit", "status"),
    [("connections", 503), ("connections_per_address", 429), ("connections_per_user", 429)],
)
async def test_no_limit_is_overshot_while_an_answer_waits(
    kind: str, limit: str, status: int
) -> None:
    """Two come at once, and the server is still busy with the first one's answer: one gets in."""
    async with slow_server(**{limit: 1}) as (node, server, nursery):
        answers: list[list[Any]] = [[], []]
        for sent in answers:
            nursery.start_soon(server.serve, kind, sent, "token=ann")
        await wait_all_tasks_blocked()
        assert len(node.registry.clients) == 1  # it is there before its answer
        first, second = sorted(events[0].get("status", 200) for events in answers)
        assert (first, second) == (200, status)
        server.go_on.set()
        await wait_all_tasks_blocked()
        assert len(node.registry.clients) == 1
        assert node.statistics().limited == {limit: 1}


async def _block(node: Node) -> None:
    await node.denials.change(Denial("ann"))


async def _drain(node: Node) -> None:
    await node.shut_down()


@every_kind
@pytest.mark.parametrize(("change", "code"), [(_block, 3503), (_drain, 3001)])
async def test_who_is_refused_while_an_answer_waits(
    kind: str, change: Callable[[Node], Any], code: int
) -> None:
    """A user blocked meanwhile, or a shutdown: ended for it at once, and nothing was heard."""
    async with slow_server() as (node, server, nursery):
        sent: list[Any] = []
        nursery.start_soon(server.serve, kind, sent, "token=ann")
        await wait_all_tasks_blocked()
        await change(node)
        server.go_on.set()
        await wait_all_tasks_blocked()
        assert not node.registry.clients
        assert not node.hub.channels
        assert not node.places
        if kind == "websocket":
            assert [event["type"] for event in sent] == ["websocket.accept", "websocket.close"]
            assert sent[-1]["code"] == code
        else:
            assert b'"code":%d' % code in sent[-1]["body"]


@every_kind
async def test_a_place_is_given_back_by_whoever_is_cancelled(kind: str) -> None:
    """The server gives up in the middle of its answer: nothing is held."""
    async with slow_server(connections_per_user=1) as (node, server, nursery):
        nursery.start_soon(server.serve, kind, [], "token=ann")
        await wait_all_tasks_blocked()
        assert len(node.places) == 1
        nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()
    assert not node.places
    assert node.places.counted == ({}, {})


async def test_a_server_that_cannot_deny_by_http_closes() -> None:
    """Without the extension a denied WebSocket is closed before it was accepted."""
    async with AsyncExitStack() as stack:
        node, server, _ = await stack.enter_async_context(slow_server())
        node.draining = True
        sent: list[Any] = []

        async def send(event: Any) -> None:
            sent.append(event)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        scope: dict[str, Any] = {
            "type": "websocket",
            "path": "/ws",
            "query_string": b"",
            "headers": [],
        }
        await server._routes(scope, receive, send)
        assert sent == [{"type": "websocket.close"}]


@every_way
@every_kind
@pytest.mark.parametrize("token", ["ann", "granted", ""])
async def test_personal_channels(way: str, kind: str, token: str) -> None:
    """Another user's is refused, whatever allows it; a token's is left out, and its user's is open.

    Here every other option lets everybody in.
    """
    granted = dict.fromkeys(["#bob", "no:such", "\u00e9", "news"], SubscriptionGrant())
    allowed = {"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True}
    async with guarded(user_personal_channel=True, allow_anonymous=True, channel=allowed) as server:
        options = server.node.options  # a program may say what `config check` refuses
        public = msgspec.structs.replace(options, public_channels=frozenset({"#bob"}))
        server.node.options = public
        server.node.verifier = FakeVerifier(
            {
                "ann": ConnectionGrant("ann"),
                "granted": ConnectionGrant("ann", channels=granted),
                "bob": ConnectionGrant("bob"),
            }
        )
        credentials = f"token={token}" if token else ""
        asked = f"channel=%23bob&{credentials}"
        assert await status_of(server, way, kind, asked) == 403
        assert await status_of(server, way, kind, f"channel=news&{asked}") == 403
        assert await status_of(server, way, kind, "channel=%23bob&token=bob") == 200
        if token == "granted":
            async with knocking(server, way, kind, credentials) as status:
                assert status == 200
                await wait_all_tasks_blocked()
                assert set(server.node.hub.channels) == {"news"}


@every_way
@every_kind
async def test_guests_have_a_token(way: str, kind: str) -> None:
    """With `allow_guest_tokens` a token without a user lets in; without any token it stays 401."""
    allowed = {"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True}
    for allow, status in ((False, 401), (True, 200)):
        async with guarded(allow_guest_tokens=allow, channel=allowed) as server:
            server.node.verifier = FakeVerifier({"guest": ConnectionGrant("")})
            assert await status_of(server, way, kind, "channel=news&token=guest") == status
            assert await status_of(server, way, kind) == 401


@every_way
@every_kind
@pytest.mark.parametrize(("token", "status"), [("over", 401), ("later", 503)])
async def test_tokens_over_and_keys_away(way: str, kind: str, token: str, status: int) -> None:
    """A past `expire_at` is 401 at once; keys that cannot be fetched are 503: try again."""
    async with guarded() as server:
        assert await status_of(server, way, kind, f"channel=news&token={token}") == status
        assert not server.node.registry.clients
