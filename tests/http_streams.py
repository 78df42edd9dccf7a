"""The streams over HTTP: how each way in is opened, and a client that knows how a body ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import h11
import trio

from repeater.serving.server import Server

CONNECT = '{"connect":{},"id":1}'
OPENINGS = {
    "/events": ("GET", "?channel=news", ""),
    "/connection/sse": ("GET", f"?cf_connect={quote(CONNECT)}", ""),
    "/connection/http_stream": ("POST", "", CONNECT),
    "/connection/uni_sse": ("GET", "", ""),
    "/connection/uni_http_stream": ("POST", "", '{"subs":{"news":{}}}'),
}
"""How each way in is opened: method, query, body."""


class Peer:
    """One HTTP connection, by h11: it knows how a body ends, by length, chunks or hang-up."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)
        self.body = b""

    async def request(
        self, method: str, target: str, body: str | bytes = "", **headers: str
    ) -> h11.Response:
        """Send one request; the head of its answer."""
        content = body.encode() if isinstance(body, str) else body
        pairs = [("Host", "t"), *((n.replace("_", "-"), v) for n, v in headers.items())]
        if content or method == "POST":
            pairs.append(("Content-Length", str(len(content))))
        request = h11.Request(method=method, target=target, headers=pairs)
        parts = (request, h11.Data(data=content), h11.EndOfMessage())
        sent = b"".join(self.http.send(one) or b"" for one in parts)
        await self.stream.send_all(sent)
        event = await self.event()
        assert isinstance(event, h11.Response)
        return event

    async def call(
        self, method: str, target: str, body: str | bytes = "", **headers: str
    ) -> tuple[int, bytes]:
        """One ordinary request: status and body; the connection can be used again."""
        response = await self.request(method, target, body, **headers)
        content = await self.rest()
        if self.http.our_state is h11.DONE:
            self.http.start_next_cycle()
        return response.status_code, content

    async def event(self) -> Any:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.stream.receive_some())
        return event

    async def until(self, mark: bytes) -> bytes:
        """The body up to and including `mark`."""
        while mark not in self.body:
            event = await self.event()
            assert isinstance(event, h11.Data), f"the end came before {mark!r}: {self.body!r}"
            self.body += event.data
        before, _, self.body = self.body.partition(mark)
        return before + mark

    async def rest(self) -> bytes:
        """The body up to its end."""
        while isinstance(event := await self.event(), h11.Data):
            self.body += event.data
        body, self.body = self.body, b""
        return body


@asynccontextmanager
async def peer(server: Server, end: str = "native") -> AsyncIterator[Peer]:
    """A connection; for `asgi` one that was used already, which the acceptor does not see again."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        client = Peer(stream)
        if end == "asgi":
            assert (await client.call("GET", "/health"))[0] == 200
        yield client
