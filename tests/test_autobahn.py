"""The Autobahn cases, run by kosoku: is our WebSocket one by the letter of RFC 6455?

Most cases want their messages back, so they run against an echo over the native transport: the
server's own read loop, reader and outbox, with a conversation that repeats what it hears. The
endpoint itself is held to those cases that need no echo.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio

from repeater.clients.client import Client
from repeater.config import load_settings
from repeater.node import Node
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import Codec
from repeater.protocol.centrifugo.json_format import PLAIN_DATA
from repeater.protocol.http.head import read_head
from repeater.protocol.websocket.frames import text_frame
from repeater.protocol.websocket.handshake import answer_handshake
from repeater.serving.server import open_server
from repeater.testing import open_test_node
from repeater.transports import websocket
from repeater.transports.websocket import WebSocketTransport
from tests.processes import starts_processes

pytestmark = [pytest.mark.autobahn, starts_processes]

# 1 framing, 2 pings and pongs, 3 reserved bits, 4 opcodes, 5 fragments, 6 UTF-8, 7 closing,
# 10 automatic fragmentation. Left out:
#   9       is a benchmark with messages of up to 16 MiB: past our limit, which is 64 KiB;
#   12, 13  are permessage-deflate, which is never negotiated: a frame is encoded once for all.
CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")

CONCURRENCY = 16
SECOND_TRIES = 5

# kosoku runs on asyncio, hence a process of its own.
RUN = """
import asyncio, json, os, sys
from kosoku import FailureError, run_fuzzingclient

def outcome(case):
    expected = case.expected.get("OK", ())
    return {
        "id": case.case_id,
        "passed": case.passed,
        "echo": any(event[0] == "message" for event in expected),
        "text": f"{case.case_id} {case.behavior.value}/{case.behavior_close.value}: "
        f"{case.description} {case.result_close}; got {case.received}",
    }

async def main(url, concurrency, *cases):
    try:
        results = await run_fuzzingclient(url, cases, concurrency=int(concurrency))
    except FailureError as error:
        results = error.results
    print(json.dumps([outcome(case) for case in results]), flush=True)
    os._exit(0)  # Its threads may outlive the interpreter, which aborts then.

asyncio.run(main(*sys.argv[1:]))
"""


class Outcome(msgspec.Struct, frozen=True):
    """One case: whether it passed, and whether a passing server has to echo."""

    id: str
    passed: bool
    echo: bool
    text: str


async def run_cases(url: str, cases: Sequence[str], concurrency: int) -> Sequence[Outcome]:
    command = [sys.executable, "-c", RUN, url, str(concurrency), *cases]
    done = await trio.run_process(command, capture_stdout=True)
    return msgspec.convert(json.loads(done.stdout), list[Outcome])


async def failures(url: str, outcomes: Sequence[Outcome]) -> Sequence[str]:
    """What is said of the failed ones, after a second try of each by itself.

    The cases have deadlines of a second or three, which a busy machine may miss.
    """
    failed = [outcome.id for outcome in outcomes if not outcome.passed]
    again = await run_cases(url, failed, 1) if 0 < len(failed) <= SECOND_TRIES else outcomes
    return [outcome.text for outcome in again if not outcome.passed]


ECHO = Codec("echo", PLAIN_DATA, frame=text_frame, ping=None)


class Echo:
    """A conversation that says everything again."""

    def __init__(self, _node: Node, client: Client) -> None:
        self._client = client

    async def receive(self, message: str | bytes) -> None:
        if isinstance(message, str):
            frame = text_frame(message.encode())
        else:  # Binary: the same frame with another opcode.
            frame = b"\x82" + text_frame(message)[1:]
        self._client.outbox.send(frame)


async def serve_echo(node: Node, stream: trio.SocketStream) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    head, end, received = head.partition(b"\r\n\r\n")
    head += end
    handshake = answer_handshake(read_head(head))
    sock = socket.socket(fileno=stream.socket.detach())
    with trio.CancelScope() as scope:
        client = Client(node.registry, WebSocketTransport(sock, ECHO), scope, ready=True)
        client.outbox.send(handshake.answer)
        await websocket.serve(node, client, sock, Echo(node, client), received)


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """The URL of an echo for as long as the block lasts."""
    async with (
        open_test_node(NodeOptions(message_limit=200_000)) as node,
        trio.open_nursery() as nursery,
    ):
        serve = partial(trio.serve_tcp, partial(serve_echo, node), 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_the_transport_passes_every_case() -> None:
    """All of 1 to 7 and 10, 247 cases, against an echo."""
    async with echo_server() as url:
        outcomes = await run_cases(url, CASES, CONCURRENCY)
        assert len(outcomes) == 247
        assert not await failures(url, outcomes)


async def test_the_endpoint_passes_what_needs_no_echo() -> None:
    """The Centrifugo endpoint, which answers a stray message with 3501, passes the other 140."""
    async with open_server(load_settings(dev=True, port=0)) as server:
        url = f"ws://127.0.0.1:{server.port}/connection/websocket"
        outcomes = await run_cases(url, CASES, CONCURRENCY)
        asked = [outcome for outcome in outcomes if not outcome.echo]
        assert len(asked) == 140
        assert not await failures(url, asked)
