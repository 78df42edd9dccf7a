"""The Autobahn cases, run by kosoku, against an echo on the native transport.

Usage: just autobahn [CASE ...], with globs as in `just autobahn '12.*' 9.1.1`; without cases, all.
"""

from __future__ import annotations

import json
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec
import trio

from repeater.clients.client import Client
from repeater.node import Node
from repeater.options import LimitOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import Codec
from repeater.protocol.centrifugo.deflated_codecs import Compression
from repeater.protocol.centrifugo.json_format import PLAIN_MESSAGES
from repeater.protocol.http.head import read_head
from repeater.protocol.websocket.frames import text_frame
from repeater.protocol.websocket.handshake import answer_handshake
from repeater.testing import open_test_node
from repeater.transports import websocket
from repeater.transports.websocket import WebSocketTransport

SECOND_TRIES = 5
_MEBIBYTE: Final = 1_048_576
_ALL: Final = ("*",)

# kosoku runs on asyncio, hence a process of its own.
RUN = """
import asyncio, json, os, sys
from kosoku import FailureError, run_fuzzingclient

def outcome(case):
    expected = (case.expected or {}).get("OK", ())
    return {
        "id": case.case_id,
        "passed": case.passed,
        "declined": case.behavior.value == "UNIMPLEMENTED",
        "echo": any(event[0] == "message" for event in expected),
        "text": f"{case.case_id} {case.behavior.value}/{case.behavior_close.value}: "
        f"{case.description} {case.result_close}; got {case.received}"[:1_000],
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
    declined: bool
    """Whether the server declined the extension that the case is about: neither passed nor failed,
    although the suite may say that it passed."""
    echo: bool
    text: str


async def run_cases(url: str, cases: Sequence[str], concurrency: int) -> Sequence[Outcome]:
    """Run these cases, so many at a time, against the server of this URL."""
    command = [sys.executable, "-c", RUN, url, str(concurrency), *cases]
    done = await trio.run_process(command, capture_stdout=True)
    return msgspec.convert(json.loads(done.stdout), list[Outcome])


async def failures(url: str, outcomes: Sequence[Outcome]) -> Sequence[str]:
    """What is said of the failed ones, after a second try of each by itself.

    The cases have deadlines of a second or three, which a busy machine may miss.
    """
    failed = [one.id for one in outcomes if not (one.passed or one.declined)]
    again = await run_cases(url, failed, 1) if 0 < len(failed) <= SECOND_TRIES else outcomes
    return [one.text for one in again if not (one.passed or one.declined)]


ECHO = Codec("echo", PLAIN_MESSAGES, frame=text_frame, ping=None)
COMPRESSION = Compression()


def deflated_frame(payload: bytes) -> bytes:
    """A compressed text frame, even if that is longer than the message: kosoku wants it so.

    It takes an error of its own, "Strings must be encoded before hashing", for ours where a text
    message is not compressed, which RFC 7692 allows.
    """
    data = COMPRESSION.compressor._compress(memoryview(payload))
    return b"\xc1" + text_frame(data)[1:]


class Echo:
    """A conversation that says everything again, compressed where that was negotiated."""

    def __init__(self, client: Client) -> None:
        self._outbox = client.outbox
        self._frame = deflated_frame if client.codec.compresses else text_frame

    async def receive(self, message: str | bytes) -> None:
        """Send a message back."""
        if isinstance(message, str):
            frame = self._frame(message.encode())
        else:  # Binary: the same frame with another opcode.
            frame = self._frame(message)
            frame = bytes((frame[0] + 1,)) + frame[1:]
        self._outbox.send(frame)


async def serve_echo(node: Node, stream: trio.SocketStream) -> None:
    """Serve one connection."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    head, end, received = head.partition(b"\r\n\r\n")
    head += end
    handshake = answer_handshake(read_head(head), deflate=True)
    codec = COMPRESSION.codec(ECHO, 1) if handshake.deflates else ECHO
    sock = socket.socket(fileno=stream.socket.detach())
    with trio.CancelScope() as scope:
        client = Client(node.registry, WebSocketTransport(sock, codec), scope, ready=True)
        client.outbox.send(handshake.answer)
        await websocket.serve(node, client, sock, Echo(client), received)


@asynccontextmanager
async def echo_server(
    message_limit: int = 200_000, limits: LimitOptions | None = None
) -> AsyncIterator[str]:
    """The URL of an echo for as long as the block lasts."""
    outbox_limit = max(4 * message_limit, _MEBIBYTE)
    options = NodeOptions(
        message_limit=message_limit, outbox_limit=outbox_limit, limits=limits or LimitOptions()
    )
    async with open_test_node(options) as node, trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, partial(serve_echo, node), 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def main(cases: Sequence[str]) -> int:
    """Run the cases, print what did not pass, and return the number of failures."""
    # Group 9 has messages of 16 MiB, and 65,536 fragments of 64 bytes.
    async with echo_server(17 * _MEBIBYTE, LimitOptions(commands_per_second=0)) as url:
        outcomes = await run_cases(url, cases or _ALL, 2)
        failed = await failures(url, outcomes)
    counts = Counter(
        "declined" if one.declined else "passed" if one.passed else "failed" for one in outcomes
    )
    declined = sorted({one.id.rpartition(".")[0] for one in outcomes if one.declined})
    print(*failed, sep="\n")
    print(f"{len(outcomes)} cases: {dict(counts)}, declined: {', '.join(declined) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(1 if trio.run(main, sys.argv[1:]) else 0)
