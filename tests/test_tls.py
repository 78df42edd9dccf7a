"""TLS on every way in, over real sockets; certificates by trustme."""

from __future__ import annotations

import re
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import msgspec
import pytest
import trio

from repeater.config import ConfigError, load_settings
from repeater.front.tls import Certificate, TLSError
from repeater.serving.errors import ServeError
from repeater.serving.server import Server, open_server
from tests.certificates import Authority, Stream, connect
from tests.processes import serving, starts_processes
from tests.serving import UPGRADE, Peer, close_code, frame, running

BODY = b'{"channel":"news","data":[%d]}'


@asynccontextmanager
async def secure_peer(
    server: Server, authority: Authority, path: str = "", behind: bytes = b""
) -> AsyncIterator[Peer]:
    """A raw client behind TLS, upgraded to a WebSocket where a path is given."""
    stream = await connect(server, authority)
    peer = Peer(stream)  # type: ignore[arg-type]
    try:
        if path:
            await stream.send_all(UPGRADE.format(path=path, more="").encode() + behind)
            assert b" 101 " in await peer.until(b"\r\n\r\n")
        yield peer
    finally:
        await trio.aclose_forcefully(stream)


async def test_an_event_reaches_every_kind_of_subscriber(authority: Authority) -> None:
    """Plain and Centrifugo, by a native call; all on the one port, behind TLS."""
    commands = b'{"connect":{},"id":1}\n{"subscribe":{"channel":"news"},"id":2}'
    async with (
        running(**authority.settings) as server,
        secure_peer(server, authority) as back_end,
        secure_peer(server, authority, "/ws?channel=news") as plain,
        # In one record with the head: the kernel has nothing left to say that it is there.
        secure_peer(server, authority, "/connection/websocket", frame(commands)) as sdk,
    ):
        await sdk.until(b'{"id":2,"subscribe":{}}')
        for number in range(3):
            answer = await back_end.call("POST", "/api/publish", BODY % number)
            assert b'"offset":%d' % (number + 1) in answer.replace(b" ", b"")
            assert b"[%d]" % number in await plain.until(b"]")
            assert b'"data":[%d]' % number in await sdk.until(b"}}}")
        assert server.acceptor.statistics().rest.requests == 3


async def test_a_large_message_comes_in_and_goes_out_whole(authority: Authority) -> None:
    """Many records of TLS, through a backlog: every byte in its order."""
    size = 300_000
    data = b'"' + b"x" * size + b'"'
    async with (
        running(**authority.settings) as server,
        secure_peer(server, authority) as back_end,
        secure_peer(server, authority, "/ws?channel=news") as plain,
    ):
        for number in range(3):
            body = b'{"channel":"news","data":[%d,%s]}' % (number, data)
            await back_end.call("POST", "/api/publish", body)
        for number in range(3):
            message = await plain.until(b"]")
            assert message[10:] == b"[%d,%s]" % (number, data)


async def test_a_stalled_reader_is_cut_and_nobody_else_notices(authority: Authority) -> None:
    """As without TLS: slow by its bytes; the one beside it gets everything in order."""
    async with (
        running(batch_limit=65_536, outbox_limit=65_536, **authority.settings) as server,
        secure_peer(server, authority, "/ws?channel=news") as stalled,
        secure_peer(server, authority, "/ws?channel=news") as other,
        secure_peer(server, authority) as back_end,
    ):
        number = 0
        while 3008 not in server.node.statistics().ended:
            body = b'{"channel":"news","data":"%06d%s"}' % (number, b"x" * 60_000)
            await back_end.call("POST", "/api/publish", body)
            assert b'"%06d' % number in await other.until(b'x"')
            number += 1
        assert len(server.node.registry.clients) == 1
        assert stalled.received == b""


async def test_a_vanished_peer_is_found(authority: Authority) -> None:
    """Silent after a ping: gone within ping and pong."""
    async with (
        running(ping_interval=0.3, pong_timeout=0.2, **authority.settings) as server,
        secure_peer(server, authority, "/ws?channel=news") as client,
    ):
        assert await client.until(b"\x89\x00")
        await client.rest()
        assert 3012 in server.node.statistics().ended


