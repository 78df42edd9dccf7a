"""A server of this process over real sockets, and a raw client of it: bytes out, bytes in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from quart import request

from repeater.config import load_settings
from repeater.serving.server import Server, open_server
from tests.certificates import Authority
from tests.deadlines import LOOP_ANSWERS

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
)

authority: Authority | None = None
"""Issues the certificate of every `running` server, for the tests whose way in is HTTP/2."""


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[Server]:
    """A development server on a free port, and the test within a deadline; nothing is left.

    It answers to any `Host`.
    """
    secure = {} if authority is None else authority.settings
    chosen = {"dev": True, "port": 0, "allowed_hosts": "*", **secure, **settings}
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(load_settings(**chosen)) as server:
            yield server
        assert not server.node.registry.clients
        assert server.acceptor.statistics().open == 0
        assert len(server.node.emulation) == 0
        assert len(server.node.position_sets) == 0


@asynccontextmanager
async def telling(**settings: object) -> AsyncIterator[Server]:
    """A server with a page that says who asks."""
    async with running(**settings) as server:
        app = server.acceptor._handover._app.app  # type: ignore[attr-defined]

        @app.get("/who")
        async def who() -> str:
            return f"{request.remote_addr} {request.scheme}"

        yield server


class Peer:
    """A raw client: bytes out, bytes in."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    async def until(self, mark: bytes) -> bytes:
        """Everything up to and including `mark`."""
        while mark not in self.received:
            chunk = await self.stream.receive_some()
            assert chunk, f"the end came before {mark!r}: {self.received!r}"
            self.received += chunk
        before, _, self.received = self.received.partition(mark)
        return before + mark

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        try:
            while chunk := await self.stream.receive_some():
                self.received += chunk
        except trio.BrokenResourceError:
            pass
        return self.received

    async def call(self, method: str, target: str, body: bytes = b"", head: str = "") -> bytes:
        """One HTTP request; head and body of the answer."""
        text = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n"
        text += f"Content-Length: {len(body)}\r\n{head}\r\n"
        with contextlib.suppress(trio.BrokenResourceError):  # answered before it was all sent
            await self.stream.send_all(text.encode() + body)
        answer = await self.until(b"\r\n\r\n")
        size = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(self.received) < size:
            self.received += await self.stream.receive_some()
        body, self.received = self.received[:size], self.received[size:]
        return answer + body


@asynccontextmanager
async def connected(server: Server, *protocols: str) -> AsyncIterator[trio.SocketStream]:
    """A connection, behind TLS where the server has a certificate."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        if authority is None or server.certificate is None:
            yield stream
            return
        secure = trio.SSLStream(
            stream,
            authority.client(*protocols),
            server_hostname="localhost",
            https_compatible=True,
        )
        await secure.do_handshake()
        yield secure  # type: ignore[misc]  # a stream is a stream


@asynccontextmanager
async def peer(
    server: Server, path: str = "", more: str = "", protocols: Sequence[str] = ()
) -> AsyncIterator[Peer]:
    """A raw connection, upgraded to a WebSocket where a path is given."""
    async with connected(server, *protocols) as stream:
        client = Peer(stream)
        if path:
            await stream.send_all(UPGRADE.format(path=path, more=more).encode())
            assert b" 101 " in await client.until(b"\r\n\r\n")
        yield client


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """A masked client frame; the mask is zero, which is as good as any."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


def close_code(received: bytes) -> int:
    """The code of the close frame in these bytes; its reason must not be empty."""
    body = received[received.rindex(b"\x88") + 2 :]
    assert len(body) > 2, f"no reason: {received!r}"
    return int.from_bytes(body[:2])
