"""The health checks: alive, ready, and why not."""

from __future__ import annotations

import pytest
import trio

from repeater.brokers.memory import MemoryBroker
from repeater.config import CurrentSettings, load_settings
from repeater.serving.application import create_app
from repeater.testing import open_test_node
from tests.deadlines import LOOP_ANSWERS
from tests.serving import peer, running


async def test_states() -> None:
    """Live while it can answer; ready while it takes clients and its broker works."""
    outage = ""

    class Broker(MemoryBroker):
        def outage(self) -> str:
            return outage

    settings = CurrentSettings(load_settings(dev=True))
    async with open_test_node(broker=Broker()) as node:
        client = create_app(node, settings).test_client()

        async def ask(path: str) -> tuple[int, object]:
            with trio.fail_after(LOOP_ANSWERS):
                answer = await client.get(path)
                return answer.status_code, await answer.get_json()

        paths = ("/health", "/health/live", "/health/ready")
        for path in paths:
            assert await ask(path) == (200, {"status": "ok"})
        outage = "connection refused"
        down = {"status": "broker down", "reason": "connection refused"}
        assert [await ask(path) for path in paths] == [
            (200, {"status": "ok"}),
            (200, {"status": "ok"}),
            (503, down),
        ]
        outage = ""
        await node.shut_down()
        draining = (503, {"status": "draining"})
        assert [await ask(path) for path in paths] == [draining, (200, {"status": "ok"}), draining]


@pytest.mark.parametrize("more", ["", "Connection: close\r\n", "Content-Length: 0\r\n"])
async def test_the_first_request_of_a_connection_is_answered_alike(more: str) -> None:
    """A check on a connection of its own needs no ASGI server; nobody sees a difference."""
    head = f"GET /health/live HTTP/1.1\r\nHost: t\r\n{more}\r\n".encode()
    async with running(allowed_hosts=["*"]) as server:
        async with peer(server) as first, peer(server) as later:
            await later.call("GET", "/health")
            answers = []
            for client in (first, later):
                await client.stream.send_all(head)
                answer = await client.until(b'{"status":"ok"}\n')
                assert answer.startswith(b"HTTP/1.1 200 ")
                _status, *lines = answer.lower().split(b"\r\n")
                answers.append(sorted(one for one in lines if not one.startswith(b"date: ")))
            assert answers[0] == answers[1]
            if "close" not in more:
                for client in (first, later):
                    assert b" 200 " in await client.call("GET", "/health/live")
        async with peer(server) as piped:
            await piped.stream.send_all(head.replace(b"close", b"keep-alive") * 3)
            for _ in range(3):
                await piped.until(b'{"status":"ok"}\n')


@pytest.mark.parametrize("more", ["", "Connection: close\r\n"])
async def test_a_check_waits_for_no_asgi_server(monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    """It is answered before the connection is handed over, if it goes on."""
    async with running() as server, peer(server) as client:

        async def serve(*_: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(server.acceptor._handover, "serve", serve)
        head = f"GET /health/live HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()
        await client.stream.send_all(head)
        await client.until(b'{"status":"ok"}\n')
        if more:
            assert not await client.rest()
        server.acceptor.abort_all()


async def test_a_check_for_another_host_is_refused() -> None:
    """Also where it needs no ASGI server."""
    async with running(allowed_hosts=["good.example"]) as server, peer(server) as client:
        await client.stream.send_all(b"GET /health/live HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert b" 421 " in await client.until(b"\r\n")
