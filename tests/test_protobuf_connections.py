"""Protobuf clients on every way in: natively, behind the ASGI server, and inside HTTP/2."""

from __future__ import annotations

import base64
import subprocess
import sys
from typing import Any

import pytest

from repeater.publication import Publication
from repeater.serving.server import Server
from tests.deadlines import PROCESS_STARTS
from tests.http_streams import Peer
from tests.http_streams import peer as http_peer
from tests.official_protobuf import delimited
from tests.processes import starts_processes
from tests.protobuf_peer import command, emulation, frames, whole
from tests.serving import close_code, frame, running
from tests.websocket_ways import WebSocket, every_way, websocket

SUBPROTOCOL = "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n"
ASKED = [
    ("/connection/websocket", SUBPROTOCOL),
    ("/connection/websocket?format=protobuf", ""),
    ("/connection/websocket?cf_protocol=protobuf", ""),
]
CONNECT = command(id=1, connect={"name": "test"})
SUBSCRIBE = command(id=2, subscribe={"channel": "news", "positioned": True, "recoverable": True})
OCTETS = "application/octet-stream"
ENDS = ("native", "asgi")


async def replies(client: WebSocket, number: int) -> list[Any]:
    """At least so many replies, each in a binary frame of its own."""
    while True:
        found = [payload for opcode, payload in frames(client.received) if opcode == 2]
        if len(found) >= number:
            for payload in found:
                assert whole(payload)[1] == b""
                assert len(whole(payload)[0]) == 1
            return [whole(payload)[0][0] for payload in found]
        assert not client.ended, f"the end came instead: {client.received!r}"
        await client.read()


@every_way
@pytest.mark.parametrize(("path", "more"), ASKED, ids=["subprotocol", "format", "cf_protocol"])
async def test_a_websocket_speaks_protobuf(way: str, path: str, more: str) -> None:
    """Commands of one frame are answered in order, and publications come as bytes."""
    async with running() as server, websocket(server, way, path, more) as client:
        assert (b"centrifuge-protobuf" in client.head) is bool(more)
        await client.send(frame(CONNECT + SUBSCRIBE, 2))
        connected, subscribed = await replies(client, 2)
        assert connected["id"] == 1
        assert connected["connect"]["client"]
        assert connected["connect"]["ping"] == 25
        assert subscribed["subscribe"]["recoverable"] is True
        await server.node.publish(Publication("news", b'{"n": 1}'))
        pushed = (await replies(client, 3))[2]
        assert pushed["push"]["channel"] == "news"
        assert base64.b64decode(pushed["push"]["pub"]["data"]) == b'{"n": 1}'
        assert pushed["push"]["pub"]["offset"] == "1"


async def ping(client: WebSocket) -> None:
    """Wait for the protocol's next ping; answer those of a WebSocket behind Hypercorn."""
    while b"\x82\x01\0" not in client.received:
        assert not client.ended, f"the end came instead: {client.received!r}"
        if b"\x89\0" in client.received:
            await client.until(b"\x89\0")
            await client.send(frame(b"", 10))
        await client.read()
    await client.until(b"\x82\x01\0")


@every_way
async def test_a_ping_is_an_empty_message(way: str) -> None:
    """And so is its answer, after which the client is pinged again."""
    path = "/connection/websocket?format=protobuf"
    times = {"ping_interval": 2.0, "pong_timeout": 1.9, "close_timeout": 0.2}
    async with running(**times) as server, websocket(server, way, path) as client:
        await client.send(frame(CONNECT, 2))
        await ping(client)
        await client.send(frame(b"\0", 2))
        await ping(client)
        assert len(server.node.registry.clients) == 1


@every_way
@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/connection/websocket?format=protobuf", frame(b'{"connect":{},"id":1}', 1)),
        ("/connection/websocket", frame(CONNECT, 2)),
        ("/connection/websocket?format=protobuf", frame(b"", 2)),
        ("/connection/websocket?format=protobuf", frame(CONNECT[:-1], 2)),
        ("/connection/websocket?format=protobuf", frame(b"\xff" * 9, 2)),
    ],
    ids=["text to Protobuf", "Protobuf to JSON", "empty", "cut off", "no length"],
)
async def test_a_message_of_another_format_is_3501(way: str, path: str, sent: bytes) -> None:
    """Text on a binary connection and the reverse, and bytes that are no message."""
    async with (
        running(close_timeout=0.5) as server,
        websocket(server, way, path) as client,
    ):
        await client.send(sent)
        assert close_code(await client.rest()) == 3501
        assert server.node.statistics().ended == {3501: 1}


