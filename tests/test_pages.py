"""What web pages reach: hosts, development mode, streams without an origin, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from repeater.serving.server import Server
from tests.knocking import (
    BROWSER,
    UPGRADE,
    WAYS,
    ask,
    every_kind,
    every_way,
    guarded,
    knocking,
    refused,
    status_of,
)
from tests.serving import peer, running

STREAMS = ("/events?channel=news", "/connection/sse?cf_connect={}", "/connection/uni_sse")
EVIL = "https://evil.example"


async def status(
    server: Server, target: str, method: str = "GET", body: bytes = b"", **headers: str
) -> int:
    async with peer(server) as client:
        return (await ask(client, target, method, body, **headers))[0]


EVENT = b'{"channel":"news","data":1}'
HOSTS = ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]", "[::1]:80", "localhost:"]
OTHERS = ["rebind.evil.example", "localhost.evil.example", "127.0.0.2", "[::2]", "localhost.:1"]


@pytest.mark.parametrize("host", [*HOSTS, *OTHERS])
async def test_the_hosts_of_development_mode(host: str) -> None:
    """Every path, native or not, answers 421 to a name that is not this machine's own."""
    expected = 200 if host in HOSTS else 421
    async with running(allowed_hosts=()) as server:
        for target in ("/health", "/metrics", "/events?channel=news", "/openapi.json"):
            assert await status(server, target, Host=host) == expected
        assert await status(server, "/api/publish", "POST", EVENT, Host=host) == expected
        upgrade: Any = {"Host": host, **UPGRADE}
        opened = 101 if expected == 200 else 421
        for target in ("/ws?channel=news", "/connection/websocket"):
            assert await status(server, target, **upgrade) == opened
            async with peer(server) as client:
                await client.call("GET", "/health")
                assert (await ask(client, target, **upgrade))[0] == opened
        there = 400 if expected == 200 else 421
        assert await status(server, "/emulation", "POST", b"{}", Host=host) == there


async def test_a_missing_and_a_doubled_host() -> None:
    """Neither is ours."""
    async with running(allowed_hosts=()) as server:
        for lines in (
            b" HTTP/1.0\r\n\r\n",
            b" HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        ):
            for target in (b"/health", b"/events?channel=news"):
                async with peer(server) as client:
                    await client.stream.send_all(b"GET " + target + lines)
                    assert (await client.until(b"\r\n")).split(b" ")[1] in (b"421", b"400")


@every_way
@every_kind
async def test_allowed_hosts_elsewhere(way: str, kind: str) -> None:
    """Subscriptions of other hosts get 421 on every way in; without it any host will do."""
    async with guarded(allowed_hosts=["test", "localhost", "*.example.com"]) as server:
        if way != "h2":
            assert await status_of(server, way, kind, "token=ann", Host="a.example.com:1") == 200
            assert await status_of(server, way, kind, "token=ann", Host="evil.example") == 421
        assert await status_of(server, way, kind, "token=ann") == 200
    async with guarded(allowed_hosts=["other", "localhost"]) as server:
        assert await status_of(server, way, kind, "token=ann") == 421
    async with guarded(allowed_hosts=()) as server:
        assert await status_of(server, way, kind, "token=ann") == 200


async def test_a_keyed_call_for_another_host() -> None:
    """421 on the first call and on later ones; the right host is served."""
    async with running(dev=False, api_key="k" * 16, allowed_hosts="a.example") as server:
        head = {"X_API_Key": "k" * 16}
        async with peer(server) as client:
            for host, expected in (("a.example", 200), ("b.example", 421)):
                answer = await ask(client, "/api/publish", "POST", EVENT, Host=host, **head)
                assert answer[0] == expected
                if expected == 200:
                    await client.until(b"}")
                    client.received = b""
        assert await status(server, "/api/publish", "POST", EVENT, Host="b.example", **head) == 421


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site"}, 200),
        ({"Origin": "http://127.0.0.1", "Sec_Fetch_Site": "cross-site"}, 200),
        ({"Origin": "https://chosen.example"}, 200),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": EVIL, "Sec_Fetch_Site": "same-origin"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
    ],
)
async def test_pages_and_the_api_in_development_mode(
    headers: dict[str, str], expected: int, first: bool
) -> None:
    """A foreign page's simple POST does nothing; this machine's pages may call."""
    async with running(allowed_hosts=(), allowed_origins="https://chosen.example") as server:
        async with peer(server) as client:
            if not first:
                assert (await ask(client, "/api/publish", "POST", EVENT))[0] == 200
                await client.until(b"}}")
            plain = {"Content_Type": "text/plain", **headers}
            for name in ("publish", "block_user", "stream"):
                answered = await status(server, f"/api/{name}", "POST", EVENT, **plain)
                assert (answered == 403) is (expected == 403)
            assert (await ask(client, "/api/publish", "POST", EVENT, **plain))[0] == expected
        if expected == 403:
            assert server.node.statistics().repeater.publications <= (not first)


