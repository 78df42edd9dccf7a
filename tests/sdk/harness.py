"""SDK clients as objects of a Trio test, and servers for them to talk to.

Each SDK runs in a driver: one process a session, spoken to in JSON lines (clients.py). A `Peer` is
one client of one driver: its methods are the SDK's, and `heard` waits for what it was told. Keys
tell the clients of one driver apart, so a test never hears another test's events.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import trio
from pydantic import Field

from repeater.clients.client import Client
from repeater.config import Settings
from repeater.options import NodeOptions
from repeater.publication import Publication
from repeater.serving.server import Server, open_server
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.sdk.clients import Program
from tests.working import Workers, open_workers

Value = dict[str, Any]

workers = 1
"""How many workers each `running` server has; a fixture sets it for every test."""


class Reached(Protocol):
    """A server, or whoever leads to one."""

    @property
    def port(self) -> int: ...


class CallError(Exception):
    """The SDK refused a call; `code` is the server's, or the SDK's own below 100."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


class Driver:
    """One SDK's process. Made by a session fixture, which ends it by `stop`."""

    def __init__(self, name: str, program: Program, errors: Path) -> None:
        self.name = name
        self._program = program
        self._built = program.build is None
        self._errors = errors
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._ids = itertools.count(1)
        self._answers: dict[int, Value] = {}
        self._moved = trio.Event()
        self.peers: dict[str, Peer] = {}

    def start(self) -> None:
        """Build and start the process, unless it runs, and wait for its first line.

        Blocks meanwhile.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        self._received, self._answers = b"", {}
        with self._errors.open("ab") as errors:
            self._build(errors)
            self._process = subprocess.Popen(
                self._program.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        ready = _pipe(self._process.stdout).readline()
        assert ready, f"{self.name} does not start: {self.errors()}"

    def _build(self, errors: IO[bytes]) -> None:
        if self._built or self._program.build is None:
            return
        done = subprocess.run(
            self._program.build,
            stdout=errors,
            stderr=errors,
            env={**os.environ, **self._program.environment},
            timeout=PROCESS_STARTS,
        )
        assert done.returncode == 0, f"{self.name} can't be built: {self.errors()}"
        self._built = True

    def stop(self) -> None:
        """End the process: by the end of its stdin, or else hard."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with process:
            _pipe(process.stdin).close()
            try:
                process.wait(LOOP_ANSWERS)
            except subprocess.TimeoutExpired:
                process.kill()

    async def read(self) -> None:
        """Hand out what the process writes, until cancelled. Runs beside every test."""
        assert self._process is not None
        output = _pipe(self._process.stdout).fileno()
        while True:
            await trio.lowlevel.wait_readable(output)
            chunk = os.read(output, 65_536)
            assert chunk, f"{self.name} has ended: {self.errors()}"
            *lines, self._received = (self._received + chunk).split(b"\n")
            for line in lines:
                self._hand_out(json.loads(line))

    def _hand_out(self, value: Value) -> None:
        if "id" in value and "event" not in value:
            self._answers[value["id"]] = value
        elif (peer := self.peers.get(value["key"])) is not None:
            peer.hear(value)
        self._moved.set()

    async def moved(self) -> None:
        """Wait for the next lines. The caller sets the deadline."""
        self._moved = trio.Event()
        await self._moved.wait()

    async def call(self, call: str, **arguments: Any) -> Any:
        """One command; what the SDK returned.

        Raises:
            CallError: the SDK raised.
        """
        assert self._process is not None
        number = next(self._ids)
        line = json.dumps({"call": call, "id": number, **arguments})
        pipe = _pipe(self._process.stdin)
        pipe.write(line.encode() + b"\n")  # Short, and the process reads at once.
        pipe.flush()
        with trio.move_on_after(LOOP_ANSWERS):
            while number not in self._answers:
                await self.moved()
        answer = self._answers.pop(number, None)
        assert answer is not None, f"{self.name} does not answer {line}: {self.errors()}"
        if "error" in answer:
            raise CallError(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    def errors(self) -> str:
        """The end of what the process wrote to stderr."""
        return self._errors.read_text(errors="replace")[-2_000:]


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


class Peer:
    """One client of an SDK. Lives inside `SDK.client`."""

    def __init__(self, driver: Driver, key: str) -> None:
        self._driver = driver
        self._key = key
        self._heard: list[Value] = []
        self._waiting: list[Value] = []  # heard, and not yet asked for

    def hear(self, event: Value) -> None:
        """The driver's: one more event."""
        self._heard.append(event)
        self._waiting.append(event)

    async def call(self, call: str, **arguments: Any) -> Any:
        """Any command of the drivers; see there."""
        return await self._driver.call(call, key=self._key, **arguments)

    async def subscribe(self, channel: str, **options: Any) -> Value:
        """Subscribe, and wait until the SDK says so; what it says."""
        await self.call("subscribe", channel=channel, options=options)
        return await self.heard("subscribed", channel)

    async def heard(self, event: str, channel: str | None = None) -> Value:
        """The next event of this kind, in that channel if one is given; waits for it.

        Events of other kinds stay where they are, for later calls.
        """
        with trio.move_on_after(LOOP_ANSWERS):
            while not (matching := self.waiting(event, channel)):
                await self._driver.moved()
            self._waiting.remove(matching[0])
            return matching[0]
        log = "\n  ".join(map(json.dumps, self._heard))
        raise AssertionError(
            f"{self._driver.name} hears no {event} of {channel}, only\n  {log}\n"
            f"{self._driver.errors()}"
        )

    def waiting(self, event: str, channel: str | None = None) -> list[Value]:
        """The events of this kind that nobody has asked for yet."""
        return [
            one
            for one in self._waiting
            if one["event"] == event and channel in (None, one.get("channel"))
        ]

    async def data(self, channel: str, count: int) -> list[Any]:
        """The data of the next publications of a channel."""
        return [(await self.heard("publication", channel))["data"] for _ in range(count)]


class SDK:
    """One SDK in one format: makes clients of it. Given to a test by the fixture `sdk`."""

    _keys = itertools.count(1)

    def __init__(self, driver: Driver, *, protobuf: bool) -> None:
        self.driver = driver
        self.protobuf = protobuf

    @asynccontextmanager
    async def client(
        self, server: Reached, *, connect: bool = True, **options: Any
    ) -> AsyncIterator[Peer]:
        """A client, connected unless told otherwise; closed with the block.

        `options` are the SDK's (`token`, `data`...), and `tokens`, a list that its `get_token`
        callback gives one by one, each time with an event `token`.
        """
        peer = Peer(self.driver, f"{self.driver.name}-{next(self._keys)}")
        self.driver.peers[peer._key] = peer
        try:
            url = url_of(server)
            await peer.call("open", url=url, protobuf=self.protobuf, options=options)
            if connect:
                await peer.call("connect")
                await peer.heard("connected")
            yield peer
        finally:
            with trio.CancelScope(shield=True):
                await peer.call("close")
            del self.driver.peers[peer._key]


def url_of(server: Reached) -> str:
    return f"ws://127.0.0.1:{server.port}/connection/websocket"


class ServerSettings(Settings):
    """A server's settings, and options of the node that have no setting of their own."""

    changes: dict[str, Any] = Field(default_factory=dict)

    def node_options(self) -> NodeOptions:
        return msgspec.structs.replace(super().node_options(), **self.changes)


@asynccontextmanager
async def running(
    *, port: int = 0, settings: Value | None = None, **changes: Any
) -> AsyncIterator[Server | Workers]:
    """A development server; `changes` are fields of `NodeOptions`."""
    chosen = {"dev": True, "host": "127.0.0.1", **(settings or {})}
    made = ServerSettings(port=port, changes=changes, **chosen)
    async with open_server(made) if workers == 1 else open_workers(made, workers) as server:
        yield server


async def publish(server: Server | Workers, channel: str, *data: Any, **fields: Any) -> None:
    """Publish as a back end does, one publication for each `data`."""
    for one in data:
        text = json.dumps(one).encode()
        await server.node.publish(Publication(channel, text, **fields))


def only_client(server: Server | Workers) -> Client:
    """The server's side of the one client that is connected."""
    nodes = server.nodes if isinstance(server, Workers) else [server.node]
    (client,) = (client for node in nodes for client in node.registry.clients)
    return client


async def ping(client: Client) -> None:
    """Give the client its turns now: a ping, whose answer is waited for, and the judgement."""
    for _ in range(2):
        client._ping_at = 0
        assert client.heartbeat() is not None
        with trio.fail_after(LOOP_ANSWERS):
            while not client._heard:  # noqa: ASYNC110  # nothing in the product tells a test
                await trio.sleep(0.01)


def sign(claims: Value, secret: str) -> str:
    """A JWT (HS256), made here and not by the code under test."""

    def encode(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    head = encode(b'{"alg":"HS256","typ":"JWT"}') + b"." + encode(json.dumps(claims).encode())
    signature = hmac.digest(secret.encode(), head, hashlib.sha256)
    return (head + b"." + encode(signature)).decode()
