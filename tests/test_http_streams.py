"""Streams over HTTP on real sockets: natively, and through the ASGI server on a used connection."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h2.connection
import h2.events
import h11
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import Denial
from repeater.errors import BrokerError
from repeater.front.routes import STREAMS
from repeater.protocol.sse.event_id import room_of_event_id
from repeater.publication import Publication
from repeater.serving.server import Server
from repeater.transports import http_stream
from repeater.transports.sockets import discard
from repeater.turns import GiveWay
from repeater.web.subscriptions import EMULATION_PATH
from tests.engines import Gate
from tests.eventsource import EventSource
from tests.http_streams import CONNECT, OPENINGS, Peer, peer
from tests.processes import starts_processes
from tests.serving import connected, running
from tests.signing import SECRET, sign

ENDS = ("native", "asgi")


async def publish(server: Server, channel: str, data: str) -> None:
    async with peer(server) as back_end:
        body = f'{{"channel":"{channel}","data":{data}}}'
        assert (await back_end.call("POST", "/api/publish", body))[0] == 200


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_that_is_open_is_subscribed(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer's head waits for the channels: a page may load its state when it sees the head."""
    async with running() as server, peer(server, end) as client, trio.open_nursery() as nursery:
        asked, allowed, opened = trio.Event(), Gate(), trio.Event()
        history = server.node.broker.history

        def late(*arguments: Any, **options: Any) -> Any:
            asked.set()
            return allowed.answer(lambda: history(*arguments, **options))

        async def subscribe() -> None:
            await client.request("GET", "/events?channel=news")
            opened.set()

        allowed.shut()
        monkeypatch.setattr(server.node.broker, "history", late)
        nursery.start_soon(subscribe)
        await asked.wait()
        await wait_all_tasks_blocked(0.05)
        assert not opened.is_set()
        allowed.open()
        await opened.wait()
        await publish(server, "news", "1")
        assert b"retry: " in await client.until(b"data: 1\n\n")


@pytest.mark.parametrize("end", ENDS)
async def test_events_are_recovered_by_their_id(end: str) -> None:
    """As a browser comes back: by header or parameter, with every channel's position."""
    async with running() as server:
        source = EventSource()
        async with peer(server, end) as client:
            response = await client.request("GET", "/events?channel=a&channel=b")
            headers = {name.decode(): value.decode() for name, value in response.headers}
            assert headers["content-type"] == "text/event-stream; charset=utf-8"
            assert headers["x-accel-buffering"] == "no"
            assert "no-store" in headers["cache-control"]
            assert ("transfer-encoding" in headers) == (end == "asgi")
            source.feed(await client.until(b"id: "))
            source.feed(await client.until(b"\n\n"))
            await publish(server, "a", '{"n":\n 1}')
            source.feed(await client.until(b"1}\n\n"))
        assert source.data() == ['{"n": 1}']
        assert source.retry is not None
        assert 1_000 <= source.retry <= 3_000
        await publish(server, "a", "2")
        await publish(server, "b", "3")
        target = "/events?channel=a&channel=b"
        async with peer(server, end) as client:
            await client.request("GET", target, Last_Event_ID=source.last_event_id)
            again = EventSource()
            again.feed(await client.until(b"data: 3\n\n"))
            assert again.data() == ["2", "3"]
        async with peer(server, end) as client:
            await client.request("GET", f"{target}&lastEventId={quote(again.last_event_id)}")
            await publish(server, "b", "4")
            text = await client.until(b"data: 4\n\n")
            assert text.count(b"data:") == 1
        async with peer(server, end) as client:
            await client.request("GET", f"{target}&lastEventId=nonsense")
            await client.until(b"event: reset\nid: ")
            assert b'{"channels":["a","b"]}' in await client.until(b"\n\n")


