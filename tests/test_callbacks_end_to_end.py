"""Callbacks over real sockets: the documentation's back end, broken servers, the end by signal."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from repeater.access.grants import Caller
from repeater.access.http_client import make_client
from repeater.backend.http import HTTPBackend
from repeater.backend.options import CallbackOptions
from repeater.backend.signature import sign
from repeater.clients.addresses import party_of
from repeater.config import CurrentSettings, load_settings
from repeater.errors import BrokerError
from repeater.front.accept import Acceptor
from repeater.front.hypercorn import Handover
from repeater.front.listeners import open_listeners
from repeater.serving.application import create_app
from repeater.serving.server import open_server
from tests.answering import answering, answering_threads, http
from tests.application import Application, open_asking_node
from tests.deadlines import LOOP_ANSWERS
from tests.processes import serving, starts_processes
from tests.serving import UPGRADE, frame, peer, running

PAGE = Path(__file__).parent.parent / "docs" / "callbacks.md"


@pytest.fixture
def example() -> dict[str, Any]:
    """The documentation's back end."""
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(text, PAGE.name, "exec"), names)
    return names


@asynccontextmanager
async def connected(port: int, cookie: str) -> AsyncIterator[WebSocketConnection]:
    """A client; it has yet to send `connect`."""
    url = f"ws://127.0.0.1:{port}/connection/websocket"
    headers = [(b"cookie", cookie.encode())]
    async with open_websocket_url(url, extra_headers=headers) as websocket:
        try:
            yield websocket
        finally:
            if websocket.closed:  # by the server: then the library leaves the socket open
                await websocket._stream.aclose()


async def call(websocket: WebSocketConnection, command: str, /, **fields: Any) -> Any:
    await websocket.send_message(json.dumps({command: fields, "id": 1}))
    while True:
        text = await websocket.get_message()
        assert isinstance(text, str)
        for line in text.split("\n"):
            message = json.loads(line)
            if "id" in message:
                return message


async def test_the_documentations_back_end(example: dict[str, Any]) -> None:
    """It says who connects, who subscribes and who is online, by signed questions and events."""
    with answering_threads(example["Backend"]) as base:
        callbacks = {
            **{f"{kind}_url": f"{base}/{kind}" for kind in ("connect", "subscribe", "rpc")},
            "event_url": f"{base}/events", "secret": "change me", "forward_headers": "cookie",
            "event_delay": 0,
        }  # fmt: skip
        settings = load_settings(
            port=0, callbacks=callbacks, namespaces={"chat": {"subscribe_proxy_enabled": True}}
        )
        with trio.fail_after(LOOP_ANSWERS):
            async with open_server(settings) as server:
                await turn_away_a_stranger(server.port)
                async with (
                    connected(server.port, "session=1") as alice,
                    connected(server.port, "session=2") as bob,
                ):
                    await let_in_two(alice, bob)
    assert example["online"] == {}
    # Two connections, two channels and three subscriptions, each with its end.
    assert len(example["seen"]) == 14
    seen = server.node.statistics()
    assert seen.backend is not None
    assert seen.events is not None
    assert seen.backend.endpoints["connect"].answered == 3
    assert seen.backend.endpoints["rpc"].failed == 0
    assert (seen.events.delivered, seen.events.waiting) == (14, 0)


def test_the_documentations_back_end_follows_runs(example: dict[str, Any]) -> None:
    """A new run or a lost node ends the connections of that run, and what comes late is ignored."""
    numbers = count()

    def tell(node: str, run: str, *events: dict[str, str]) -> list[str]:
        made = [{"id": str(next(numbers)), **event} for event in events]
        example["events"]({"node": node, "run": run, "dropped": 0, "events": made}, "")
        return sorted(example["online"])

    def connected(client: str) -> dict[str, str]:
        return {"event": "connected", "client": client, "user": "ann"}

    assert tell("a", "a1", connected("1")) == ["1"]
    assert tell("b", "b1", connected("2")) == ["1", "2"]
    assert tell("a", "a2", connected("3")) == ["2", "3"]
    assert tell("a", "a1", connected("4")) == ["2", "3"]
    assert tell("b", "b1", {"event": "disconnected", "client": "2"}) == ["3"]
    assert tell("b", "b1", connected("5")) == ["3", "5"]
    lost = {"event": "node_lost", "node": "b", "run": "b1"}
    assert tell("b", "b2", connected("6")) == ["3", "6"]
    assert tell("a", "a2", lost) == ["3", "6"]
    assert tell("b", "b2", {"event": "node_lost", "node": "a", "run": "a2"}) == ["6"]
    assert tell("a", "a2", connected("7")) == ["6"]


