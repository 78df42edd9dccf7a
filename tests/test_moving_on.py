"""A server that ends while another one goes on with its sockets resets nobody."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from tests.deadlines import LOOP_ANSWERS
from tests.serving import UPGRADE, Peer, peer, running

pytestmark = pytest.mark.timeout(2 * LOOP_ANSWERS)

EVENT = b'{"channel":"news","data":[1]}'


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/nothing", b""), ("POST", "/api/publish", EVENT)],
    ids=["page", "call"],
)
async def test_a_kept_connection_gets_one_more_answer(method: str, path: str, body: bytes) -> None:
    """The answer says that the connection ends: a peer with a request under way is not reset."""
    async with trio.open_nursery() as nursery:  # noqa: SIM117  # the client outlives the server
        async with running() as server:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            client = Peer(stream)
            first = await client.call(method, path, body)
            assert b"onnection: close" not in first
            server.hand_over()

            async def send_late() -> None:
                await trio.sleep(0.3)  # the shutdown has begun
                answer = await client.call(method, path, body)
                assert answer.startswith(b"HTTP/1.1 ")  # an event is refused: the node has ended
                assert b"onnection: close" in answer
                assert not await client.rest()
                await stream.aclose()

            nursery.start_soon(send_late)


async def test_an_accepted_connection_may_send_its_request() -> None:
    """It is answered, though the shutdown began before its first byte came."""
    async with trio.open_nursery() as nursery:  # noqa: SIM117  # the client outlives the server
        async with running() as server:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            while not server.acceptor.statistics().open:
                await trio.lowlevel.checkpoint()
            server.hand_over()

            async def send_late() -> None:
                await trio.sleep(0.3)
                await stream.send_all(UPGRADE.format(path="/ws?channel=news", more="").encode())
                answer = await Peer(stream).rest()
                assert answer.startswith(b"HTTP/1.1 101 ")
                assert (3001).to_bytes(2) in answer  # a subscriber, who is asked to come back
                await stream.aclose()

            nursery.start_soon(send_late)


async def test_silent_connections_hold_nothing_up() -> None:
    """The end waits for them for a second, and no longer."""
    async with running(shutdown_timeout=10.0) as server:
        silent = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with peer(server) as idle:
            await idle.call("GET", "/health")
            server.hand_over()
            began = trio.current_time()
    assert trio.current_time() - began < 3  # of ten
    await silent.aclose()


async def test_sockets_stay_open_for_the_other_server(tmp_path: Path) -> None:
    """The file of a Unix socket is not removed, and connections wait in the queue."""
    path = tmp_path / "r.sock"
    async with running(listen=[f"unix:{path}"]) as server:
        (listener,) = server.listeners.sockets
        other = socket.socket(fileno=socket.dup(listener.fileno()))
        server.listeners.leave_files()
    with other, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        other.settimeout(1.0)
        other.accept()[0].close()