async def read(client: Peer, number: int) -> list[Any]:
    """At least so many replies of a stream."""
    found: list[Any] = []
    while len(found) < number:
        client.body += (await client.event()).data
        some, client.body = whole(client.body)
        found += some
    return found


async def open_stream(client: Peer) -> tuple[str, str]:
    """A stream's session and node, by its first reply."""
    answer = await client.request("POST", "/connection/http_stream", CONNECT, Content_Type=OCTETS)
    assert answer.status_code == 200
    assert dict(answer.headers)[b"content-type"] == OCTETS.encode()
    (connected,) = await read(client, 1)
    return connected["connect"]["session"], connected["connect"]["node"]


async def emulate(server: Server, body: bytes) -> int:
    async with http_peer(server) as sender:
        return (await sender.call("POST", "/emulation", body, Content_Type=OCTETS))[0]


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_speaks_protobuf(end: str) -> None:
    """Its first command is the body, the others come by `/emulation`, and a push is its end."""
    async with running() as server, http_peer(server, end) as client:
        session, node = await open_stream(client)
        assert await emulate(server, emulation(session, node, SUBSCRIBE)) == 204
        (subscribed,) = await read(client, 1)
        assert subscribed["id"] == 2
        assert subscribed["subscribe"]["epoch"]
        await server.node.publish(Publication("news", b"1"))
        (pushed,) = await read(client, 1)
        assert pushed["push"]["pub"]["data"] == base64.b64encode(b"1").decode()
        (mine,) = server.node.registry.clients
        bad = delimited(b"\xff\xff")
        assert await emulate(server, emulation(session, node, bad)) == 204
        (ended,) = whole(await client.rest())[0]
        told = ended["push"]["disconnect"]
        assert (told["code"], told["reason"].partition(": ")[0]) == (3501, "bad request")
        assert mine.end is not None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff\xff", 400),
        (b"", 400),
        (emulation("", "node", SUBSCRIBE), 400),
        (emulation("session", "node", SUBSCRIBE), 404),
    ],
    ids=["no message", "empty", "no session", "unknown"],
)
async def test_emulation_refuses_in_protobuf_as_in_json(body: bytes, status: int) -> None:
    """The statuses are those of a JSON body."""
    async with running() as server:
        assert await emulate(server, body) == status


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", ["/connection/sse", "/connection/uni_http_stream"])
async def test_ways_of_json_stop_a_protobuf_client(end: str, path: str) -> None:
    """They answer with a disconnect in Protobuf, after which an SDK does not come back."""
    async with running() as server, http_peer(server, end) as client:
        status, body = await client.call("POST", path, CONNECT, Content_Type=OCTETS)
        assert status == 200
        ((ended,), rest) = whole(body)
        assert ended["push"]["disconnect"] == {"code": 3506, "reason": "inappropriate protocol"}
        assert rest == b""


# The import stands still in its thread until a second client has come.
IMPORT = """
import sys
import threading
import trio
from trio.testing import wait_all_tasks_blocked
from repeater.front import protobuf

CODECS = "repeater.protocol.centrifugo.protobuf_codecs"
reached, goes_on = threading.Event(), threading.Event()

class Gate:
    def find_spec(self, name, path, target=None):
        if name == "google.protobuf.descriptor_pool":
            reached.set()
            goes_on.wait()

async def come():
    await protobuf.load()
    print(hasattr(sys.modules[CODECS], "CENTRIFUGE_PROTOBUF_STREAM"))

async def main():
    sys.meta_path.insert(0, Gate())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        await trio.to_thread.run_sync(reached.wait)
        nursery.start_soon(come)
        await wait_all_tasks_blocked()
        print("loop goes on")
        goes_on.set()

trio.run(main)
"""


@starts_processes
def test_who_comes_during_the_import_waits_for_its_end() -> None:
    """Without holding up the loop, and without codecs that are only half there."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=PROCESS_STARTS
    )
    assert done.stdout.split("\n") == ["loop goes on", "True", "True", ""], done.stderr
