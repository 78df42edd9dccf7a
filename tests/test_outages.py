"""An engine that is down, as everybody at the server's edges sees it, and its return."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.config import load_settings
from repeater.errors import FORCE_DISCONNECT
from repeater.serving.server import Server, open_server
from tests.deadlines import LOOP_ANSWERS
from tests.outage import WHY, FailingBroker
from tests.serving import UPGRADE, Peer, connected, frame, peer

SETTINGS: dict[str, Any] = {
    "dev": True,
    "port": 0,
    "allowed_hosts": "*",
    "metrics_open": True,
    "channel": {"history_size": 0},
    "namespaces": {"kept": {"history_size": 10, "history_ttl": 60, "force_positioning": True}},
}
PLAIN = {
    "/ws": UPGRADE.format(path="/ws?channel=news", more=""),
    "/ws with envelopes": UPGRADE.format(path="/ws?channel=news&envelope=1", more=""),
    "/ws with history": UPGRADE.format(path="/ws?channel=kept:a&since=start", more=""),
    "/events": "GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "/events with history": "GET /events?channel=kept:a HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
"""How a plain subscriber asks."""
plain = pytest.mark.parametrize("asked", PLAIN.values(), ids=PLAIN)
ways = pytest.mark.parametrize("used", [False, True], ids=["native", "asgi"])
"""On a connection that is fresh, or was used already: then the ASGI server serves it."""


@asynccontextmanager
async def failing() -> AsyncIterator[tuple[Server, FailingBroker]]:
    broker = FailingBroker()
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(load_settings(**SETTINGS), broker=broker) as server:
            yield server, broker


@asynccontextmanager
async def asking(server: Server, asked: str, *, used: bool) -> AsyncIterator[Peer]:
    """A peer that has asked to subscribe, and has not read the answer."""
    async with connected(server) as stream:
        client = Peer(stream)
        if used:
            assert b" 200 " in await client.call("GET", "/health/live")
        await stream.send_all(asked.encode())
        yield client


async def refusal(server: Server, asked: str, *, used: bool) -> str:
    """The head of the answer to a subscriber that is refused, in lower case."""
    async with asking(server, asked, used=used) as client:
        return (await client.until(b"\r\n\r\n")).decode().lower()


async def say(client: Peer, **command: object) -> Any:
    """Send one command over a WebSocket; the reply."""
    await client.stream.send_all(frame(json.dumps({"id": 1, **command}).encode()))
    while len(client.received) < 2 or len(client.received) < 2 + client.received[1]:
        client.received += await client.stream.receive_some()
    size = 2 + client.received[1]
    assert client.received[1] < 126
    reply, client.received = client.received[2:size], client.received[size:]
    return json.loads(reply)


async def publish(server: Server, channel: str, data: object) -> bytes:
    async with peer(server) as client:
        body = json.dumps({"channel": channel, "data": data}).encode()
        return await client.call("POST", "/api/publish", body)


@ways
@plain
async def test_a_plain_subscriber_is_refused_before_its_answer(asked: str, used: bool) -> None:
    """503 with Retry-After, and nothing is left; the same request works when the engine is back."""
    async with failing() as (server, broker):
        broker.down = True
        answer = await refusal(server, asked, used=used)
        assert answer.startswith("http/1.1 503 ")
        assert "\r\nretry-after: 1\r\n" in answer
        await wait_all_tasks_blocked()
        assert not server.node.hub.channels
        assert not broker.wished
        assert server.node.statistics().broker_errors == {"subscribe": 1}
        broker.back()
        async with asking(server, asked, used=used) as client:
            assert b" 101 " in (head := await client.until(b"\r\n\r\n")) or b" 200 " in head
            await publish(server, "kept:a" if "kept" in asked else "news", 1)
            assert (await client.until(b"1")).endswith(b"1")


@ways
@pytest.mark.parametrize("asked", ["/ws", "/events"])
async def test_nothing_is_missed_once_the_answer_is_there(asked: str, used: bool) -> None:
    """What is published while the channel is being held comes right behind the answer."""
    async with failing() as (server, broker):
        broker.holding.shut()
        async with asking(server, PLAIN[asked], used=used) as client:
            await broker.asked.wait()
            assert b" 200 " in await publish(server, "news", 1)
            await wait_all_tasks_blocked(0.01)
            assert not client.received
            assert not [one for one in server.node.registry.clients if one.ready]
            broker.holding.open()
            head = await client.until(b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 "))
            assert (await client.until(b"1")).endswith(b"1")


@ways
@pytest.mark.parametrize("asked", ["/ws", "/events"])
@pytest.mark.parametrize("end", ["shutdown", "blocked"])
async def test_who_is_ended_before_the_answer(asked: str, used: bool, end: str) -> None:
    """A shutdown is 503, since another server may take the client; a block of the user is 403."""
    async with failing() as (server, broker):
        broker.holding.shut()
        async with asking(server, PLAIN[asked], used=used) as client:
            await broker.asked.wait()
            (waiting,) = server.node.registry.clients
            if end == "shutdown":
                await server.node.shut_down()
            else:
                waiting.disconnect(FORCE_DISCONNECT)
            head = (await client.until(b"\r\n\r\n")).decode().lower()
            assert head.startswith(f"http/1.1 {503 if end == 'shutdown' else 403} ")
            assert ("retry-after" in head) is (end == "shutdown")


async def test_a_browser_is_told_when_to_come_back() -> None:
    """An `EventSource` gives up at any status but 200: it gets a stream that only says when."""
    asked = (
        "GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        "Sec-Fetch-Mode: cors\r\n\r\n"
    )
    async with failing() as (server, broker):
        broker.down = True
        async with asking(server, asked, used=False) as client:
            answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\nretry: " in answer
        assert b": 503 Service Unavailable: internal server error" in answer


async def test_a_centrifugo_client_stays() -> None:
    """`connect` with server-side channels and `subscribe` with history: 100; the rest works."""
    async with failing() as (server, broker), peer(server, "/connection/websocket") as client:
        broker.down = True
        async with peer(server, "/connection/websocket") as other:
            reply = await say(other, connect={"subs": {"news": {}}})
            assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)
        assert "connect" in await say(client, connect={})
        reply = await say(client, subscribe={"channel": "kept:a"})
        assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)
        assert (await say(client, subscribe={"channel": "news"}))["subscribe"] == {}
        assert broker.wished == {"news": None}
        reply = await say(client, publish={"channel": "news", "data": 1})
        assert (reply["error"]["code"], reply["error"]["temporary"]) == (100, True)
        reply = await say(client, history={"channel": "kept:a"})
        assert reply["error"]["code"] == 100
        broker.back()
        assert (await say(client, subscribe={"channel": "kept:a"}))["subscribe"]["positioned"]
        assert b" 200 " in await publish(server, "news", 1)
        await client.until(b'"data":1')


async def test_publishers_are_told_at_once() -> None:
    """`publish` and items of a batch: error 100; a stream: 503 with the line to go on with."""
    async with failing() as (server, broker), peer(server) as client:
        broker.down = True
        began = trio.current_time()
        body = b'{"channel":"news","data":1}'
        answer = await client.call("POST", "/api/publish", body)
        assert b'"error":{"code":100' in answer
        batch = b'{"commands":[{"publish":%s},{"publish":%s}]}' % (body, body)
        assert (await client.call("POST", "/api/batch", batch)).count(b'"code":100') == 2
        answer = await client.call("POST", "/api/stream", body + b"\n" + body)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"stopped_at":1' in answer
        assert b"retry-after: 1\r\n" in answer
        assert trio.current_time() - began < server.node.options.publish_timeout
        broker.back()
        assert b'"result"' in await publish(server, "news", 1)


async def test_health_and_metrics() -> None:
    """Not ready, and still alive: no orchestrator restarts what waits for its engine."""
    async with failing() as (server, broker), peer(server) as client:
        assert b" 200 " in await client.call("GET", "/health/ready")
        broker.down = True
        answer = await client.call("GET", "/health/ready")
        assert b" 503 " in answer
        assert WHY.encode() in answer
        assert b" 200 " in await client.call("GET", "/health/live")
        assert b"\nrepeater_broker_up 0.0" in await client.call("GET", "/metrics")
