"""A WebSocket on every way in: natively, behind the ASGI server, inside HTTP/2."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio

from repeater.serving.server import Server
from tests.serving import UPGRADE, connected, frame, peer

WAYS = ("native", "asgi", "h2")
every_way = pytest.mark.parametrize("way", WAYS)


class WebSocket:
    """A client's end, by either version of HTTP. Its frames are made and read by hand."""

    def __init__(self, stream: trio.SocketStream, http: h2.connection.H2Connection | None) -> None:
        self.stream = stream
        self._http = http
        self.head = b""
        self.received = b""
        self.ended = False

    async def send(self, data: bytes) -> None:
        if self._http is not None:
            self._http.send_data(1, data)
            data = self._http.data_to_send()
        await self.stream.send_all(data)

    async def read(self) -> None:
        """What comes next; `ended` is true behind the last byte."""
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            data = b""
        self.ended |= not data
        if self._http is None:
            self.received += data
            return
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.received += event.data
                self._http.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.ResponseReceived):
                self.head = b"".join(b"%s: %s\r\n" % pair for pair in event.headers)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self.ended = True
        if not self.ended:
            await self.stream.send_all(self._http.data_to_send())

    async def until(self, mark: bytes) -> bytes:
        """Everything up to and including `mark`."""
        while mark not in self.received:
            assert not self.ended, f"the end came before {mark!r}: {self.received!r}"
            await self.read()
        before, _, self.received = self.received.partition(mark)
        return before + mark

    async def rest(self) -> bytes:
        """Everything up to the end, however it ends."""
        while not self.ended:
            await self.read()
        return self.received

    async def answer_pings(self) -> None:
        """Answer every ping until cancelled."""
        while True:
            await self.until(b"\x89\x00")
            await self.send(frame(b"", 10))


@asynccontextmanager
async def websocket(
    server: Server, way: str, path: str, more: str = ""
) -> AsyncIterator[WebSocket]:
    """A connection that was upgraded: its first request, a later one, or a stream of HTTP/2."""
    if way == "h2":
        async with connected(server, "h2") as stream:
            http = h2.connection.H2Connection(
                h2.config.H2Configuration(validate_outbound_headers=False)
            )
            client = WebSocket(stream, http)
            http.initiate_connection()
            head = {":method": "CONNECT", ":protocol": "websocket", ":path": path}
            head |= {":scheme": "https", ":authority": "t", "sec-websocket-version": "13"}
            lines = dict(line.split(": ", 1) for line in more.lower().split("\r\n") if line)
            http.send_headers(1, list((head | lines).items()))
            await stream.send_all(http.data_to_send())
            while not client.head:
                await client.read()
            assert b":status: 200" in client.head
            yield client
        return
    async with peer(server) as raw:
        if way == "asgi":
            assert b" 200 " in await raw.call("GET", "/health")
        await raw.stream.send_all(UPGRADE.format(path=path, more=more).encode())
        client = WebSocket(raw.stream, None)
        client.head = await raw.until(b"\r\n\r\n")
        assert b" 101 " in client.head
        client.received = raw.received
        yield client
