"""What a shutdown waits for: answers, and nothing that a peer has not even asked for."""

from __future__ import annotations

import json

import h2.connection
import h2.events
import pytest
import trio

from tests.serving import Peer, connected, peer, running

GET = b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n"
CALL = b"POST /api/publish HTTP/1.1\r\nHost: t\r\nContent-Length: 29\r\n\r\n"
EVENT = b'{"channel":"news","data":[1]}'
LATE = b"POST /connection/http_stream HTTP/1.1\r\nHost: t\r\nContent-Length: 99\r\n\r\n{"
STREAM = b"POST /api/stream HTTP/1.1\r\nHost: t\r\nContent-Length: 999\r\n\r\n"


@pytest.mark.parametrize("first", [b"", GET, CALL + EVENT], ids=["nothing", "a page", "a call"])
@pytest.mark.parametrize(
    "begun",
    [b"", b"G", b"POST /api/pub", CALL[:-1], CALL + b"{", LATE, GET[:-2], b"POST /emulation "],
)
async def test_requests_that_are_not_whole_hold_nothing_up(first: bytes, begun: bytes) -> None:
    """Half a head, or a body that comes late, after nothing, a page or a call."""
    async with trio.open_nursery():
        async with running(shutdown_timeout=10.0) as server:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            client = Peer(stream)
            if first:
                await stream.send_all(first)
                assert b" 200 " in await client.until(b"\r\n\r\n")
            if begun:
                await stream.send_all(begun)
            while not server.acceptor.statistics().open:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.01)
            began = trio.current_time()
        assert trio.current_time() - began < 2  # of ten
        await client.rest()
        await stream.aclose()


@pytest.mark.parametrize("way", ["native", "asgi"])
async def test_a_stream_of_events_is_summed_up(way: str) -> None:
    """At a shutdown it is answered with 503 and the line at which it stopped."""
    async with running() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        client = Peer(stream)
        if way == "asgi":
            assert b" 200 " in await client.call("GET", "/health")
        await stream.send_all(STREAM + EVENT + b"\n" + EVENT)
        while not server.node.statistics().repeater.publications:
            await trio.testing.wait_all_tasks_blocked()
    async with stream:
        answer = await client.rest()
    assert b" 503 " in answer
    body = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    assert body["result"] == {"accepted": 1, "failed": 0, "errors": [], "stopped_at": 2}


@pytest.mark.parametrize("way", ["native", "asgi", "h2"])
async def test_a_body_is_bounded_without_its_length(way: str) -> None:
    """A body for `/emulation` above `message_limit` is 413 however it is announced."""
    async with running(message_limit=2_000) as server:
        if way == "h2":
            async with connected(server, way) as stream:
                assert await _by_http2(stream, 3_000) == 413
                assert server.node.statistics().clients == 0
            return
        async with peer(server) as client:
            if way == "asgi":
                assert b" 200 " in await client.call("GET", "/health")
            head = b"POST /emulation HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
            await client.stream.send_all(head)
            for _ in range(3):
                await client.stream.send_all(b"3e8\r\n" + bytes(1_000) + b"\r\n")
            assert b" 413 " in await client.until(b"\r\n\r\n")


async def _by_http2(stream: trio.SocketStream, size: int) -> int:
    """Send a body of unknown length to `/emulation`; the status of the answer."""
    http = h2.connection.H2Connection()
    http.initiate_connection()
    head = {":method": "POST", ":path": "/emulation", ":scheme": "https", ":authority": "t"}
    http.send_headers(1, list(head.items()))
    http.send_data(1, bytes(size))
    while True:
        await stream.send_all(http.data_to_send())
        for event in http.receive_data(await stream.receive_some()):
            if isinstance(event, h2.events.ResponseReceived):
                return int(dict(event.headers)[b":status"])
