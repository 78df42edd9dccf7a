"""An error of ours that one connection meets costs that connection, and is told once a second."""

from __future__ import annotations

import errno
import logging
import socket
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.clients.client import Client
from repeater.clients.session import Session
from repeater.config import CurrentSettings, load_settings
from repeater.errors import SERVER_ERROR
from repeater.failures import Failures
from repeater.fanout.transport import Chunk
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, PLAIN, PLAIN_ASGI, Codec
from repeater.publication import Publication
from repeater.serving.application import create_app
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.conversation import talking
from tests.serving import frame, peer, running

CONNECT = frame(b'{"connect":{},"id":1}')


class Mistake(Exception):  # noqa: N818  # what it stands for is any exception
    """A mistake of ours."""


def failing(*_: object) -> None:
    raise Mistake


async def test_an_error_in_a_command_costs_its_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That socket is reset, the error is counted and logged; others go on."""
    async with (
        running() as server,
        peer(server, "/ws?channel=news") as other,
        peer(server, "/connection/websocket") as one,
    ):
        monkeypatch.setattr(Session, "_execute", failing)
        with caplog.at_level(logging.ERROR, "repeater"):
            await one.stream.send_all(CONNECT)
            assert await one.rest() == b""
        await server.node.publish(Publication("news", b"1"))
        assert await other.until(b"1") == b"\x81\x011"
        statistics = server.node.statistics()
        assert statistics.failures == {"connection": 1}
        assert statistics.ended == {SERVER_ERROR.code: 1}
        assert "Mistake" in caplog.text


async def test_an_error_in_a_handshake_costs_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before there is a client, too: the socket is closed, and the next one is served."""
    async with running() as server:
        with monkeypatch.context() as patched:
            patched.setattr("repeater.front.accept.read_head", failing)
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                await stream.send_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
        async with peer(server, "/ws?channel=news"):
            assert server.node.statistics().failures == {"connection": 1}


async def test_an_error_in_a_turn_of_the_heartbeat_costs_its_client(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep goes on with the next client."""
    one, other = MemoryTransport(PLAIN), MemoryTransport(PLAIN)
    ping = Client.heartbeat

    def heartbeat(client: Client) -> float | None:
        if client.transport is one:
            raise Mistake
        return ping(client)

    monkeypatch.setattr(Client, "heartbeat", heartbeat)
    options = NodeOptions(ping_interval=5, pong_timeout=100)
    async with open_test_node(options) as node, connect(node, other) as healthy:
        async with connect(node, one) as failed:
            await trio.sleep(20)
        await trio.sleep(20)
        assert failed.end is SERVER_ERROR
        assert one.aborted
        assert healthy.end is None
        assert other.sent
        assert node.statistics().failures == {"heartbeat": 1}


class BrokenTransport(MemoryTransport):
    """Takes nothing at once, and fails with an error that no socket raises."""

    def write(self, chunk: Chunk) -> int:
        raise BlockingIOError

    async def send_some(self, chunk: Chunk) -> int:
        raise Mistake


async def test_an_error_in_a_drain_task_costs_its_client() -> None:
    """The task is one client's, though it runs in a nursery of the node."""
    async with open_test_node() as node, connect(node, BrokenTransport()) as client:
        client.outbox.send(b"x")
        await wait_all_tasks_blocked()
        assert client.end is SERVER_ERROR
        assert node.statistics().failures == {"outbox": 1}


@pytest.mark.parametrize(
    "number",
    ["EPERM", "EPROTO", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EMFILE", "ENOPROTOOPT"],
)
async def test_the_network_s_errors_do_not_end_accepting(
    number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accept(2) hands on what befell one peer: it is counted, and the next peer is served."""
    accept = socket.socket.accept
    errors = [OSError(getattr(errno, number), "network"), OSError(errno.EPERM, "firewall")]

    def unlucky(listener: socket.socket, _kind: object) -> tuple[socket.socket, object]:
        if errors:
            raise errors.pop()
        return accept(listener)

    async with running() as server:
        monkeypatch.setattr("repeater.front.accept._accept", unlucky)
        async with peer(server, "/ws?channel=news"):
            assert not errors
            assert server.acceptor.statistics().pauses == 2


async def test_tracebacks_are_bounded(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One a second for each place, though every error is counted."""
    failures = Failures()
    with caplog.at_level(logging.ERROR, "repeater"):
        for _ in range(100):
            failures.note("connection", Mistake())
        failures.note("outbox", Mistake())
        await trio.sleep(1)
        failures.note("connection", Mistake())
    assert failures.counts == {"connection": 101, "outbox": 1}
    assert len(caplog.records) == 3


def unable(*_: object) -> bytes:
    raise Mistake


async def test_a_codec_that_fails_costs_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its listeners miss the publication, those with a position are told, and others get it."""
    async with open_test_node() as node, talking(node) as positioned, talking(node) as careless:
        plain = MemoryTransport()
        async with connect(node, plain, ["c"]):
            await positioned.subscribe("c", positioned=True)
            await careless.subscribe("c")
            await positioned.news()
            codec = type(CENTRIFUGE_JSON_ASGI)
            encode = codec.publications

            def publications(one: Codec, *run: Any) -> Any:
                return encode(one, *run) if one is PLAIN_ASGI else unable()

            monkeypatch.setattr(codec, "publications", publications)
            await node.publish(Publication("c", b"1"))
            assert await positioned.pushes("unsubscribe") == [
                {"code": 2500, "reason": "insufficient state"}
            ]
            monkeypatch.undo()
            await node.publish(Publication("c", b"2"))
            assert await careless.data() == [2]
            assert plain.sent == [b"1", b"2"]
            assert node.statistics().failures["fanout"] >= 1


async def test_a_cut_that_fails_does_not_end_fan_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer that finds a client broken is everybody's: the failure stays with that client."""

    class Gone(MemoryTransport):
        def write(self, chunk: Chunk) -> int:
            raise OSError("gone")

    gone, other = Gone(), MemoryTransport()
    async with open_test_node() as node, connect(node, other, ["c"]):
        async with connect(node, gone, ["c"]) as client:
            with monkeypatch.context() as patched:
                patched.setattr(client.outbox, "_cut", unable)
                await node.publish(Publication("c", b"1"))
                await wait_all_tasks_blocked()
            assert gone.aborted
        await node.publish(Publication("c", b"2"))
        await wait_all_tasks_blocked()
        assert other.sent == [b"1", b"2"]
        assert node.statistics().failures == {"cut": 1}


async def test_a_page_that_fails_is_noted_at_a_bounded_rate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request gets 500 and is counted; Quart would log a traceback for each."""
    monkeypatch.setattr("repeater.web.observe.choose_encoder", unable)
    async with open_test_node() as node:
        client = create_app(node, CurrentSettings(load_settings(dev=True))).test_client()
        with caplog.at_level(logging.ERROR):
            for _ in range(5):
                assert (await client.get("/metrics")).status_code == 500
        assert node.failures.counts == {"page": 5}
        assert len(caplog.records) == 1
        node.failures.counts.clear()


async def test_a_call_that_fails_is_noted_at_a_bounded_rate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call gets 500 and is counted."""

    async def fail(*_given: object, **_more: object) -> object:
        raise Mistake

    monkeypatch.setattr("repeater.front.rest.call", fail)
    async with running() as server:
        with caplog.at_level(logging.ERROR):
            for _ in range(5):
                async with peer(server) as back_end:
                    assert b" 500 " in await back_end.call("POST", "/api/info", b"{}")
        assert server.node.failures.counts == {"call": 5}
        assert len(caplog.records) == 1
        server.node.failures.counts.clear()
