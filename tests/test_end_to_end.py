"""The whole server over real sockets: what only they can show."""

from __future__ import annotations

import os
import socket
import sys

import msgspec
import pytest
import trio
import trio.testing

from tests.deadlines import LOOP_ANSWERS
from tests.processes import SERVE, serving, starts_processes
from tests.serving import UPGRADE, Peer, close_code, frame, peer, running

DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
SUBSCRIBE = b'{"connect":{},"id":1}\n{"subscribe":{"channel":"news"},"id":2}'


async def test_an_event_reaches_plain_and_centrifugo_subscribers() -> None:
    """Data arrives as written, but for line breaks; deflate is never negotiated."""
    async with (
        running() as server,
        peer(server) as back_end,
        peer(server, "/ws?channel=news", DEFLATE) as plain,
        peer(server, "/connection/websocket", DEFLATE) as sdk,
    ):
        await sdk.stream.send_all(frame(SUBSCRIBE))
        await sdk.until(b'{"id":2,"subscribe":{}}')
        body = b'{"channel":"news","data":{"a":\n 1}}'
        answer = await back_end.call("POST", "/api/publish", body)
        assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["result"]["offset"] == 1
        assert await plain.until(b"}") == b'\x81\x08{"a": 1}'
        assert b'"data":{"a": 1},"offset":1,"epoch":' in await sdk.until(b"}}}")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", b"400"),
        (b'{"channel":"a","data":"\xff"}', b"400"),
        (b"[]", b'"code":107'),
        (b'{"data":1}', b'"code":107'),
        (b'{"channel":"","data":1}', b'"code":107'),
        (b'{"channel":"a"}', b'"code":107'),
        (b'{"channel":"%s","data":1}' % (b"a" * 256), b'"code":107'),
        (b'{"channel":"a","data":"%s"}' % (b"a" * 600_000), b"413"),
    ],
)
async def test_a_bad_body_is_refused(body: bytes, expected: bytes) -> None:
    """Bad input gets its documented answer, and nothing is published."""
    async with running() as server, peer(server) as back_end:
        assert expected in await back_end.call("POST", "/api/publish", body)
        assert server.node.statistics().repeater.publications == 0


async def test_the_key_is_needed() -> None:
    """Without development mode: 401 without the key, by whichever way it may come."""
    body = b'{"channel":"a","data":1}'
    async with running(dev=False, api_key="secret") as server, peer(server) as back_end:
        for target, head, status in (
            ("/api/publish", "", b" 401 "),
            ("/api/publish", "X-API-Key: wrong\r\n", b" 401 "),
            ("/api/publish", "X-API-Key: secret\r\n", b" 200 "),
            ("/api/publish", "Authorization: apikey secret\r\n", b" 200 "),
            ("/api/publish?api_key=secret", "", b" 200 "),
            ("/api/nothing", "X-API-Key: secret\r\n", b" 404 "),
        ):
            assert status in await back_end.call("POST", target, body, head)
        assert b" 405 " in await back_end.call("GET", "/api/publish", b"", "X-API-Key: secret\r\n")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
        (b"\x00\x01\x02 garbage", b""),
        (b"GET /" + b"a" * 17_000, b" 431 "),
        (b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n", b" 426 "),
        (b"GET / HT", b""),
    ],
)
async def test_no_request_head(sent: bytes, expected: bytes) -> None:
    """Noise, TLS, a head without end: closed at once or by the deadline."""
    seconds = LOOP_ANSWERS if expected else 0.3
    async with running(head_timeout=seconds) as server, peer(server) as client:
        await client.stream.send_all(sent)
        assert expected in await client.rest()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x02{}", 1002),
        (frame(b"", 3), 1002),
        (b"\x81\xff" + (70_000).to_bytes(8) + b"\0\0\0\0", 1009),
        (frame(b"{}", 2), 3501),
        (frame(b'{"id":'), 3501),
        (frame(b'{"subscribe":{"channel":"a"},"id":1}'), 3501),
    ],
)
async def test_a_broken_frame_is_answered_with_its_code(sent: bytes, code: int) -> None:
    """Every violation has its close code, with a reason."""
    async with running() as server, peer(server, "/connection/websocket") as client:
        await client.stream.send_all(sent)
        before = await client.until(b"\x88")  # and the rest of the frame, which is one packet
        assert close_code(before + client.received) == code


async def test_strangers_stay_out() -> None:
    """Without development mode: no anonymous subscriber, no page of another origin."""
    async with running(dev=False) as server, peer(server) as client, peer(server) as page:
        await client.stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
        assert b" 401 " in await client.rest()
        origin = "Origin: http://evil.example\r\n"
        await page.stream.send_all(UPGRADE.format(path="/ws?channel=news", more=origin).encode())
        assert b" 403 " in await page.rest()