async def test_shutdown_says_goodbye(authority: Authority) -> None:
    """3001 and an orderly end of TLS; an unfinished handshake holds nothing up."""
    async with running(**authority.settings) as server:
        stream = await connect(server, authority)
        client = Peer(stream)  # type: ignore[arg-type]
        await stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
        await client.until(b"\r\n\r\n")
        silent = await trio.open_tcp_stream("127.0.0.1", server.port)
        while server.acceptor.statistics().open < 2:
            await trio.lowlevel.checkpoint()
    async with silent:
        assert close_code(await client.rest()) == 3001
        await trio.aclose_forcefully(stream)


async def test_rest_and_pages_by_both_versions_of_http(authority: Authority) -> None:
    """HTTP/2 where the client offers it, many calls on one connection; HTTP/1.1 beside it."""
    async with running(**authority.settings) as server:
        base = f"https://localhost:{server.port}"
        for http2, version in ((True, "HTTP/2"), (False, "HTTP/1.1")):
            async with httpx.AsyncClient(http2=http2, verify=authority.client()) as client:
                for _ in range(3):
                    answer = await client.post(f"{base}/api/publish", content=BODY % 1)
                    assert answer.http_version == version
                    assert "offset" in answer.json()["result"]
                assert (await client.get(f"{base}/health")).status_code == 200


async def test_a_websocket_inside_http2(authority: Authority) -> None:
    """RFC 8441, through the Quart route: subscribed, and published to by the same connection."""
    async with running(**authority.settings) as server:
        stream = await connect(server, authority, "h2")
        assert stream.selected_alpn_protocol() == "h2"
        peer = HTTP2(stream)
        await peer.start()
        await peer.until(h2.events.RemoteSettingsChanged)
        code = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
        assert peer.connection.remote_settings[code] == 1
        path = "/ws?channel=news"
        peer.request(1, ":method CONNECT", ":protocol websocket", f":path {path}",
                     "sec-websocket-version 13")  # fmt: skip
        assert await peer.until(h2.events.ResponseReceived) == 1
        while not server.node.registry.clients:
            await trio.lowlevel.checkpoint()
        peer.request(3, ":method POST", ":path /api/publish", end=False)
        peer.connection.send_data(3, BODY % 7, end_stream=True)
        while b"[7]" not in peer.received.get(1, b""):
            await peer.until(h2.events.DataReceived)
        await trio.aclose_forcefully(stream)


class HTTP2:
    """A client's end of HTTP/2."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._events: list[h2.events.Event] = []
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration())
        self.received: dict[int, bytes] = {}

    async def start(self) -> None:
        self.connection.initiate_connection()
        await self._flush()

    def request(self, number: int, *headers: str, end: bool = False) -> None:
        pairs = [(":scheme", "https"), (":authority", "localhost")]
        given = [(name, value) for name, _, value in (one.partition(" ") for one in headers)]
        self.connection.send_headers(
            number, sorted([*given, *pairs], key=lambda one: one[0][0] != ":"), end_stream=end
        )

    async def until(self, kind: type[h2.events.Event]) -> int:
        """Wait for the next event of a kind; the number of its stream."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, h2.events.DataReceived):
                    before = self.received.get(event.stream_id, b"")
                    self.received[event.stream_id] = before + event.data
                if isinstance(event, kind):
                    return getattr(event, "stream_id", 0)
            await self._flush()
            data = await self._stream.receive_some()
            assert data, "the end came before"
            self._events += self.connection.receive_data(data)

    async def _flush(self) -> None:
        await self._stream.send_all(self.connection.data_to_send())


