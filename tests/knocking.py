"""Knocking at a server by each way in: the status that a subscriber's request gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import pytest

from repeater.access.grants import ConnectionGrant, TokenInvalidError
from repeater.errors import BrokerError
from repeater.serving.server import Server
from tests.conversation import FakeVerifier
from tests.serving import Peer, peer, running

PATHS: Final = {"websocket": "/ws", "stream": "/events"}
WAYS: Final = ("native", "asgi", "h2")
UPGRADE: Final = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

BROWSER = {"Accept": "text/event-stream", "Sec_Fetch_Mode": "cors"}

every_way = pytest.mark.parametrize("way", WAYS)
every_kind = pytest.mark.parametrize("kind", PATHS)


@asynccontextmanager
async def knocking(
    server: Server, way: str, kind: str, query: str = "channel=news", **headers: str
) -> AsyncIterator[int]:
    """The status that a subscriber's request gets; its connection lives as long as the block."""
    target = f"{PATHS[kind]}?{query}"
    async with peer(server, protocols=["h2"] if way == "h2" else ()) as client:
        if way == "h2":
            yield await knock_by_http2(client, kind, target, headers)
            return
        if way == "asgi":  # behind a used connection
            assert b" 404 " in await client.call("GET", "/nothing")
        named = {"Host": "test", **(UPGRADE if kind == "websocket" else {}), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        await client.stream.send_all(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())
        yield opened(int((await client.until(b"\r\n\r\n")).split(b" ")[1]))


async def knock_by_http2(client: Peer, kind: str, target: str, headers: dict[str, str]) -> int:
    http = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
    http.initiate_connection()
    head = {":method": "GET", ":scheme": "https", ":authority": "test", ":path": target}
    if kind == "websocket":  # RFC 8441
        head |= {":method": "CONNECT", ":protocol": "websocket", "sec-websocket-version": "13"}
    head |= {name.lower(): value for name, value in headers.items()}
    http.send_headers(1, list(head.items()), end_stream=kind == "stream")
    while True:
        await client.stream.send_all(http.data_to_send())
        for event in http.receive_data(await client.stream.receive_some()):
            if isinstance(event, h2.events.ResponseReceived):
                return opened(int(dict(event.headers)[b":status"]))


def opened(status: int) -> int:
    """A WebSocket's 101 is 200 by HTTP/2 and for a stream."""
    return 200 if status == 101 else status


async def status_of(
    server: Server, way: str, kind: str, query: str = "channel=news", **headers: str
) -> int:
    async with knocking(server, way, kind, query, **headers) as status:
        return status


TOKENS: Final = FakeVerifier(
    {
        "ann": ConnectionGrant("ann"),
        "guest": ConnectionGrant(),
        "over": ConnectionGrant("ann", expire_at=1),
        "wrong": TokenInvalidError("no"),
        "later": BrokerError("no keys now"),
    }
)


@asynccontextmanager
async def guarded(**settings: Any) -> AsyncIterator[Server]:
    """A server that knows a few tokens, and lets nobody in without one."""
    channel = {"allow_subscribe_for_client": True}
    async with running(
        **{"dev": False, "default_channel": "news", "channel": channel, **settings}
    ) as server:
        server.node.verifier = TOKENS
        yield server


async def ask(
    client: Peer, target: str, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    """Status and head of the answer to one request."""
    named = {"Host": "localhost", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    if body:
        lines += f"Content-Length: {len(body)}\r\n"
    await client.stream.send_all(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body)
    head = await client.until(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head


async def refused(
    server: Server, way: str, target: str, **headers: str
) -> tuple[int, bytes, bytes]:
    """Status, head and body of a stream's refusal."""
    async with peer(server, protocols=["h2"] if way == "h2" else ()) as client:
        if way == "h2":
            return await refused_by_http2(client, target, headers)
        if way == "asgi":
            await client.call("GET", "/nothing")
        code, head = await ask(client, target, "GET", b"", **headers)
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(client.received) < size:
            client.received += await client.stream.receive_some()
        return code, head.lower(), client.received[:size]


async def refused_by_http2(
    client: Peer, target: str, headers: dict[str, str]
) -> tuple[int, bytes, bytes]:
    import h2.config
    import h2.connection
    from h2.events import ResponseReceived

    http = h2.connection.H2Connection(h2.config.H2Configuration())
    http.initiate_connection()
    head = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", target),
    ]
    head += [(name.replace("_", "-").lower(), value) for name, value in headers.items()]
    http.send_headers(1, head, end_stream=True)
    code, lines, body = 0, b"", b""
    while True:
        await client.stream.send_all(http.data_to_send())
        for event in http.receive_data(await client.stream.receive_some()):
            if isinstance(event, ResponseReceived):
                pairs = [(bytes(name), bytes(value)) for name, value in event.headers]
                code = int(dict(pairs)[b":status"])
                lines = b"".join(b"%s: %s\r\n" % pair for pair in pairs).lower()
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                return code, lines, body