async def test_a_client_that_never_reads_is_cut() -> None:
    """Cut as slow; the subscriber beside it gets everything in order."""
    async with running(batch_limit=65_536, outbox_limit=65_536) as server:
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with stalled:
            stalled.connect(("127.0.0.1", server.port))
            stalled.sendall(UPGRADE.format(path="/ws?channel=news", more="").encode())
            async with peer(server, "/ws?channel=news") as other, peer(server) as back_end:
                number = 0
                while 3008 not in server.node.statistics().ended:
                    data = b'"%06d%s"' % (number, b"x" * 60_000)
                    await back_end.call(
                        "POST", "/api/publish", b'{"channel":"news","data":%s}' % data
                    )
                    assert b'"%06d' % number in await other.until(b'x"')
                    number += 1
                assert len(server.node.registry.clients) == 1


async def test_a_vanished_peer_is_found() -> None:
    """Silent after a ping: gone within ping and pong; one that answers stays."""
    async with (
        running(ping_interval=1.5, pong_timeout=1.0) as server,
        peer(server, "/ws?channel=news") as alive,
        peer(server, "/ws?channel=news"),
    ):
        while 3012 not in server.node.statistics().ended:
            await alive.until(b"\x89\x00")
            await alive.stream.send_all(frame(b"", 10))
        assert len(server.node.registry.clients) == 1


async def test_an_upgrade_on_a_kept_alive_connection() -> None:
    """The acceptor cannot see it; the Quart route serves it, goodbye included."""
    async with (
        running(shutdown_timeout=0.5) as server,
        peer(server) as client,
        peer(server) as back_end,
    ):
        assert b" 200 " in await client.call("GET", "/health")
        await client.stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
        assert b" 101 " in await client.until(b"\r\n\r\n")
        while not server.node.registry.clients:
            await trio.testing.wait_all_tasks_blocked()
        await back_end.call("POST", "/api/publish", b'{"channel":"news","data":[7]}')
        assert b"[7]" in await client.until(b"[7]")


async def test_shutdown_says_goodbye() -> None:
    """Everybody hears 3001, and an idle HTTP connection holds nothing up."""
    async with running() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        client, idle = Peer(stream), Peer(await trio.open_tcp_stream("127.0.0.1", server.port))
        await stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
        await client.until(b"\r\n\r\n")
        await idle.call("GET", "/health")
    async with stream, idle.stream:
        assert close_code(await client.rest()) == 3001


@starts_processes
async def test_the_command_serves_and_ends() -> None:
    """`repeater serve` says where it is, ends on SIGTERM with 0, and a taken port is one line."""
    async with serving("--dev") as server:
        port = await server.port()
        again = [*SERVE, "--dev", "--port", str(port)]
        second = await trio.run_process(again, capture_stderr=True, check=False)
        assert second.returncode == 1
        assert second.stderr.count(b"\n") == 1
        publish = [sys.executable, "-m", "repeater", "publish", "news", "[1]"]
        environment = {**os.environ, "REPEATER_URL": f"http://127.0.0.1:{port}"}
        done = await trio.run_process(publish, capture_stdout=True, env=environment)
        assert b'"offset": 1' in done.stdout
        assert await server.end() == 0


async def test_a_server_may_end_at_once() -> None:
    """Shutting down before the first turn of the acceptors, or just when somebody comes."""
    async with running():
        pass
    async with running() as server:
        await trio.testing.wait_all_tasks_blocked()
        with socket.create_connection(("127.0.0.1", server.port)):
            await trio.lowlevel.checkpoint()


async def test_nothing_is_left_of_a_handed_over_websocket() -> None:
    """Behind ASGI, too, a peer that hangs up without a close frame leaves no socket and no task."""
    async with running() as server:
        async with peer(server) as client:
            assert b" 200 " in await client.call("GET", "/health")
            await client.stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
            await client.until(b"\r\n\r\n")
            assert server.acceptor.statistics().open == 1
        await server.acceptor.wait_empty()


@pytest.mark.parametrize(
    ("path", "opened"), [("/ws", b" 101 "), ("/events", b" 200 ")], ids=["WebSocket", "SSE"]
)
async def test_a_plain_subscriber_without_a_channel(path: str, opened: bytes) -> None:
    """Without a default channel it gets 400, with one it hears that channel."""
    request = UPGRADE if path == "/ws" else "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n{more}"
    head = request.format(path=path, more="").encode()
    async with running() as server, peer(server) as client:
        await client.stream.send_all(head)
        answer = await client.until(b"NAME")
        assert b" 400 " in answer
        assert b"No channel: add ?channel=NAME" in answer
    async with running(default_channel="news") as server, peer(server) as client:
        await client.stream.send_all(head)
        assert opened in await client.until(b"\r\n")
