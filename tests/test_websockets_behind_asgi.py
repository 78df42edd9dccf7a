"""WebSockets on every way in: heartbeats, extensions, limits and ends are alike."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.errors import FORCE_DISCONNECT
from repeater.protocol.http.answer import Answer
from repeater.publication import Publication
from repeater.serving.server import Server
from repeater.transports.asgi import Send, deny
from tests.serving import UPGRADE, connected, frame, peer, running
from tests.websocket_ways import every_way, websocket

TIMES = {"ping_interval": 0.4, "pong_timeout": 0.2, "close_timeout": 0.2}
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
SUBSCRIBE = quote('{"subs":{"news":{}}}')
UNI = f"/connection/uni_websocket?cf_connect={SUBSCRIBE}"


async def client_of(server: Server) -> None:
    while not server.node.registry.clients:
        await trio.lowlevel.checkpoint()


@every_way
@pytest.mark.parametrize("path", ["/ws?channel=news", "/connection/websocket", UNI])
async def test_no_extension_is_negotiated(way: str, path: str) -> None:
    """An offer of permessage-deflate is not answered; a compressed frame breaks the protocol."""
    async with running() as server, websocket(server, way, path, OFFER) as client:
        assert b"extensions" not in client.head.lower()
        compressed = bytearray(frame(b"\xaa\x02\x00"))
        compressed[0] |= 0x40
        await client.send(bytes(compressed))
        assert b"\x88" in await client.rest()
        assert client.received[client.received.rindex(b"\x88") + 2 :][:2] == b"\x03\xea"  # 1002


@every_way
@pytest.mark.parametrize("path", ["/ws?channel=news", UNI])
async def test_a_peer_that_answers_pings_stays(way: str, path: str) -> None:
    """However long it says nothing else; the bidirectional kind has pongs of its own."""
    async with running(**TIMES) as server, websocket(server, way, path) as client:
        await client_of(server)
        with trio.move_on_after(2.5):
            await client.answer_pings()
        assert not server.node.statistics().ended
        assert len(server.node.registry.clients) == 1


@every_way
@pytest.mark.parametrize("path", ["/ws?channel=news", UNI])
async def test_a_peer_that_answers_nothing_is_cut(way: str, path: str) -> None:
    """With 3012, within ping and pong, although its machine acknowledges every byte."""
    async with running(**TIMES) as server, websocket(server, way, path) as client:
        await client_of(server)
        await client.rest()
        while server.node.registry.clients:
            await wait_all_tasks_blocked(0.01)
        assert server.node.statistics().ended == {3012: 1}


@every_way
async def test_a_unidirectional_client_learns_its_session_and_its_end(way: str) -> None:
    """The `connect` push names the session; a `disconnect` push comes before the close frame."""
    async with running(close_timeout=0.5) as server, websocket(server, way, UNI) as client:
        await client.until(b'"session":"')
        (mine,) = server.node.registry.clients
        mine.disconnect(FORCE_DISCONNECT)
        rest = await client.rest()
        push = rest.index(b'{"disconnect":{"code":3503,"reason":"force disconnect"}}')
        assert push < rest.index(b"\x88")


@every_way
async def test_a_refused_unidirectional_client_is_told_twice(way: str) -> None:
    """A message that is not a connect request: the push, then the close frame."""
    async with (
        running(close_timeout=0.5) as server,
        websocket(server, way, "/connection/uni_websocket") as client,
    ):
        await client.send(frame(b"nonsense"))
        rest = await client.rest()
        assert rest.index(b'{"disconnect":{"code":3501') < rest.index(b"\x88")


@every_way
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"x" * 3_000), 1009),
        (frame(b"x" * 1_500, 1)[:1].replace(b"\x81", b"\x01") + frame(b"x" * 1_500)[1:]
         + frame(b"x" * 1_500, 0), 1009),
        (frame(b"\xff"), 1007),
        (b"\x83\x80\0\0\0\0", 1002),
        (b"\x81\x01x", 1002),
    ],
)  # fmt: skip
async def test_what_breaks_the_protocol_ends_the_client(way: str, sent: bytes, code: int) -> None:
    """Its code is sent, and nothing is left, although the peer neither closes nor hangs up."""
    async with (
        running(message_limit=2_000, close_timeout=0.3) as server,
        websocket(server, way, "/ws?channel=news") as client,
    ):
        await client_of(server)
        await client.send(sent)
        while server.node.registry.clients:
            await wait_all_tasks_blocked(0.01)
        rest = await client.rest()
        assert int.from_bytes(rest[rest.rindex(b"\x88") + 2 :][:2]) == code


@every_way
@pytest.mark.parametrize("empty", [frame(b"", 9), frame(b"", 10), b"\x00\x80\0\0\0\0"])
async def test_frames_that_say_nothing_are_limited(way: str, empty: bytes) -> None:
    """Pings, pongs that nobody asked for and empty fragments: ignored, then 3013."""
    limits = {"commands_per_second": 10, "command_burst": 20, "refusals_per_minute": 20}
    first = b"\x01\x80\0\0\0\0" if empty[0] == 0 else b""
    async with (
        running(limits=limits, close_timeout=0.3) as server,
        websocket(server, way, "/ws?channel=news") as client,
    ):
        await client_of(server)
        await client.send(first + 200 * empty)
        rest = await client.rest()
        assert int.from_bytes(rest[rest.rindex(b"\x88") + 2 :][:2]) == 3013
        while server.node.registry.clients:
            await wait_all_tasks_blocked(0.01)


@every_way
async def test_a_half_close_ends_a_websocket(way: str) -> None:
    """Its peer will never answer again, and TCP does not say more."""
    async with (
        running(close_timeout=0.3) as server,
        websocket(server, way, "/ws?channel=news") as client,
    ):
        await client_of(server)
        if way == "h2":
            assert client._http is not None
            client._http.end_stream(1)
            await client.stream.send_all(client._http.data_to_send())
        else:
            await client.stream.send_eof()
        while server.node.registry.clients:
            await wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("way", ["native", "asgi"])
async def test_frames_right_behind_the_request(way: str) -> None:
    """Commands that a client sends without waiting for the answer are carried out."""
    async with running() as server, peer(server) as client:
        if way == "asgi":
            assert b" 200 " in await client.call("GET", "/health")
        await client.stream.send_all(exchange("bidirectional")[:-14])
        assert b" 101 " in await client.until(b"\r\n\r\n")
        await client.until(b'{"id":2,"subscribe":{')


CALL = b"POST /api/publish HTTP/1.1\r\nHost: t\r\nContent-Length: 27\r\n\r\n"
CALL += b'{"channel":"c1","data":[1]}'

EXCHANGES = {
    "call": "",
    "plain": "/ws?channel=news",
    "unidirectional": UNI,
    "bidirectional": "/connection/websocket",
    "events": "/events?channel=news",
    "stream": "/connection/uni_sse",
    "page": "/health",
}


def exchange(kind: str) -> bytes:
    target = EXCHANGES[kind]
    if kind == "call":
        return CALL + CALL
    head = f"GET {target} HTTP/1.1\r\nHost: t\r\n\r\n"
    upgraded = kind in ("plain", "unidirectional", "bidirectional")
    sent = (UPGRADE.format(path=target, more="") if upgraded else head).encode()
    if kind == "bidirectional":
        commands = b'{"connect":{},"id":1}\n{"subscribe":{"channel":"news"},"id":2}'
        sent += frame(commands)
    if upgraded:
        sent += frame(b"", 9) + frame(b"\x03\xe8", 8)
    return sent


@pytest.mark.parametrize("how", ["reset", "half-close"])
@pytest.mark.parametrize("way", ["native", "asgi"])
@pytest.mark.parametrize("kind", EXCHANGES)
async def test_an_exchange_that_is_cut_leaves_nothing(
    kind: str, way: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut after each byte, and right behind its writing: gone soon, and no traceback for it."""
    sent = exchange(kind)
    with caplog.at_level(logging.INFO):
        async with running(close_timeout=0.2) as server:
            for size in range(len(sent) + 1):
                async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                    if way == "asgi":
                        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
                        if size % 2:
                            await stream.receive_some()
                    await stream.send_all(sent[:size])
                    if how == "half-close":
                        await stream.send_eof()
                        with trio.move_on_after(0.01):
                            await stream.receive_some()
                    elif size % 3 == 0:
                        await wait_all_tasks_blocked()
                    reset = b"\1\0\0\0\0\0\0\0"
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            with trio.fail_after(4):
                await server.acceptor.wait_empty()
            assert not server.node.registry.clients
            assert not server.node.hub.channels
            assert not server.node.failures.counts
    assert not [one for one in caplog.records if one.exc_info or "Traceback" in one.message]