async def test_a_plain_request_is_told_so(authority: Authority) -> None:
    """HTTP on the TLS port: a readable 400, the end, and a count."""
    async with running(**authority.settings) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            client = Peer(stream)
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"HTTPS only" in answer
        assert server.acceptor.statistics().rejected == 1


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", b"\x00\x01 noise \xff" * 9])
async def test_a_handshake_that_never_finishes(authority: Authority, sent: bytes) -> None:
    """Silence, half a greeting, noise: ended by the deadline or at once."""
    async with running(head_timeout=0.2, **authority.settings) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(sent) if sent else None
            await Peer(stream).rest()
        while server.acceptor.statistics().open:
            await trio.lowlevel.checkpoint()


async def test_a_peer_that_hangs_up_in_the_handshake(authority: Authority) -> None:
    """A reset before, and in the middle: nothing is left, and the next one is served."""
    async with running(**authority.settings) as server:
        for sent in (b"", b"\x16\x03\x01\x02\x00\x01"):
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if sent:
                await stream.send_all(sent)
            await stream.aclose()
        async with secure_peer(server, authority) as client:
            assert b" 200 " in await client.call("GET", "/health")
        assert server.acceptor.statistics().accepted == 3


async def test_a_new_certificate_drops_nobody(authority: Authority) -> None:
    """New connections see it; those that met the old one hear on, on the same connection."""
    async with (
        running(**authority.settings) as server,
        secure_peer(server, authority, "/ws?channel=news") as old,
        secure_peer(server, authority) as back_end,
    ):
        authority.issue()
        assert server.certificate is not None
        server.certificate.reload()
        async with secure_peer(server, authority, "/ws?channel=news") as new:
            await back_end.call("POST", "/api/publish", BODY % 1)
            for client in (old, new):
                assert b"[1]" in await client.until(b"]")
            serials = {number_of(client) for client in (old, new)}
            assert len(serials) == 2


def number_of(client: Peer) -> str:
    """The serial number of the certificate that this client has met."""
    certificate = client.stream.getpeercert()  # type: ignore[attr-defined]
    return str(certificate["serialNumber"])


async def test_a_wrong_new_certificate_is_refused(authority: Authority) -> None:
    """The old one stays in force."""
    async with running(**authority.settings) as server:
        authority.certificate.write_bytes(b"nonsense")
        assert server.certificate is not None
        with pytest.raises(TLSError, match="not a certificate and its key"):
            server.certificate.reload()
        async with secure_peer(server, authority) as client:
            assert b" 200 " in await client.call("GET", "/health")


async def test_a_wrong_certificate_at_the_start_is_one_line(authority: Authority) -> None:
    """Missing, not PEM, another's key: each said in a line, and nothing listens."""

    async def reason() -> str:
        with pytest.raises(ServeError) as caught:
            async with open_server(load_settings(dev=True, port=0, **authority.settings)):
                pass
        return str(caught.value)

    key = authority.key.read_bytes()
    authority.issue()
    authority.key.write_bytes(key)
    assert "key values mismatch" in await reason()
    authority.key.write_bytes(b"nonsense")
    assert "not a certificate and its key" in await reason()
    authority.key.unlink()
    assert (await reason()).endswith("key.pem: No such file or directory")
    with pytest.raises(ConfigError, match="needs tls_key"):
        load_settings(dev=True, tls_cert="cert.pem")


async def test_the_scheme_is_https(authority: Authority) -> None:
    """The application is told, so that its cookies are for TLS only."""
    async with running(**authority.settings) as server:
        seen = []
        handover = server.acceptor._handover
        app = handover._app

        async def spy(scope: dict[str, object], *rest: object) -> None:
            seen.append((scope["scheme"], scope["http_version"]))
            await app(scope, *rest)  # type: ignore[arg-type]

        handover._app = spy  # type: ignore[assignment]
        for http2 in (False, True):
            async with httpx.AsyncClient(http2=http2, verify=authority.client()) as client:
                await client.get(f"https://localhost:{server.port}/health")
        assert seen == [("https", "1.1"), ("https", "2")]


