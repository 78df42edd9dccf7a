"""The server under attack in a process of its own, and everything that must hold meanwhile."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio
import trustme

from tests.deadlines import LOOP_ANSWERS
from tests.fuzz.protobuf import field, varint
from tests.fuzz.ways import KEY
from tests.processes import ServerProcess, serving
from tests.serving import UPGRADE, frame
from tests.signing import SECRET, sign

SETTINGS = {
    "REPEATER_ALLOW_ANONYMOUS": "true",
    "REPEATER_API_KEY": KEY,
    "REPEATER_LOG_LEVEL": "warning",
    "REPEATER_COMPRESSION": "true",
    "REPEATER_COMPRESSION_MIN_SIZE": "1",
    "REPEATER_TOKEN__HMAC_SECRET_KEY": SECRET,
    "REPEATER_CHANNEL__PRESENCE": "true",
    "REPEATER_CHANNEL__JOIN_LEAVE": "true",
    "REPEATER_CHANNEL__ALLOW_TAGS_FILTER": "true",
    "REPEATER_CHANNEL__ALLOW_RECOVERY": "true",
    "REPEATER_CHANNEL__ALLOWED_DELTA_TYPES": '["fossil"]',
    **{
        f"REPEATER_CHANNEL__ALLOW_{what}_FOR_{who}": "true"
        for what in ("SUBSCRIBE", "PUBLISH", "PRESENCE", "HISTORY")
        for who in ("CLIENT", "ANONYMOUS")
    },
}
# The pings of a plain WebSocket and of Centrifugo's protocol in both formats, and their answers.
PONGS = {
    b"\x89\x00": frame(b"", 10),
    b"\x81\x02{}": frame(b"{}"),
    b"\x82\x01\x00": frame(b"\x00", 2),
}
GROWTH = 200 << 20  # bytes of resident memory that an attack may cost while it lasts
HONEST = "honest"  # the channel of those who must notice nothing


def _delimited(command: bytes) -> bytes:
    return varint(len(command)) + command


class BrokenPromise(Exception):  # noqa: N818  # what the program is made to find
    """Something that must hold did not."""


class Subscriber:
    """An honest subscriber, which must get each event once and in order."""

    def __init__(self, name: str, stream: trio.abc.Stream) -> None:
        self.name = name
        self._stream = stream
        self._received = b""
        self.seen = 0

    async def listen(self) -> None:
        """Read until cancelled.

        Raises:
            BrokenPromise: an event is missing, comes twice or out of order, or the end came.
        """
        while True:
            try:
                chunk = await self._stream.receive_some(65_536)
            except trio.BrokenResourceError:
                chunk = b""
            if not chunk:
                raise BrokenPromise(f"{self.name} was ended after {self.seen} events")
            for ping, pong in PONGS.items():
                if ping in chunk:
                    await self._stream.send_all(pong)
            self._received += chunk
            for found in re.finditer(rb'\{"n":(\d+)\}', self._received):
                if int(found[1]) != self.seen + 1:
                    raise BrokenPromise(f"{self.name} got {found[1]!r} behind {self.seen}")
                self.seen += 1
            self._received = self._received[max(self._received.rfind(b"}") + 1, 0) :][-100:]


class Target:
    """A running server with its honest subscribers. Lives inside `attacked`."""

    def __init__(self, server: ServerProcess, port: int, tls: ssl.SSLContext | None) -> None:
        self._server = server
        self._port = port
        self._tls = tls
        self._process = psutil.Process(server.process.pid)
        self._published = 0
        self._memory = 0
        self.subscribers = list[Subscriber]()

    async def open(self, *protocols: str) -> trio.abc.Stream:
        """A new connection."""
        stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        stream.setsockopt(6, 1, 1)  # TCP_NODELAY: what is cut into pieces arrives in pieces
        if self._tls is None:
            return stream
        self._tls.set_alpn_protocols(protocols or ["http/1.1"])
        secure = trio.SSLStream(
            stream, self._tls, server_hostname="localhost", https_compatible=True
        )
        await secure.do_handshake()
        return secure

    async def subscribe(self, nursery: trio.Nursery) -> None:
        """Have an honest subscriber by each way in."""
        # A user of their own: the fuzzed back end may disconnect and block all others.
        token = sign({"sub": "honest"})
        connect = f'{{"id":1,"connect":{{"token":"{token}"}}}}'
        subscribe = f'{connect}\n{{"id":2,"subscribe":{{"channel":"{HONEST}"}}}}'
        query = f"channel={HONEST}&token={token}"
        protobuf = _delimited(field(1, 1) + field(4, field(1, token.encode())))
        protobuf += _delimited(field(1, 2) + field(5, field(1, HONEST.encode())))
        greetings = {
            "plain": UPGRADE.format(path=f"/ws?{query}", more="").encode(),
            "envelopes": UPGRADE.format(path=f"/ws?{query}&since=start", more="").encode(),
            "events": f"GET /events?{query} HTTP/1.1\r\nHost: t\r\n\r\n".encode(),
            "centrifugo": UPGRADE.format(path="/connection/websocket", more="").encode()
            + frame(subscribe.encode()),
            "protobuf": UPGRADE.format(
                path="/connection/websocket?format=protobuf", more=""
            ).encode()
            + frame(protobuf, 2),
        }
        for name, greeting in greetings.items():
            stream = await self.open()
            await stream.send_all(greeting)
            await stream.receive_some(65_536)
            one = Subscriber(name, stream)
            self.subscribers.append(one)
            nursery.start_soon(one.listen)
        await trio.sleep(0.2)
        self._memory = self._process.memory_info().rss

    async def check(self) -> None:
        """Look whether all that must hold still does; takes some milliseconds.

        Raises:
            BrokenPromise: it does not.
        """
        if self._server.process.returncode is not None or not self._process.is_running():
            raise BrokenPromise(f"the server has ended: {self._server.log[-3_000:].decode()}")
        if b"Traceback" in self._server.log:
            raise BrokenPromise(f"a traceback: {self._server.log[-3_000:].decode()}")
        with trio.move_on_after(LOOP_ANSWERS) as scope:
            await self._publish()
            while any(one.seen < self._published for one in self.subscribers):  # noqa: ASYNC110
                await trio.sleep(0.005)
        if scope.cancelled_caught:
            seen = {one.name: one.seen for one in self.subscribers}
            raise BrokenPromise(f"{self._published} events were published, and got {seen}")
        grown = self._process.memory_info().rss - self._memory
        if grown > GROWTH:
            raise BrokenPromise(f"the server has grown by {grown >> 20} MiB")

    async def _publish(self) -> None:
        self._published += 1
        body = b'{"channel":"%s","data":{"n":%d}}' % (HONEST.encode(), self._published)
        head = f"POST /api/publish HTTP/1.1\r\nHost: t\r\nX-API-Key: {KEY}\r\nConnection: close\r\n"
        stream = await self.open()
        async with stream:
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await stream.receive_some(65_536)
        if b'"result"' not in answer:
            raise BrokenPromise(f"a back end was refused: {answer!r}")

    async def settle(self) -> None:
        """Wait until nothing of the attackers is left, after the longest of their deadlines.

        Raises:
            BrokenPromise: a connection stays.
        """
        with trio.move_on_after(45):
            while self._open() > len(self.subscribers):  # noqa: ASYNC110  # the kernel tells
                await trio.sleep(0.5)
        if (left := self._open()) > len(self.subscribers):
            raise BrokenPromise(f"{left} connections for {len(self.subscribers)} subscribers")

    def _open(self) -> int:
        connections = self._process.net_connections("tcp")
        return sum(one.status != psutil.CONN_LISTEN for one in connections)


@asynccontextmanager
async def attacked(folder: Path, *, secure: bool) -> AsyncIterator[Target]:
    """Run a server, and have it checked at the end for what is left."""
    settings, context = dict(SETTINGS), None
    if secure:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(folder / "key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
        settings |= {
            "REPEATER_TLS_CERT": str(folder / "cert.pem"),
            "REPEATER_TLS_KEY": str(folder / "key.pem"),
        }
        context = ssl.create_default_context()
        authority.configure_trust(context)
    async with serving(variables=settings) as server, trio.open_nursery() as nursery:
        target = Target(server, await server.port(), context)
        await target.subscribe(nursery)
        yield target
        await target.settle()
        await target.check()
        nursery.cancel_scope.cancel()
