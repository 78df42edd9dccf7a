"""Behind a real nginx, with the configuration that docs/deployment.md prints."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import trio

from benchmarks.ports import free_port
from repeater.serving.server import Server
from tests.certificates import Authority
from tests.nginx import NGINX, nginx
from tests.processes import starts_processes
from tests.serving import UPGRADE, Peer, frame, running, telling

PAGE = Path(__file__).parent.parent / "docs" / "deployment.md"


pytestmark = [
    starts_processes,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]


def printed(language: str) -> str:
    """The block of the page in this language."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    return found[1]


class Front(NamedTuple):
    """A server, nginx in front, and how a client comes in."""

    server: Server
    port: int
    authority: Authority

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        stream = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", self.port),
            self.authority.client(),
            server_hostname="localhost",
            https_compatible=True,
        )
        yield Peer(stream)  # type: ignore[arg-type]
        await trio.aclose_forcefully(stream)


def page_block(authority: Authority, path: Path, port: int) -> str:
    """The page's configuration, with our paths and port."""
    block = printed("nginx")
    for old, new in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/run/repeater/repeater.sock", str(path)),
        ("/etc/ssl/example.com/fullchain.pem", str(authority.certificate)),
        ("/etc/ssl/example.com/privkey.pem", str(authority.key)),
    ):
        assert old in block
        block = block.replace(old, new)
    return block


@pytest.fixture
async def front(authority: Authority, tmp_path: Path) -> AsyncIterator[Front]:
    """The page's configuration, with our paths and port."""
    path, port = tmp_path / "r.sock", free_port()
    block = page_block(authority, path, port)
    async with telling(listen=[f"unix:{path}"], trusted_proxies=["unix"]) as server:
        with nginx(tmp_path, f"http {{\n{block}\n}}"):
            yield Front(server, port, authority)


async def test_calls_share_a_connection_that_is_kept(front: Front) -> None:
    """HTTP/2 and HTTP/1.1 outside, one kept connection inside; native, and through the pages."""
    base = f"https://localhost:{front.port}"
    for http2 in (True, False):
        async with httpx.AsyncClient(http2=http2, verify=front.authority.client()) as client:
            for number in range(3):
                body = b'{"channel":"news","data":[%d]}' % number
                answer = await client.post(f"{base}/api/publish", content=body)
                assert "offset" in answer.json()["result"]
            who = await client.get(f"{base}/who", headers={"X-Forwarded-For": "6.6.6.6"})
            assert who.text == "127.0.0.1 https"
    assert front.server.acceptor.statistics().accepted == 1


async def test_a_page_of_the_own_host_may_connect(front: Front) -> None:
    """Whatever the version of HTTP: nginx passes the host on, port included."""
    seen = []
    app = front.server.acceptor._handover._app.app  # type: ignore[attr-defined]

    @app.before_request
    async def note() -> None:
        from quart import request

        seen.append(request.headers["Host"])

    for http2 in (True, False):
        async with httpx.AsyncClient(http2=http2, verify=front.authority.client()) as client:
            await client.get(f"https://localhost:{front.port}/health")
    assert seen == [f"localhost:{front.port}"] * 2


@pytest.mark.parametrize("kept_alive", [False, True])
async def test_a_websocket(front: Front, kept_alive: bool) -> None:
    """Native on a fresh connection; on a kept-alive one, which the acceptor misses, ASGI's."""
    async with front.peer() as client, front.peer() as back_end:
        if kept_alive:
            await back_end.call("POST", "/api/publish", b'{"channel":"news","data":[0]}')
        head = UPGRADE.format(path="/ws?channel=news", more="")
        await client.stream.send_all(head.encode())
        assert b" 101 " in await client.until(b"\r\n\r\n")
        while not front.server.node.registry.clients:
            await trio.lowlevel.checkpoint()
        (subscriber,) = front.server.node.registry.clients
        assert subscriber.transport.address() == "127.0.0.1"
        assert type(subscriber.transport).__name__.startswith("ASGI") is kept_alive
        await back_end.call("POST", "/api/publish", b'{"channel":"news","data":[1]}')
        assert b"[1]" in await client.until(b"]")
        await client.stream.send_all(frame(b"\x03\xe8", 8))
        assert b"\x88" in await client.until(b"\x03\xe8")
    while front.server.node.registry.clients:
        await trio.lowlevel.checkpoint()