@pytest.mark.parametrize("way", ["native", "asgi"])
async def test_an_upgrade_to_an_unknown_path(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """404 in development mode as well, and no traceback."""
    with caplog.at_level(logging.INFO):
        async with running() as server, peer(server) as client:
            if way == "asgi":
                assert b" 200 " in await client.call("GET", "/health")
            await client.stream.send_all(UPGRADE.format(path="/nothing", more="").encode())
            assert b" 404 " in await client.until(b"\r\n\r\n")
            assert not server.node.failures.counts
    assert not [one for one in caplog.records if one.exc_info]


INVALID = {
    "a name that is not ASCII": "Sec-WebSocket-Protocol: a, \xff\r\n",
    "a name with a blank": "Sec-WebSocket-Protocol: a b\r\n",
    "no name": "Sec-WebSocket-Protocol: ,\r\n",
    "a second key": "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "a short key": "Sec-WebSocket-Key: x\r\n",
    "a key that is not ASCII": "Sec-WebSocket-Key: \xff\xff\xff\xff\r\n",
}


@pytest.mark.parametrize("way", ["native", "asgi"])
@pytest.mark.parametrize("kind", INVALID)
async def test_an_invalid_handshake(way: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is 400, and no failure of ours, wherever it comes."""
    handshake = UPGRADE.format(path="/ws?channel=news", more=INVALID[kind])
    if kind in ("a short key", "a key that is not ASCII"):
        before, _, rest = handshake.partition("Sec-WebSocket-Key: ")
        handshake = before + rest.partition("\r\n")[2]
    async with running() as server, peer(server) as raw:
        if way == "asgi":
            assert b" 200 " in await raw.call("GET", "/health")
        await raw.stream.send_all(handshake.encode("latin-1"))
        assert b" 400 " in await raw.until(b"\r\n\r\n")
        assert not server.node.failures.counts
    assert not [one for one in caplog.records if one.exc_info]


@asynccontextmanager
async def connecting(
    server: Server, *more: tuple[bytes, bytes]
) -> AsyncIterator[tuple[trio.SocketStream, h2.connection.H2Connection]]:
    """A connection of HTTP/2 whose stream 1 asks for a WebSocket; nothing was sent yet."""
    async with connected(server, "h2") as stream:
        http = h2.connection.H2Connection(
            h2.config.H2Configuration(validate_outbound_headers=False)
        )
        http.initiate_connection()
        head = {":method": "CONNECT", ":protocol": "websocket", ":path": "/ws?channel=news"}
        head |= {":scheme": "https", ":authority": "t", "sec-websocket-version": "13"}
        pairs = [(name.encode(), value.encode()) for name, value in head.items()]
        http.send_headers(1, [*pairs, *more])
        yield stream, http


async def answers(stream: trio.SocketStream, http: h2.connection.H2Connection) -> list[bytes]:
    """The statuses of stream 1 until it has ended."""
    statuses: list[bytes] = []
    while True:
        for event in http.receive_data(await stream.receive_some()):
            if isinstance(event, h2.events.ResponseReceived):
                statuses += [value for name, value in event.headers if name == b":status"]
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                return statuses


@pytest.mark.parametrize("way", ["h2"])
async def test_an_invalid_handshake_in_http2(way: str) -> None:
    """It costs its stream, and not its connection; the answer is 400."""
    bad = (b"sec-websocket-protocol", b"\xff")
    async with running() as server, connecting(server, bad) as (stream, http):
        await stream.send_all(http.data_to_send())
        assert await answers(stream, http) == [b"400"]
        http.ping(bytes(8))
        await stream.send_all(http.data_to_send())
        events = http.receive_data(await stream.receive_some())
        assert not any(isinstance(one, h2.events.ConnectionTerminated) for one in events)
        assert not server.node.failures.counts


@pytest.mark.parametrize("way", ["h2"])
async def test_frames_before_the_answer_in_http2(way: str) -> None:
    """They are 400, and nobody is subscribed: before, a client stayed that heard nothing."""
    async with running() as server, connecting(server) as (stream, http):
        http.send_data(1, frame(b""))
        await stream.send_all(http.data_to_send())
        assert await answers(stream, http) == [b"400"]
        await wait_all_tasks_blocked(0.05)
        assert not server.node.registry.clients


async def test_a_refused_handshake_ends_its_connection() -> None:
    """On a connection that was used before: the answer says so, and the end follows at once."""
    async with running() as server, peer(server) as raw:
        assert b" 200 " in await raw.call("GET", "/health")
        handshake = UPGRADE.format(path="/ws?channel=news", more="").replace("13", "8")
        await raw.stream.send_all(handshake.encode())
        assert b" 400 " in await raw.until(b"\r\n\r\n")
        assert await raw.stream.receive_some() == b""


async def test_frames_behind_a_handshake_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody reads them, also if the application lives longer than its answer takes.

    Before, they were answered with 400 behind the answer, which was an error of ours.
    """

    async def slow_deny(scope: Any, send: Send, answer: Answer) -> None:
        await deny(scope, send, answer)
        await wait_all_tasks_blocked(0.05)

    monkeypatch.setattr("repeater.web.subscriptions.deny", slow_deny)
    async with running() as server, peer(server) as raw:
        assert b" 200 " in await raw.call("GET", "/health")
        handshake = UPGRADE.format(path="/ws?channel=news&since=nonsense", more="")
        await raw.stream.send_all(handshake.encode() + frame(b"{}") * 3)
        assert b" 400 " in await raw.until(b"\r\n\r\n")
        await raw.stream.send_all(frame(b"{}"))
        while await raw.stream.receive_some():
            pass
        assert not server.node.failures.counts
    assert not [one for one in caplog.records if one.exc_info]


async def read_until(
    stream: trio.SocketStream, http: h2.connection.H2Connection, number: int, size: int
) -> bytes:
    """So many bytes of a stream's body."""
    body = b""
    while len(body) < size:
        for event in http.receive_data(await stream.receive_some()):
            assert not isinstance(event, h2.events.StreamReset)
            if isinstance(event, h2.events.DataReceived) and event.stream_id == number:
                body += event.data
    return body


@pytest.mark.parametrize("way", ["h2"])
async def test_a_ping_behind_a_message_that_waits_for_room(way: str) -> None:
    """The rest of the message comes first, once there is room, and then the ping."""
    times = {"ping_interval": 1.0, "pong_timeout": 0.9}
    async with running(**times) as server, connecting(server) as (stream, http):
        http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000})
        await stream.send_all(http.data_to_send())
        await client_of(server)
        text = b'"%b"' % (b"x" * 5_000)
        await server.node.publish(Publication("news", text))
        await trio.sleep(1.2)
        http.increment_flow_control_window(10_000, 1)
        await stream.send_all(http.data_to_send())
        body = await read_until(stream, http, 1, len(text) + 4 + 2)
        assert body[4:-2] == text
        assert body[-2:] == b"\x89\x00"


@pytest.mark.parametrize("way", ["h2"])
@pytest.mark.parametrize(("opcode", "answer"), [(8, b"\x88\x00"), (9, b"\x8a\x00")])
async def test_an_answer_that_waits_for_room_stops_no_other_stream(
    way: str, opcode: int, answer: bytes
) -> None:
    """A pong or a close frame waits alone; the connection is read on."""
    async with running() as server, connecting(server) as (stream, http):
        http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        await stream.send_all(http.data_to_send())
        await client_of(server)
        with trio.fail_after(2):  # a peer that makes no room has 5 s
            http.send_data(1, frame(b"", opcode))
            await stream.send_all(http.data_to_send())
            head = {":method": "GET", ":path": "/health", ":scheme": "https", ":authority": "t"}
            http.send_headers(3, list(head.items()), end_stream=True)
            http.increment_flow_control_window(1_000, 3)
            await stream.send_all(http.data_to_send())
            assert b"ok" in await read_until(stream, http, 3, 10)
            http.increment_flow_control_window(1_000, 1)
            await stream.send_all(http.data_to_send())
            assert await read_until(stream, http, 1, 2) == answer