WIDE = {
    "as many as are allowed": [f"{number:063}" for number in range(128)],
    "the longest": [f"{number:0255}" for number in range(56)],
    "percent-encoded": [f"{number}" + "\u044f" * 42 for number in range(40)],
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("names", WIDE.values(), ids=WIDE)
async def test_whoever_was_accepted_can_come_back(end: str, names: list[str]) -> None:
    """A stream of many channels with long names is resumed with the same URL and its last id."""
    target = "/events?" + "&".join(f"channel={quote(name)}" for name in names)
    async with running(channel={"channel_regex": ".+"}) as server:
        source = EventSource()
        async with peer(server, end) as client:
            assert (await client.request("GET", target)).status_code == 200
            source.feed(await client.until(b"id: "))
            source.feed(await client.until(b"\n\n"))
            for name in names:
                await server.node.publish(Publication(name, b"1"))
            source.feed(await client.until(b"data: 1\n\n"))
            while len(source.data()) < len(names):
                source.feed(await client.until(b"data: 1\n\n"))
        for name in names:
            await server.node.publish(Publication(name, b"2"))
        async with peer(server, end) as client:
            response = await client.request("GET", target, Last_Event_ID=source.last_event_id)
            assert response.status_code == 200
            while source.data().count("2") < len(names):
                source.feed(await client.until(b"\n\n"))
        assert source.data("reset") == []


@pytest.mark.parametrize("end", ENDS)
async def test_history_that_can_not_be_read_is_told(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is refused before its stream opens, and comes back; then nothing is lost."""

    def fail(*_: object, **__: object) -> None:
        raise BrokerError("history is down")

    async with running() as server:
        source = EventSource()
        async with peer(server, end) as client:
            await client.request("GET", "/events?channel=a&channel=b")
            source.feed(await client.until(b"id: ") + await client.until(b"\n\n"))
        await publish(server, "a", "1")
        with monkeypatch.context() as patch:
            patch.setattr(server.node.broker, "history", fail)
            async with peer(server, end) as client:
                response = await client.request(
                    "GET", "/events?channel=a&channel=b", Last_Event_ID=source.last_event_id
                )
                assert response.status_code == 503
                assert (b"retry-after", b"1") in response.headers
        async with peer(server, end) as client:
            await client.request(
                "GET", "/events?channel=a&channel=b", Last_Event_ID=source.last_event_id
            )
            source.feed(await client.until(b"data: 1\n\n"))
        assert source.data() == ["1"]
        assert source.data("reset") == []


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_that_could_not_come_back_is_refused_at_once(end: str) -> None:
    """Where the address leaves no room for an id: 431, whether there is an id already or not."""
    names = [f"{number:0255}" for number in range(60)]
    target = "/events?" + "&".join(f"channel={name}" for name in names)
    assert len(target) < 16_000
    async with running() as server:
        for headers in ({}, {"Last_Event_ID": "x" * 300}):
            async with peer(server, end) as client:
                status, text = await client.call("GET", target, **headers)
                assert status == 431
                assert b"event id" in text


@pytest.mark.parametrize("prefix", ["", f"/{'p' * 99}"])
async def test_the_head_of_a_return_is_counted_exactly(prefix: str) -> None:
    """Whatever is accepted leaves enough of the head's limit for the longest id."""
    async with running(head_limit=2_048, path_prefix=prefix) as server:
        for length in range(1_200, 2_000, 40):
            names = [f"{number:0{length // 8}}" for number in range(8)]
            target = f"{prefix}/events?" + "&".join(f"channel={name}" for name in names)
            async with peer(server) as client:
                first = (await client.request("GET", target)).status_code
            async with peer(server) as client:
                last = "x" * (room_of_event_id(len(names)) - len("Last-Event-ID: \r\n"))
                again = (await client.request("GET", target, Last_Event_ID=last)).status_code
            async with peer(server) as client:
                last = last.removeprefix("x" * len("&lastEventId="))
                named = f"{target}&lastEventId={last}"
                by_parameter = (await client.request("GET", named)).status_code
            assert {first, again, by_parameter} in ({200}, {431})


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", ["/connection/sse", "/connection/http_stream"])
async def test_emulation(path: str, end: str) -> None:
    """Commands by POST, everything else by the stream; the end says why."""
    method, query, body = OPENINGS[path]
    async with (
        running(allowed_origins="http://page.test") as server,
        peer(server, end) as client,
        peer(server) as sender,
    ):
        origin = "http://page.test"
        response = await client.request(method, path + query, body, Origin=origin)
        headers = dict(response.headers)
        assert headers[b"access-control-allow-origin"] == origin.encode()
        assert headers[b"access-control-allow-credentials"] == b"true"
        reply = json.loads((await client.until(b'"}}')).strip().removeprefix(b"data: "))
        where = {name: reply["connect"][name] for name in ("session", "node")}
        commands = '{"subscribe":{"channel":"news"},"id":2}\n{}'
        sent = json.dumps({**where, "data": commands})
        kind = "application/json"
        status = await sender.call("POST", EMULATION_PATH, sent, Content_Type=kind)
        assert status == (204, b"")
        await client.until(b'{"id":2,"subscribe":{')
        await publish(server, "news", '{"n":\n1}')
        await client.until(b'"pub":{"data":{"n":1},"offset":1')
        sent = json.dumps({**where, "data": "nonsense"})
        assert await sender.call("POST", EMULATION_PATH, sent) == (204, b"")
        last = b'{"push":{"disconnect":{"code":3501,"reason":"bad request: '
        assert last in await client.rest()
        assert (await sender.call("POST", EMULATION_PATH, sent))[0] == 404


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", STREAMS)
async def test_every_way_ends_with_its_reason(path: str, end: str) -> None:
    """A shutdown is the last message, and then the response ends; nothing holds it up."""
    method, query, body = OPENINGS[path]
    last = []

    async def listen(client: Peer) -> None:
        async with client.stream:
            last.append(await client.rest())

    async with trio.open_nursery() as nursery, running() as server:
        client = Peer(await trio.open_tcp_stream("127.0.0.1", server.port))
        if end == "asgi":
            await client.call("GET", "/health")
        assert (await client.request(method, path + query, body)).status_code == 200
        await client.until(b"\n\n" if path == "/events" else b'"connect":{')
        nursery.start_soon(listen, client)
    assert b'"code":3001,"reason":"shutdown"}' in last[0]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", STREAMS)
async def test_a_hang_up_is_noticed(path: str, end: str) -> None:
    """Who closes a stream is gone from the node, whatever it was doing."""
    method, query, body = OPENINGS[path]
    async with running() as server:
        async with peer(server, end) as client:
            await client.request(method, path + query, body)
            await client.until(b"\n\n" if path == "/events" else b'"connect":{')
            assert len(server.node.registry.clients) == 1
        while server.node.registry.clients:
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", ["/events", "/connection/uni_http_stream"])
async def test_a_stream_that_is_not_read_is_cut(path: str, end: str) -> None:
    """Cut as slow or stuck, connection and all; the subscriber beside it hears everything."""
    method, query, body = OPENINGS[path]
    async with running(batch_limit=65_536, outbox_limit=65_536, write_timeout=1.0) as server:
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with stalled:
            stalled.connect(("127.0.0.1", server.port))
            head = f"Host: t\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            if end == "asgi":
                stalled.sendall(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
            stalled.sendall(f"{method} {path}{query} HTTP/1.1\r\n{head}".encode())
            async with peer(server) as other, peer(server) as back_end:
                await other.request("GET", "/events?channel=news")
                number = 0
                while not {3008, 3009} & set(server.node.statistics().ended):
                    data = f'"{number:06d}{"x" * 60_000}"'
                    event = f'{{"channel":"news","data":{data}}}'
                    assert (await back_end.call("POST", "/api/publish", event))[0] == 200
                    assert b"%06dx" % number in await other.until(b'x"')
                    number += 1
                assert len(server.node.registry.clients) == 1


async def test_silence_is_for_tcp_to_notice_behind_asgi() -> None:
    """There as well: whatever is served on such a connection, TCP gives its peer up."""
    async with running(pong_timeout=7.0) as server, peer(server, "asgi") as client:
        await client.request("GET", "/events?channel=news")
        await client.until(b"\n")
        (sock,) = server.acceptor._open.sockets
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_000


async def test_silence_is_for_tcp_to_notice() -> None:
    """A peer that does not acknowledge a heartbeat in time is given up by the kernel."""
    async with running(pong_timeout=7.0) as server:
        for path, milliseconds in (("/connection/http_stream", 0), ("/events", 7_000)):
            method, query, body = OPENINGS[path]
            async with peer(server) as client:
                await client.request(method, path + query, body)
                await client.until(b"\n")
                (sock,) = server.acceptor._open.sockets
                option = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert option == milliseconds
            while server.acceptor.statistics().open:
                await trio.testing.wait_all_tasks_blocked()


ROOT = Path(__file__).parent.parent
VANISH = """
import subprocess, sys, trio
from tests.http_streams import OPENINGS, peer
from tests.serving import connected, running

def loopback(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

async def main(path):
    loopback("up")
    times = {"ping_interval": 0.4, "pong_timeout": 0.3, "shutdown_timeout": 0.5}
    method, query, body = OPENINGS[path]
    async with running(**times, write_timeout=60.0) as server, peer(server) as client:
        await client.request(method, path + query, body)
        await client.until(b"\\n")
        (mine,) = server.node.registry.clients
        loopback("down")
        while mine in server.node.registry.clients:
            await trio.sleep(0.02)

trio.run(main, sys.argv[1])
"""


@starts_processes
@pytest.mark.parametrize("path", ["/events", "/connection/http_stream"])
async def test_a_peer_that_vanished_is_found(path: str) -> None:
    """The network takes packets and delivers none: gone soon after the next heartbeat."""
    isolated = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip")
    allowed = await trio.run_process([*isolated, "ip", "link"], check=False, capture_stdout=True)
    if allowed.returncode:
        pytest.skip("no network of one's own for a test here")
    command = [*isolated, sys.executable, "-c", VANISH, path]
    done = await trio.run_process(command, check=False, cwd=ROOT)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status"),
    [
        ("POST", "/events", "", {}, 405),
        ("GET", "/connection/http_stream", "", {}, 405),
        ("PUT", "/connection/sse", "", {}, 405),
        ("GET", EMULATION_PATH, "", {}, 405),
        ("GET", "/connection/sse", "", {}, 400),
        ("POST", "/connection/http_stream", "", {}, 400),
        ("GET", "/connection/uni_sse?cf_connect=nonsense", "", {}, 400),
        ("POST", "/connection/uni_http_stream", "[]", {}, 400),
        ("GET", f"/events?channel={'a' * 300}", "", {}, 400),
        ("GET", "/events?" + "&".join(f"channel={n}" for n in range(200)), "", {}, 400),
        ("GET", "/events", "", {"Origin": "http://evil.test"}, 403),
        ("GET", "/events", "", {"Origin": "http://["}, 403),
        ("POST", EMULATION_PATH, "{}", {"Origin": "http://evil.test"}, 403),
        ("POST", "/connection/http_stream", "x" * 70_000, {}, 413),
        ("POST", EMULATION_PATH, "x" * 70_000, {}, 413),
        ("POST", EMULATION_PATH, "{", {}, 400),
        ("POST", EMULATION_PATH, '{"data":"{}"}', {}, 400),
        ("POST", EMULATION_PATH, b'{"session":"\xff"}', {}, 400),
        ("POST", EMULATION_PATH, '{"session":"a","node":"b","data":"{}"}', {}, 404),
        ("POST", EMULATION_PATH, "x", {"Content_Type": "application/octet-stream"}, 400),
    ],
)
@pytest.mark.parametrize("end", ENDS)
async def test_what_opens_nothing(
    method: str, target: str, body: str, headers: dict[str, str], status: int, end: str
) -> None:
    """Each refusal has its status; the server goes on."""
    settings = {"dev": False, "allow_anonymous": True, "allowed_origins": "http://page.test"}
    async with running(**settings) as server:
        async with peer(server, end) as client:
            assert (await client.request(method, target, body, **headers)).status_code == status
        assert server.node.statistics().clients == 0
        assert server.node.statistics().ended == {}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", [*STREAMS, EMULATION_PATH])
async def test_a_preflight(path: str, end: str) -> None:
    """An allowed page of another origin may send what it asks to send; another one may not."""
    settings = {"dev": False, "allow_anonymous": True, "allowed_origins": "http://*.test"}
    async with running(**settings) as server, peer(server, end) as client:
        asked = {"Access_Control_Request_Headers": "x-mine", "Origin": "http://a.test"}
        response = await client.request("OPTIONS", path, **asked)
        headers = dict(response.headers)
        assert response.status_code == 204
        assert headers[b"access-control-allow-origin"] == b"http://a.test"
        assert headers[b"access-control-allow-credentials"] == b"true"
        assert headers[b"access-control-allow-headers"] == b"x-mine"
        assert headers[b"access-control-max-age"] == b"300"
        assert b"OPTIONS" in headers[b"access-control-allow-methods"]
        assert await client.rest() == b""
    async with running(**settings) as server, peer(server, end) as client:
        response = await client.request("OPTIONS", path, Origin="http://evil.example")
        assert response.status_code == 403
        assert b"access-control-allow-origin" not in dict(response.headers)


@pytest.mark.parametrize("end", ENDS)
async def test_an_answer_repeats_headers_byte_for_byte(end: str) -> None:
    """Also text that is not Latin-1, which a header of ours could not be written with."""
    asked = "x-\u4f8b".encode()
    async with running(dev=False, allowed_origins="*") as server, peer(server, end) as client:
        before = server.node.failures.counts.copy()
        await client.stream.send_all(
            b"OPTIONS /connection/sse HTTP/1.1\r\nHost: xn--fsq.test\r\n"
            b"Origin: http://\xe4\xbe\x8b.test\r\nAccess-Control-Request-Headers: %b\r\n\r\n"
            % asked
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await client.stream.receive_some()
        assert b" 204 " in answer
        assert asked + b"\r\n" in answer
        assert b"http://\xe4\xbe\x8b.test\r\n" in answer
        assert server.node.failures.counts == before


TOKENS: dict[str, Any] = {
    "dev": False,
    "token": {"hmac_secret_key": SECRET},
    "channel": {"allow_user_limited_channels": True, "force_recovery": True},
}


@pytest.mark.parametrize("end", ENDS)
async def test_who_a_plain_subscriber_is(end: str) -> None:
    """A token by parameter, header or cookie; its user decides what it may hear."""
    token = sign({"sub": "7", "channels": ["granted"]})
    ways: list[tuple[str, dict[str, str]]] = [
        (f"&token={token}", {}),
        ("", {"Authorization": f"Bearer {token}"}),
        ("", {"Cookie": f"a=b; repeater_token={token}"}),
    ]
    async with running(**TOKENS) as server:
        for more, headers in ways:
            for channel, status in (("a%237", 200), ("granted", 200), ("a%238", 403)):
                async with peer(server, end) as client:
                    target = f"/events?channel={channel}{more}"
                    response = await client.request("GET", target, **headers)
                    assert response.status_code == status
                    if status == 200:
                        await client.until(b"id: ")
                        assert [one.user for one in server.node.registry.clients] == ["7"]
                while server.node.registry.clients:
                    await trio.testing.wait_all_tasks_blocked()
        expired = sign({"sub": "7", "exp": 1})
        for more in ("", "&token=nonsense", f"&token={expired}"):
            async with peer(server, end) as client:
                target = f"/events?channel=a%237{more}"
                assert (await client.request("GET", target)).status_code == 401


@pytest.mark.parametrize("end", ENDS)
async def test_who_is_denied_hears_nothing(end: str) -> None:
    """A blocked user and a revoked token are refused like anywhere else, and counted."""
    token = sign({"sub": "7", "jti": "t"})
    async with running(**TOKENS) as server:
        node = server.node
        for denial, counted in (
            (Denial(token_id="t"), "revoked"),
            (Denial(user="7"), "blocked"),
        ):
            await node.denials.change(denial)
            for path in ("/events", "/ws"):
                async with peer(server, end) as client:
                    target = f"{path}?channel=a%237&token={token}"
                    if path == "/events" or end == "native":
                        headers = UPGRADING if path == "/ws" else {}
                        response = await client.request("GET", target, **headers)
                        assert response.status_code == 403
            assert node.statistics().limited[counted] >= 1


@pytest.mark.parametrize("end", ENDS)
async def test_a_full_server_takes_no_stream(end: str) -> None:
    """A full server answers 503 before the stream, counted once; who leaves makes room."""
    async with running(limits={"connections": 1}) as server:
        async with peer(server, end) as first, peer(server, end) as second:
            response = await first.request("GET", "/events?channel=news")
            assert response.status_code == 200
            response = await second.request("GET", "/events?channel=news")
            assert response.status_code == 503
            assert server.node.statistics().limited == {"connections": 1}
        while server.node.registry.clients:
            await trio.testing.wait_all_tasks_blocked()
        async with peer(server, end) as third:
            response = await third.request("GET", "/events?channel=news")
            assert response.status_code == 200


UPGRADING = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_plain_web_socket_takes_the_same_tokens(end: str) -> None:
    """`/ws` lets in by token what it refuses without."""
    token = sign({"sub": "7"})
    ways: list[tuple[str, dict[str, str], bool]] = [
        (f"&token={token}", {}, True),
        ("", {"Authorization": f"Bearer {token}"}, True),
        ("", {"Cookie": f"repeater_token={token}"}, True),
        ("", {}, False),
        ("&token=nonsense", {}, False),
    ]
    async with running(**TOKENS, close_timeout=0.1, shutdown_timeout=1.0) as server:
        for more, headers, admitted in ways:
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                client = Peer(stream)
                if end == "asgi":
                    await client.call("GET", "/health")
                request = h11.Request(
                    method="GET",
                    target=f"/ws?channel=a%237{more}",
                    headers=[
                        ("Host", "t"),
                        *((n.replace("_", "-"), v) for n, v in (UPGRADING | headers).items()),
                    ],
                )
                await stream.send_all(client.http.send(request) or b"")
                await stream.send_all(client.http.send(h11.EndOfMessage()) or b"")
                response = await client.event()
                assert response.status_code == (101 if admitted else 401)


@pytest.mark.parametrize("end", ENDS)
async def test_a_blocked_user_stays_out(end: str) -> None:
    """Its stream ends for good when it is blocked, and another one is refused."""
    token = sign({"sub": "7"})
    target = f"/events?channel=a%237&token={token}"
    async with running(**TOKENS) as server:
        async with peer(server, end) as client:
            await client.request("GET", target)
            await client.until(b"id: ")
            await server.node.denials.change(Denial("7"))
            assert b'"code":3503' in await client.rest()
        async with peer(server, end) as client:
            assert (await client.request("GET", target)).status_code == 403
        assert server.node.statistics().limited == {"blocked": 1}


@pytest.mark.parametrize("end", ENDS)
async def test_a_user_may_have_so_many_streams(end: str) -> None:
    """One more is refused, and counted once."""
    target = f"/events?channel=a%237&token={sign({'sub': '7'})}"
    async with running(**TOKENS, limits={"connections_per_user": 1}) as server:
        async with peer(server, end) as client, peer(server, end) as other:
            await client.request("GET", target)
            await client.until(b"id: ")
            assert (await other.request("GET", target)).status_code == 429
        assert server.node.statistics().limited == {"connections_per_user": 1}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", STREAMS)
async def test_limits_hold_for_streams(path: str, end: str) -> None:
    """One more than may come from an address gets 429, is counted once, and not remembered."""
    method, query, body = OPENINGS[path]
    async with running(limits={"connections_per_address": 1}) as server:
        async with peer(server, end) as client:
            await client.request(method, path + query, body)
            await client.until(b"\n\n" if path == "/events" else b'"connect":{')
            async with peer(server, end) as other:
                response = await other.request(method, path + query, body)
                assert response.status_code == 429
            assert server.node.statistics().limited == {"connections_per_address": 1}
        while server.node.registry.clients:
            await trio.testing.wait_all_tasks_blocked()
        await server.acceptor.wait_empty()
        assert server.node.places.counted == ({}, {})


async def test_a_token_means_nothing_in_development() -> None:
    """Everybody may do everything there, so who brings a useless one is nobody, as without it."""
    async with running() as server, peer(server) as client:
        response = await client.request(
            "GET", "/events?channel=news&token=x", Authorization="Bearer y"
        )
        assert response.status_code == 200
        await client.until(b"id: ")
        assert [one.user for one in server.node.registry.clients] == [""]


async def test_a_session_belongs_to_its_cookie() -> None:
    """Commands of a stream that came with a cookie are taken with the same one only."""
    async with running() as server, peer(server) as client, peer(server) as sender:
        mine, other = "repeater_token=mine", "repeater_token=other"
        await client.request("POST", "/connection/http_stream", CONNECT, Cookie=mine)
        reply = json.loads(await client.until(b"\n"))["connect"]
        sent = json.dumps({"session": reply["session"], "node": reply["node"], "data": "{}"})
        for headers, status in (({"Cookie": other}, 404), ({}, 404), ({"Cookie": mine}, 204)):
            assert (await sender.call("POST", EMULATION_PATH, sent, **headers))[0] == status


@pytest.mark.parametrize("path", ["/connection/uni_websocket", "/connection/uni_sse"])
async def test_a_connect_request_in_the_address_is_text(path: str) -> None:
    """Any character may be in it."""
    request = quote('{"name":"\N{SNOWMAN}"}')
    async with running() as server, peer(server) as client:
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec_WebSocket_Version": "13",
            "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        if path.endswith("sse"):
            await client.request("GET", f"{path}?cf_connect={request}")
            await client.until(b'{"connect":{')
            return
        lines = "".join(f"{n.replace('_', '-')}: {v}\r\n" for n, v in upgrade.items())
        head = f"GET {path}?cf_connect={request} HTTP/1.1\r\nHost: t\r\n{lines}\r\n"
        await client.stream.send_all(head.encode())
        received = b""
        while b'{"connect":{' not in received:
            chunk = await client.stream.receive_some()
            assert chunk
            received += chunk


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """It has the deadline of the head, whichever server reads it."""
    async with running(head_timeout=0.3) as server:
        for end in ENDS:
            async with peer(server, end) as client:
                head = (
                    b"POST /connection/http_stream HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\n"
                )
                await client.stream.send_all(head + b"{}")
                received = b""
                while chunk := await client.stream.receive_some():
                    received += chunk
                assert (b" 408 " in received) == (end == "asgi")


@pytest.mark.parametrize("end", ["h2"])
async def test_streams_and_commands_share_an_http2_connection(end: str) -> None:
    """Two streams and what one of them is told to do, on one connection; a reset ends one."""
    http = h2.connection.H2Connection()
    bodies: dict[int, bytes] = {}

    async with running() as server, connected(server, end) as connection:
        client = Peer(connection)

        async def request(method: str, path: str, body: str = "") -> int:
            number = http.get_next_available_stream_id()
            bodies[number] = b""
            head = {":method": method, ":path": path, ":scheme": "https", ":authority": "t"}
            http.send_headers(number, list(head.items()), end_stream=not body)
            if body:
                http.send_data(number, body.encode(), end_stream=True)
            await client.stream.send_all(http.data_to_send())
            return number

        async def until(number: int, mark: bytes) -> bytes:
            while mark not in bodies[number]:
                for event in http.receive_data(await client.stream.receive_some()):
                    if isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id] += event.data
                        size = event.flow_controlled_length
                        http.acknowledge_received_data(size, event.stream_id)
                    elif isinstance(event, h2.events.ResponseReceived):
                        status = dict(event.headers)[b":status"]
                        bodies[event.stream_id] += b":%b\n" % status
                await client.stream.send_all(http.data_to_send())
            return bodies[number]

        http.initiate_connection()
        events = await request("GET", "/events?channel=news")
        await until(events, b"id: ")
        stream = await request("POST", "/connection/http_stream", CONNECT)
        reply = await until(stream, b"}}\n")
        where = json.loads(reply.split(b"\n")[1])["connect"]
        commands = '{"publish":{"channel":"news","data":"two"},"id":2}'
        sent = {"session": where["session"], "node": where["node"], "data": commands}
        await until(await request("POST", EMULATION_PATH, json.dumps(sent)), b":204")
        await until(events, b'data: "two"')
        await until(stream, b'{"id":2,"publish":{}}')
        http.reset_stream(events)
        await client.stream.send_all(http.data_to_send())
        while len(server.node.registry.clients) > 1:
            await trio.testing.wait_all_tasks_blocked()
        assert [one.session for one in server.node.registry.clients] == [where["session"]]


@pytest.mark.parametrize("path", ["/events?channel=news", "/connection/uni_sse?cf_connect={}"])
async def test_who_sends_into_a_stream_is_read_ever_more_rarely(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads these bytes. TCP holds their sender back, who is served on and may leave."""
    reads = []

    async def counted(sock: socket.socket, give_way: GiveWay) -> None:
        async def counting() -> None:
            reads.append(trio.current_time())
            await give_way()

        await discard(sock, counting)

    monkeypatch.setattr(http_stream, "discard", counted)
    async with running() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await stream.receive_some()
            with trio.move_on_after(0.3):
                while True:
                    await stream.send_all(b"x" * 65_536)
            assert 2 <= len(reads) <= 12
            assert server.node.statistics().clients == 1
            await server.node.publish(Publication("news", b'"still here"'))
            received = b""
            while b"still here" not in received and "events" in path:
                received += await stream.receive_some()