async def test_centrifugo_through_nginx(front: Front) -> None:
    """Commands go in and replies come out."""
    async with front.peer() as client:
        head = UPGRADE.format(path="/connection/websocket", more="")
        await client.stream.send_all(head.encode())
        await client.until(b"\r\n\r\n")
        await client.stream.send_all(frame(b'{"connect":{},"id":1}'))
        assert b'"id":1' in await client.until(b'"connect":')


async def test_the_proxy_protocol_of_nginx(tmp_path: Path) -> None:
    """From nginx's stream module: the subscriber's own address and port."""
    settings = {"trusted_proxies": ["127.0.0.1"], "proxy_protocol": True}
    async with running(**settings) as server:
        port = free_port()
        block = printed("nginx-stream").replace("listen 443", f"listen 127.0.0.1:{port}")
        block = block.replace("127.0.0.1:8443", f"127.0.0.1:{server.port}")
        with nginx(tmp_path, f"stream {{\n{block}\n}}"):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
                assert b" 101 " in await Peer(stream).until(b"\r\n\r\n")
                (subscriber,) = server.node.registry.clients
                host, own = stream.socket.getsockname()
                assert subscriber.transport.address() == f"{host}:{own}"


async def test_an_event_stream_is_not_held_back(front: Front) -> None:
    """`/events`, native behind the Unix socket: an event is there before the stream has ended."""
    async with front.peer() as client, front.peer() as back_end:
        head = "GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await client.stream.send_all(head.encode())
        assert b" 200 " in await client.until(b"\r\n\r\n")
        while not front.server.node.registry.clients:
            await trio.lowlevel.checkpoint()
        (subscriber,) = front.server.node.registry.clients
        assert subscriber.transport.address() == "127.0.0.1"
        assert not type(subscriber.transport).__name__.startswith("ASGI")
        await back_end.call("POST", "/api/publish", b'{"channel":"news","data":[1]}')
        assert b"[1]" in await client.until(b"[1]")
    while front.server.node.registry.clients:
        await trio.lowlevel.checkpoint()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
GUARD = "location /api/ { return 403; } location = /metrics { return 403; } location / {"


@pytest.mark.parametrize("target", ["/health", "/ws?channel=news", "/api/publish", "/metrics"])
@pytest.mark.parametrize("used", [False, True])
async def test_no_tunnel_through_nginx(
    authority: Authority, tmp_path: Path, target: str, used: bool
) -> None:
    """An upgrade to `h2c` opens none: what nginx refuses stays refused, whatever is sent behind."""
    path, port = tmp_path / "r.sock", free_port()
    block = page_block(authority, path, port).replace("location / {", GUARD)
    async with telling(listen=[f"unix:{path}"], trusted_proxies=["unix"]) as server:
        with nginx(tmp_path, f"http {{\n{block}\n}}"):
            async with Front(server, port, authority).peer() as client:
                if used:
                    assert b" 200 " in await client.call("GET", "/health")
                head = (
                    f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\n"
                    "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"
                    "X-Forwarded-For: 6.6.6.6\r\n\r\n"
                )
                await client.stream.send_all(head.encode())
                answer = await client.until(b"\r\n\r\n")
                assert b" 101 " not in answer
                if target.startswith(("/api", "/metrics")):
                    assert b" 403 " in answer
                await client.stream.send_all(PREFACE)
                assert b"\0\0\0\4" not in await client.rest()  # no settings of HTTP/2


async def test_a_forged_address_is_not_believed(front: Front) -> None:
    """Nginx appends its peer to what a stranger sent, on every version of HTTP."""
    base = f"https://localhost:{front.port}"
    for http2 in (True, False):
        async with httpx.AsyncClient(http2=http2, verify=front.authority.client()) as client:
            for name in ("X-Forwarded-For", "Forwarded"):
                who = await client.get(f"{base}/who", headers={name: "for=6.6.6.6, 6.6.6.6"})
                assert who.text == "127.0.0.1 https"