async def turn_away_a_stranger(port: int) -> None:
    async with connected(port, "session=9") as stranger:
        with pytest.raises(ConnectionClosed) as caught:
            await call(stranger, "connect")
        assert caught.value.reason is not None
        assert caught.value.reason.code == 4_501
        assert caught.value.reason.reason == "sign in first"


async def let_in_two(alice: WebSocketConnection, bob: WebSocketConnection) -> None:
    assert "news" in (await call(alice, "connect"))["connect"]["subs"]
    assert "connect" in await call(bob, "connect")
    assert "subscribe" in await call(alice, "subscribe", channel="chat:1")
    refused = await call(bob, "subscribe", channel="chat:1")
    assert refused["error"] == {"code": 403, "message": "alice only"}
    unknown = await call(bob, "rpc", method="nothing")
    assert unknown["error"]["code"] == 104
    online: list[str] = []
    while len(online) < 2:  # events come when they come
        online = (await call(bob, "rpc", method="online"))["rpc"]["data"]
    assert online == ["alice", "bob"]


def test_the_documentations_check_of_signatures(example: dict[str, Any]) -> None:
    """It takes what Repeater signs, and nothing forged, altered, old or for another address."""
    is_ours, now = example["is_ours"], int(time.time())
    good = sign("change me", now, "rpc", b"/rpc", b"{}")
    assert is_ours(good, "/rpc", b"{}")
    assert not is_ours(good, "/rpc", b"[]")
    assert not is_ours(good, "/refresh", b"{}")
    assert not is_ours(good.replace("kind=rpc", "kind=refresh"), "/rpc", b"{}")
    assert not is_ours(sign("another", now, "rpc", b"/rpc", b"{}"), "/rpc", b"{}")
    assert not is_ours(sign("change me", now - 301, "rpc", b"/rpc", b"{}"), "/rpc", b"{}")
    for header in ("", "t=", f"t={now}", "v1=", f"t={now},v1=é"):
        assert not is_ours(header, "/rpc", b"{}")


