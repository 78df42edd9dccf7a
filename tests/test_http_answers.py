"""What every HTTP answer carries, and which spellings of a path reach a route."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from repeater.config import CurrentSettings, load_settings
from repeater.serving.application import create_app
from repeater.serving.server import Server
from tests.serving import UPGRADE, Peer, peer, running

EVENT = b'{"channel":"news","data":1}'
WAYS = ("first", "after a call", "behind")
STREAMS = ("/events?channel=news", "/connection/uni_sse", "/connection/uni_http_stream")


@asynccontextmanager
async def connection(server: Server, way: str) -> AsyncIterator[Peer]:
    """A connection whose next request is its first, follows a native call, or goes to Quart."""
    async with peer(server) as client:
        if way == "after a call":
            assert b" 200 " in await client.call("POST", "/api/publish", EVENT)
        if way == "behind":
            assert b" 200 " in await client.call("GET", "/openapi.json")
        yield client


async def head_of(client: Peer, request: bytes) -> dict[str, list[str]]:
    """The status (under an empty name) and the headers of the answer to this request."""
    await client.stream.send_all(request)
    first, *lines = (await client.until(b"\r\n\r\n")).decode().strip().split("\r\n")
    found: dict[str, list[str]] = {"": [first.split(" ")[1]]}
    for line in lines:
        name, _, value = line.partition(": ")
        found.setdefault(name.lower(), []).append(value)
    return found


def get(target: str, more: str = "", method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: t\r\n{more}\r\n".encode()


def post(target: str, body: bytes, more: str = "") -> bytes:
    return get(target, f"Content-Length: {len(body)}\r\n{more}", "POST") + body


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post("/api/publish", EVENT), "200"),
        (post("/api/publish", b"{"), "400"),
        (post("/api/stream", EVENT), "200"),
        (post("/api/nothing", EVENT), "404"),
        (get("/api/publish"), "405"),
        (get("/health"), "200"),
        (get("/health/ready"), "200"),
        (get("/metrics"), "200"),
        (get("/ws"), "426"),
        (get("/events?channel=nowhere:a"), "400"),
        (get("/events?channel=a", "Origin: https://evil.example\r\n"), "200"),
        (get("/connection/sse"), "400"),
        (get("/connection/sse", method="OPTIONS"), "204"),
        (post("/emulation", b"{}"), "400"),
        (get("/emulation"), "405"),
        (b"GET /nothing HTTP/1.1\r\nHost: a b\r\n\r\n", "400"),
    ],
)
async def test_every_answer_says_when_and_that_it_is_not_kept(
    way: str, request_bytes: bytes, status: str
) -> None:
    """One `Date` (RFC 9110, section 6.6.1), and a `Cache-Control` that no cache mistakes."""
    async with running() as server, connection(server, way) as client:
        found = await head_of(client, request_bytes)
        assert found[""] in ([status], ["403"])
        assert len(found["date"]) == 1
        assert found["date"][0].endswith(" GMT")
        if found[""] != ["426"]:
            assert "no-store" in found["cache-control"][0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", "400"),
        (b" GET / HTTP/1.1\r\nHost: t\r\n\r\n", "400"),
        (get("/" + "a" * 20_000), "431"),
    ],
)
async def test_bytes_that_are_not_a_request_are_answered(
    way: str, request_bytes: bytes, status: str
) -> None:
    """With a reason, for the person behind them, and the end."""
    async with running() as server, connection(server, way) as client:
        found = await head_of(client, request_bytes)
        assert found[""] == [status]
        assert found["connection"] == ["close"]
        assert len(found["date"]) == 1
        assert (await client.rest()).strip()


@pytest.mark.parametrize("way", WAYS)
async def test_a_websocket_s_answer_says_when(way: str) -> None:
    """101 carries one `Date`, too."""
    async with running() as server, connection(server, way) as client:
        found = await head_of(client, UPGRADE.format(path="/ws?channel=a", more="").encode())
        assert found[""] == ["101"]
        assert len(found["date"]) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", STREAMS)
async def test_no_proxy_changes_a_stream_and_no_browser_guesses_its_type(
    way: str, target: str
) -> None:
    """`no-cache`, `no-transform` and `nosniff`: a compressing proxy would hold events back."""
    method = "POST" if "http_stream" in target else "GET"
    async with running() as server, connection(server, way) as client:
        found = await head_of(client, get(target, "Content-Length: 0\r\n", method))
        assert found[""] == ["200"]
        directives = found["cache-control"][0].split(", ")
        assert {"no-cache", "no-transform", "no-store"} <= set(directives)
        assert found["x-content-type-options"] == ["nosniff"]


TARGETS = (
    *("/health", "/metrics", "/events?channel=a", "/connection/uni_sse", "/connection/sse"),
    *("/emulation", "/api/publish", "/api/stream", "/ws", "/openapi.json"),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", TARGETS)
async def test_an_absolute_target_means_its_path(way: str, target: str) -> None:
    """RFC 9112, section 3.2.2: a server must accept it, and its authority counts, not `Host`."""
    method = "POST" if target in ("/emulation", "/api/publish", "/api/stream") else "GET"
    async with running() as server:
        statuses = []
        for spelling in (target, f"http://t{target}", f"HTTPS://[::1]:80{target}"):
            async with connection(server, way) as client:
                statuses.append((await head_of(client, get(spelling, method=method)))[""])
        assert len(set(map(tuple, statuses))) == 1
        assert statuses[0] != ["404"]


@pytest.mark.parametrize("way", WAYS)
async def test_the_authority_of_an_absolute_target_is_the_host(way: str) -> None:
    """The origin rule compares with it: `Host` may be anything (RFC 9112, section 3.2.2)."""
    settings = {"dev": False, "allow_anonymous": True, "api_key": "a", "metrics_open": True}
    async with running(**settings) as server:
        for authority, status in (("own.example", "400"), ("other.example", "403")):
            async with peer(server) as client:
                if way == "after a call":
                    assert b" 200 " in await client.call("POST", "/api/publish?api_key=a", EVENT)
                if way == "behind":
                    assert b" 200 " in await client.call("GET", "/health")
                sent = (
                    f"GET http://{authority}/connection/sse HTTP/1.1\r\nHost: own.example\r\n"
                    "Origin: http://own.example\r\n\r\n"
                )
                assert (await head_of(client, sent.encode()))[""] == [status]


SPELLINGS = (
    *("//api/publish", "/api//publish", "/api/./publish", "/x/../api/publish", "/api/publish/"),
    *("/%61pi/publish", "/api%2fpublish", "/api%2Fpublish", "/api/p%75blish", "/API/publish"),
    *("/api/publish/.", "/.//api/publish", "/x/%2e%2e/api/publish", "/api\\publish"),
    *("//api/stream", "/api/%73tream", "/api%2fstream", "/Api/stream"),
    *("//health", "/h%65alth", "/health/", "//health/live", "/health%2flive", "/Health"),
    *("//metrics", "/%6detrics", "/metrics/", "/METRICS", "/./metrics", "/metrics%00"),
    *("//events?channel=a", "/%65vents?channel=a", "/events/?channel=a", "/EVENTS?channel=a"),
    *("//connection/sse", "/connection%2fsse", "/connection//sse", "/connection/ss%65"),
    *("//ws", "/w%73", "/ws/", "/WS", "//emulation", "/%65mulation", "/emulation/"),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", SPELLINGS)
async def test_another_spelling_is_another_path(way: str, target: str) -> None:
    """404 on every way: a rule of a proxy for a path cannot be walked around."""
    async with running() as server:
        for sent in (
            post(target, EVENT),
            get(target),
            UPGRADE.format(path=target, more="").encode(),
        ):
            async with connection(server, way) as client:
                assert (await head_of(client, sent))[""] in (["404"], ["403"])
        assert server.node.statistics().repeater.publications == (3 if way == "after a call" else 0)


FAULTS = (
    (get("/health", "Origin: http://a\r\nOrigin: http://a\r\n"), "400"),
    (get("/health", "Authorization: a\r\nAuthorization: b\r\n"), "400"),
    (post("/api/publish", b"", "Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", "400"),
    (get("/health").replace(b"Host: t", b"Host: a/b c"), "400"),
    (get("/health").replace(b"Host: t", b"Host: " + b"a" * 8_000), "400"),
    (get("/h%65alth"), "404"),
    (get("//health"), "404"),
    (get("/api/p%75blish", method="POST"), "404"),
    (get("http://a/health"), "200"),
    (get("http://a/connection/sse"), "400"),
)


async def test_a_stock_server_s_requests_are_judged() -> None:
    """Whatever Hypercorn's own server lets through; a fault ends its connection."""
    current = CurrentSettings(load_settings(dev=True, allowed_hosts="*"))
    config, done = Config(), trio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config.bind = [f"fd://{listener.detach()}"]  # Hypercorn's from here on
    config.errorlog = None
    async with trio.open_nursery() as nursery:
        serving = partial(serve, create_app(settings=current), config)
        nursery.start_soon(partial(serving, shutdown_trigger=done.wait))
        for request_bytes, status in FAULTS:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                client = Peer(stream)
                found = await head_of(client, request_bytes)
                assert found[""] == [status], request_bytes
                if found.get("connection") == ["close"]:
                    await client.rest()
                else:
                    assert status != "400" or b"sse" in request_bytes
        done.set()