@every_way
@every_kind
async def test_pages_and_subscriptions_in_development_mode(way: str, kind: str) -> None:
    """Foreign pages hear nothing; pages of this machine do."""
    async with running() as server:
        for origin, expected in (
            (EVIL, 403), ("null", 403), ("http://localhost:5173", 200), ("https://[::1]", 200)
        ):  # fmt: skip
            assert await status_of(server, way, kind, Origin=origin) == expected


@every_way
@every_kind
@pytest.mark.parametrize(
    ("site", "origins", "expected"),
    [
        ("cross-site", (), 403),
        ("same-site", (), 403),
        ("same-origin", (), 200),
        ("none", (), 200),
        ("cross-site", ("*",), 200),
    ],
)
async def test_a_page_s_request_without_an_origin(
    way: str, kind: str, site: str, origins: tuple[str, ...], expected: int
) -> None:
    """An image or a frame of another site opens no stream: browsers say so in Sec-Fetch-Site."""
    async with guarded(allowed_origins=origins) as server:
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert await status_of(server, way, kind, "token=ann", **headers) == expected


async def test_the_star_lets_no_credentials_be_read() -> None:
    """`*` is answered with `*`, never with a stranger's origin and its user's credentials."""
    async with guarded(allowed_origins=["*", "https://friend.test"]) as server:
        for origin, reflected in ((EVIL, False), ("https://friend.test", True)):
            async with peer(server) as client:
                head = (await ask(client, "/events?token=ann", Origin=origin))[1].lower()
            assert (b"access-control-allow-credentials" in head) is reflected
            allowed = origin.encode() if reflected else b"*"
            assert b"access-control-allow-origin: %s\r\n" % allowed in head


# ---- temporary refusals


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", STREAMS)
@pytest.mark.parametrize(
    ("settings", "code", "why"),
    [
        ({"limits": {"connections": 1}}, 503, b"the limit connections"),
        ({"limits": {"connection_rate": 1}}, 503, b"the limit connection_rate"),
        ({}, 503, b"the server shuts down"),
    ],
)
async def test_an_event_source_comes_back(
    way: str,
    target: str,
    settings: dict[str, dict[str, int]],
    code: int,
    why: bytes,
    slow_clock: MockClock,
) -> None:
    """After a temporary refusal: 200, when to come back, why; others get the status."""
    async with running(**settings) as server, knocking(server, "native", "websocket") as first:
        assert first == 200
        server.node.draining = not settings
        status, head, body = await refused(server, way, target, **BROWSER)
        assert status == 200
        assert b"content-type: text/event-stream; charset=utf-8\r\n" in head
        assert b"no-transform" in head
        assert body.startswith(b"retry: ")
        assert b"\n: " in body
        assert why in body
        assert b"data" not in body
        for headers in ({}, {"Accept": "text/event-stream"}, {"Sec_Fetch_Mode": "cors"}):
            status, head, body = await refused(server, way, target, **headers)
            assert status == code
            assert b"retry-after: 1\r\n" in head
        server.node.draining = False


@pytest.mark.parametrize("way", WAYS)
async def test_an_event_source_comes_back_when_keys_and_users_allow(way: str) -> None:
    """Keys that cannot be fetched, and too many connections of the user; 401 stays what it is."""
    async with (
        guarded(limits={"connections_per_user": 1}) as server,
        knocking(server, "native", "websocket", "token=ann"),
    ):
        for token, code in (("later", 503), ("ann", 429), ("wrong", 401)):
            target = f"/events?token={token}"
            status, _, body = await refused(server, way, target, **BROWSER)
            assert (status, body.startswith(b"retry: ")) == (
                (200, True) if code != 401 else (401, False)
            )
            status, head, _ = await refused(server, way, target, Accept="text/event-stream")
            assert status == code
            assert (b"retry-after: " in head) is (code != 401)


@every_way
async def test_a_refused_websocket_is_told_when_to_come_back(way: str) -> None:
    """A WebSocket's handshake gets the status in any case."""
    async with running(limits={"connections": 1}) as server, knocking(server, "native", "stream"):
        headers = {"Accept": "text/event-stream", "Sec-Fetch-Mode": "websocket"}
        assert await status_of(server, way, "websocket", **headers) == 503


@every_way
@pytest.mark.parametrize("target", STREAMS)
async def test_streams_ask_not_to_be_transformed(way: str, target: str) -> None:
    """A proxy that compresses would keep the events back."""
    async with running() as server, peer(server) as client:
        if way == "h2":
            pytest.skip("the same headers as behind ASGI")
        if way == "asgi":
            await client.call("GET", "/nothing")
        code, head = await ask(client, target)
        assert code == 200
        control = head.lower().partition(b"cache-control: ")[2].partition(b"\r\n")[0]
        assert b"no-transform" in control.replace(b" ", b"").split(b",")