@starts_processes
async def test_sighup_reads_the_certificate_again(authority: Authority) -> None:
    """The command says https, takes a new certificate at SIGHUP, and refuses a wrong one."""
    files = ("--tls-cert", str(authority.certificate), "--tls-key", str(authority.key))
    async with serving("--dev", *files) as server:
        port = await server.port()
        assert f"wss://127.0.0.1:{port}/ws".encode() in server.log
        get = partial(trio.to_thread.run_sync, ssl.get_server_certificate, ("127.0.0.1", port))
        before = await get()
        authority.issue()
        server.process.send_signal(signal.SIGHUP)
        assert "read again" in await server.line("certificate")
        assert await get() != before
        authority.certificate.write_bytes(b"nonsense")
        server.process.send_signal(signal.SIGHUP)
        assert "refused" in await server.line("certificate")
        async with httpx.AsyncClient(verify=authority.client()) as client:
            answer = await client.get(f"https://localhost:{port}/health")
        assert msgspec.json.decode(answer.content)
        assert await server.end() == 0


async def test_a_subscriber_in_http2_that_opens_no_window_is_cut(authority: Authority) -> None:
    """Slow, like any other: its stream is reset, and the one beside it hears everything."""
    async with (
        running(batch_limit=65_536, outbox_limit=65_536, **authority.settings) as server,
        secure_peer(server, authority, "/ws?channel=news") as other,
        secure_peer(server, authority) as back_end,
    ):
        stream = await connect(server, authority, "h2")
        stalled = HTTP2(stream)
        await stalled.start()
        await stalled.until(h2.events.RemoteSettingsChanged)
        path = "/ws?channel=news"
        stalled.request(1, ":method CONNECT", ":protocol websocket", f":path {path}",
                        "sec-websocket-version 13")  # fmt: skip
        await stalled.until(h2.events.ResponseReceived)
        while len(server.node.registry.clients) < 2:
            await trio.lowlevel.checkpoint()
        number = 0
        while 3008 not in server.node.statistics().ended:
            body = b'{"channel":"news","data":"%06d%s"}' % (number, b"x" * 30_000)
            await back_end.call("POST", "/api/publish", body)
            assert b'"%06d' % number in await other.until(b'x"')
            number += 1
        assert await stalled.until(h2.events.StreamReset) == 1
        assert len(server.node.registry.clients) == 1
        stalled.request(3, ":method GET", ":path /health", end=True)
        assert await stalled.until(h2.events.ResponseReceived) == 3
        await trio.aclose_forcefully(stream)


async def test_an_event_stream(authority: Authority) -> None:
    """`/events`, native behind TLS."""
    async with (
        running(**authority.settings) as server,
        secure_peer(server, authority) as client,
        secure_peer(server, authority) as back_end,
    ):
        await client.stream.send_all(
            b"GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        assert b" 200 " in await client.until(b"\r\n\r\n")
        while not server.node.registry.clients:
            await trio.lowlevel.checkpoint()
        await back_end.call("POST", "/api/publish", BODY % 1)
        assert b"[1]" in await client.until(b"[1]")


def test_what_tls_may_be(authority: Authority) -> None:
    """Each bound is set by us, whatever the defaults of this OpenSSL are."""
    context = Certificate(authority.certificate, authority.key)._context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    suites = {one["name"] for one in context.get_ciphers() if one["protocol"] != "TLSv1.3"}
    assert suites
    modern = re.compile(r"(EC)?DHE-(RSA|ECDSA)-(AES(128|256)-GCM-SHA\d+|CHACHA20-POLY1305)")
    assert all(map(modern.fullmatch, suites))


@pytest.mark.parametrize("suite", ["AES128-SHA", "ECDHE-RSA-AES128-SHA256", "AES256-GCM-SHA384"])
async def test_a_suite_that_is_not_on_the_list(authority: Authority, suite: str) -> None:
    """A client that knows no other is refused in the handshake."""
    async with running(**authority.settings) as server:
        client = authority.client()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(f"{suite}:@SECLEVEL=0")
        raw = await trio.open_tcp_stream("127.0.0.1", server.port)
        stream = trio.SSLStream(raw, client, server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await raw.aclose()
