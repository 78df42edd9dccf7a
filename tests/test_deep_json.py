"""JSON that is nested too deeply, on every way into a whole server: refused, and nothing more."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from repeater.serving.server import Server
from tests.http_streams import CONNECT, peer
from tests.serving import Peer, close_code, frame, running
from tests.serving import peer as raw_peer

ENDS = ("native", "asgi")
WEBSOCKETS = ("/connection/websocket", "/connection/uni_websocket")
# What a client sends at most is 64 KiB in a message, and 16 KiB in the head of a request.
LEVELS = (129, 975, 978, 60_000)


def deep(levels: int) -> str:
    """Arrays, with a line break of JSON that ends no command."""
    return "[\r" + "[" * (levels - 1) + ("]" * levels if levels < 30_000 else "")


async def check_alive(server: Server) -> None:
    """The server publishes, answers a health check and counted no error of its own."""
    async with peer(server) as client:
        assert (await client.call("GET", "/health/live"))[0] == 200
        status, body = await client.call("POST", "/api/publish", '{"channel":"news","data":1}')
        assert status == 200
        assert b"result" in body
    assert not server.node.failures.counts


def serving() -> dict[str, object]:
    """Settings with a back end for connects, which is down."""
    return {"callbacks": {"connect_url": "http://127.0.0.1:9/connect"}}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("path", WEBSOCKETS)
@pytest.mark.parametrize("end", ENDS)
async def test_a_websocket(end: str, path: str, levels: int) -> None:
    """The first message closes with 3501, before any question to the back end."""
    text = f'{{"data":{deep(levels)}}}'
    if path == "/connection/websocket":
        text = f'{{"id":1,"connect":{text}}}'
    async with running(**serving()) as server:
        async with raw_peer(server) as client:
            if end == "asgi":
                await client.call("GET", "/health/live")
            await upgrade(client, path)
            await client.stream.send_all(frame(text.encode()))
            received = b""
            while b"\x88" not in received:
                received += await client.stream.receive_some()
            assert close_code(received) == 3501
        await check_alive(server)


async def upgrade(client: Peer, path: str) -> None:
    await client.stream.send_all(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert b" 101 " in await client.until(b"\r\n\r\n")


@pytest.mark.parametrize("levels", [129, 978, 7_000])
@pytest.mark.parametrize("path", ["/connection/sse", "/connection/uni_sse"])
@pytest.mark.parametrize("end", ENDS)
async def test_a_connect_in_the_address(end: str, path: str, levels: int) -> None:
    """A stream tells its reader 3501 and ends; a unidirectional one is refused with 400."""
    text = f'{{"data":{deep(levels)}}}'
    if path == "/connection/sse":
        text = f'{{"id":1,"connect":{text}}}'
    async with running(**serving()) as server:
        async with peer(server, end) as client:
            await client.request("GET", f"{path}?cf_connect={quote(text, safe='[]{}')}")
            assert (b"connect request" if "uni" in path else b'"code":3501') in await client.rest()
        await check_alive(server)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("path", ["/connection/http_stream", "/connection/uni_http_stream"])
@pytest.mark.parametrize("end", ENDS)
async def test_a_connect_in_a_body(end: str, path: str, levels: int) -> None:
    """The same."""
    text = f'{{"data":{deep(levels)}}}'
    if path == "/connection/http_stream":
        text = f'{{"id":1,"connect":{text}}}'
    async with running(**serving()) as server:
        async with peer(server, end) as client:
            await client.request("POST", path, text)
            assert (b"connect request" if "uni" in path else b'"code":3501') in await client.rest()
        await check_alive(server)


@pytest.mark.parametrize("levels", LEVELS)
async def test_an_emulated_command(levels: int) -> None:
    """In the commands of a session it ends the session; around them it is status 400."""
    async with running() as server, peer(server, "native") as stream:
        await stream.request("POST", "/connection/http_stream", CONNECT)
        connected = json.loads(await stream.until(b"\n"))["connect"]
        async with peer(server) as client:
            body = f'{{"session":"a","node":"b","data":"c","x":{deep(levels)}}}'
            assert (await client.call("POST", "/emulation", body))[0] == 400
            command = f'{{"id":2,"publish":{{"channel":"news","data":{deep(levels)}}}}}'
            body = json.dumps({k: connected[k] for k in ("session", "node")} | {"data": command})
            assert (await client.call("POST", "/emulation", body))[0] == 204
        assert b'"code":3501' in await stream.rest()
        await check_alive(server)


@pytest.mark.parametrize("levels", [*LEVELS, 200_000])
@pytest.mark.parametrize("end", ENDS)
async def test_calls_of_the_api(end: str, levels: int) -> None:
    """Status 400, or one failed line of a stream; a subscriber hears what follows."""
    event = f'{{"channel":"news","data":{deep(levels)}}}'
    async with running() as server, raw_peer(server, "/ws?channel=news") as subscriber:
        async with peer(server, end) as client:
            for method, body in {
                "publish": event,
                "broadcast": event.replace('"channel":"news"', '"channels":["news"]'),
                "batch": f'{{"commands":[{{"publish":{event}}}]}}',
                "refresh": f'{{"user":"a","info":{deep(levels)}}}',
                "rpc": f'{{"method":"a","params":{deep(levels)}}}',
            }.items():
                assert (await client.call("POST", f"/api/{method}", body))[0] == 400, method
            lines = f'{event}\n{{"channel":"news","data":7}}\n'
            status, answer = await client.call("POST", "/api/stream", lines)
            assert status == 200
            assert b'"accepted":1,"failed":1' in answer
        assert await subscriber.until(b"7") == b"\x81\x017"
        await check_alive(server)


@pytest.mark.parametrize("end", ENDS)
async def test_half_a_pair_goes_through_a_server(end: str) -> None:
    """Published by REST and by a command, heard as text and in an event stream, as written."""
    data = rb'{"text":"Good morning \ud83d"}'
    async with running() as server, raw_peer(server, "/ws?channel=news") as subscriber:
        async with peer(server, end) as reader, peer(server, end) as client:
            await reader.request("GET", "/events?channel=news")
            await reader.until(b"id: ")
            body = b'{"channel":"news","data":%b}' % data
            assert (await client.call("POST", "/api/publish", body))[0] == 200
            assert data in await subscriber.until(b"}")
            async with raw_peer(server, "/connection/websocket") as sdk:
                await sdk.stream.send_all(
                    frame(b'{"id":1,"connect":{}}\n{"id":2,"publish":%b}' % body)
                )
                await sdk.until(b'{"id":2,"publish":{}}')
            assert data in await subscriber.until(b"}")
            for _ in range(2):
                assert data in await reader.until(b"}\n\n")
        await check_alive(server)