@pytest.mark.parametrize(
    "answer",
    [
        None, b"", b"SSH-2.0-OpenSSH\r\n", b"\x00" * 1_000, http(b"{", 2), http(b"{}"),
        http(b" " * 300_000), http(b'{"result":{}}', status=b"302 Found"),
        http(b"", status=b"500 Oops"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    ],
    ids=lambda answer: repr(answer)[:40],
)  # fmt: skip
async def test_broken_answers_over_a_socket(answer: bytes | None) -> None:
    """Whatever a server says instead of an answer is a `BrokerError`, within the timeout."""
    async with answering(answer, b"POST /rpc") as url, make_client() as client:
        backend = HTTPBackend(CallbackOptions(rpc_url=url, timeout=0.2), client)
        with trio.fail_after(LOOP_ANSWERS), pytest.raises(BrokerError):
            await backend.rpc(Caller("c", "websocket"), "m", b"")
        counted = backend.statistics().endpoints["rpc"]
        assert (counted.failed, counted.under_way) == (1, 0)


async def test_nobody_listens() -> None:
    """A refused connection is one, too."""
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        async with make_client() as client:
            backend = HTTPBackend(CallbackOptions(rpc_url=url), client)
            with pytest.raises(BrokerError):
                await backend.rpc(Caller("c", "websocket"), "m", b"")


def self_signed() -> bytes:
    """A key and a certificate for loopback that nobody vouches for, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return text + certificate.public_bytes(pem)


async def test_certificates_are_verified(tmp_path: Path) -> None:
    """A server that no authority vouches for is not spoken to."""
    file = tmp_path / "server.pem"
    file.write_bytes(self_signed())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    heard: list[bytes] = []

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            heard.append(bytes(await stream.receive_some()))

    async with trio.open_nursery() as nursery, make_client() as client:
        serve = partial(trio.serve_ssl_over_tcp, handle, 0, context, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        options = CallbackOptions(rpc_url=f"https://localhost:{port}/")
        with pytest.raises(BrokerError, match="ConnectError"):
            await HTTPBackend(options, client).rpc(Caller("c", "websocket"), "m", b"")
        nursery.cancel_scope.cancel()
    assert not any(heard)


@starts_processes
async def test_sigterm_delivers_what_happened(example: dict[str, Any]) -> None:
    """A process that is told to end tells of the ends of its connections, and then ends with 0."""
    with answering_threads(example["Backend"]) as base:
        variables = {
            "REPEATER_CALLBACKS__EVENT_URL": f"{base}/events",
            "REPEATER_CALLBACKS__SECRET": "change me",
            "REPEATER_CALLBACKS__EVENT_DELAY": "1h",
        }
        async with (
            serving("--dev", variables=variables) as server,
            connected(await server.port(), "") as websocket,
        ):
            await call(websocket, "connect")
            await call(websocket, "subscribe", channel="news")
            assert not example["seen"]
            assert await server.end() == 0
            with pytest.raises(ConnectionClosed):
                await websocket.get_message()
    assert len(example["seen"]) == 6
    assert not example["online"]


@pytest.mark.parametrize("path", ["websocket", "uni_websocket"])
async def test_every_way_in_forwards_the_same(path: str) -> None:
    """Natively and behind ASGI the back end gets the allowed header and the transport's name."""
    application = Application()
    application.answers["connect"] = {"disconnect": {"code": 4_000, "reason": "enough"}}
    connect = b'{"connect":{},"id":1}' if path == "websocket" else b"{}"
    settings = load_settings(port=0)
    current = CurrentSettings(settings)
    head = (
        f"GET /connection/{path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nX-Other: 1\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Tenant: 7\r\nx-tenant: 8\r\n\r\n"
    ).encode()
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"  # after it, an upgrade is ASGI's
    allowed = frozenset({"x-tenant"})
    with trio.fail_after(LOOP_ANSWERS):
        async with (
            open_asking_node(application, forward_headers=allowed) as node,
            trio.open_nursery() as nursery,
        ):
            acceptor = Acceptor(node, Handover(create_app(node, current), settings), current)
            (listener,) = open_listeners("127.0.0.1", 0, 1)
            nursery.start_soon(acceptor.accept, listener, nursery)
            for before in (b"", first):
                await upgrade_and_say(listener.getsockname()[1], before, head, connect)
            nursery.cancel_scope.cancel()
            listener.close()
    native, asgi = application.requests
    for request in (native, asgi):
        assert request.headers["x-tenant"] == "7, 8"
        assert "x-other" not in request.headers
        assert json.loads(request.content)["transport"] == path


async def upgrade_and_say(port: int, before: bytes, head: bytes, connect: bytes) -> None:
    """Upgrade, perhaps after another request, send one message, and read to the end."""
    frame = b"\x81" + bytes([0x80 | len(connect)]) + b"\0\0\0\0" + connect
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        received = b""
        for request, mark in ((before, b'"ok"'), (head, b" 101 ")):
            if request:
                await stream.send_all(request)
                while mark not in received:
                    received += await stream.receive_some()
        await stream.send_all(frame)
        while b"enough" not in received:
            received += await stream.receive_some()


FORWARDED = "X-Forwarded-For: 192.0.2.7\r\n"


@pytest.mark.parametrize("way", ["native", "asgi"])
@pytest.mark.parametrize("path", ["/connection/websocket", "/connection/uni_sse"])
@pytest.mark.parametrize(
    ("more", "party"), [("", "address 127.0.0.1"), (FORWARDED, "address 192.0.2.7")]
)
async def test_strangers_share_turns_by_their_address(
    way: str, path: str, more: str, party: str
) -> None:
    """Of every way in the back end's turns know the address, also the one that a proxy names."""
    proxies = ["127.0.0.1"] if more else []
    async with running(trusted_proxies=proxies) as server, peer(server) as client:
        if way == "asgi":
            assert b" 404 " in await client.call("GET", "/nothing")
        if "uni" in path:
            request = f"GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n"
        else:
            request = UPGRADE.format(path=path, more=more)
        await client.stream.send_all(request.encode())
        await client.until(b"\r\n\r\n")
        if "uni" not in path:
            await client.stream.send_all(frame(b'{"connect":{},"id":1}'))
        await client.until(b"version")
        (one,) = server.node.registry.clients
        assert one.asking().party == party


@pytest.mark.parametrize(
    ("name", "party"),
    [
        ("192.0.2.1:80", "address 192.0.2.1"),
        ("192.0.2.1", "address 192.0.2.1"),
        ("[2001:db8:1:2:3::4]:80", "address 2001:db8:1:2::"),
        ("2001:db8:1:2:3::4", "address 2001:db8:1:2::"),
        ("[::ffff:192.0.2.1]:80", "address 192.0.2.1"),
        ("", ""),
        ("/run/a.sock", ""),
    ],
)
def test_the_party_of_a_peer(name: str, party: str) -> None:
    """An IPv6 address counts by its /64; a Unix socket's peer has a share of its own."""
    assert party_of(name) == party
