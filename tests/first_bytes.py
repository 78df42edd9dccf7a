"""What a server sends first on each way in, and what a client makes of it, however it is cut.

A recording holds the bytes as they came from a real server, from the head of the answer on. Reading
it again takes no socket: the parts of a cut arrive exactly as they are given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Protocol

import h2.config
import h2.connection
import h2.events
import h11
import msgspec
import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from repeater.publication import Publication
from repeater.serving.server import Server
from tests.eventsource import EventSource
from tests.http_streams import OPENINGS
from tests.protobuf_peer import command, whole
from tests.serving import UPGRADE, frame, peer

ENDS = ("native", "asgi", "h2")
"""The first request of a connection, a later one that the ASGI server gets, and one of HTTP/2."""

_PROTOBUF = "?format=protobuf"
_CONNECT = command(id=1, connect={})

STREAMS = {
    **{path: (method, query, body.encode()) for path, (method, query, body) in OPENINGS.items()},
    f"/connection/http_stream{_PROTOBUF}": ("POST", "", _CONNECT),
}
"""How each stream is opened: method, more of the query, body."""

WEBSOCKETS = {
    "/ws": ("?channel=news", b""),
    "/connection/websocket": ("", b'{"connect":{},"id":1}'),
    f"/connection/websocket{_PROTOBUF}": ("", _CONNECT),
    "/connection/uni_websocket": ("?cf_connect=%7B%7D", b""),
}
"""How each WebSocket is opened: more of the query, first message."""

WAYS = (*STREAMS, *WEBSOCKETS)

_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


class Recording(msgspec.Struct, frozen=True):
    """The bytes of one answer."""

    path: str
    end: str
    data: bytes

    def read(self, parts: Sequence[bytes]) -> list[str]:
        """The messages that a client makes of these parts, which follow each other."""
        carrier, reader = _carrier(self.path, self.end), _reader(self.path, self.end)
        for part in parts:
            reader.feed(carrier.feed(part))
        return reader.messages

    def body(self) -> bytes:
        """A stream's own bytes, without what carries them."""
        return _carrier(self.path, self.end).feed(self.data)

    def cuts(self) -> Iterator[list[bytes]]:
        """The whole in one part, in two at each boundary, and byte by byte."""
        yield [self.data]
        for place in range(1, len(self.data)):
            yield [self.data[:place], self.data[place:]]
        yield [self.data[place : place + 1] for place in range(len(self.data))]


class _Reader(Protocol):
    @property
    def messages(self) -> list[str]: ...

    def feed(self, data: bytes) -> None: ...


class _Carrier:
    """What carries a body: gives out the part of it that is in the bytes of a connection."""

    request = b""
    due = b""
    """What the client has to say next, after the head of the answer."""

    def feed(self, data: bytes) -> bytes:
        raise NotImplementedError


class _HTTP1(_Carrier):
    def __init__(self, path: str) -> None:
        method, query, body = STREAMS[path]
        self._http = h11.Connection(h11.CLIENT)
        head = [("Host", "t"), ("Content-Length", str(len(body))), ("Content-Type", _type(path))]
        parts = (
            h11.Request(method=method, target=path + query, headers=head),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self.request = b"".join(self._http.send(part) or b"" for part in parts)

    def feed(self, data: bytes) -> bytes:
        body = b""
        if not data:
            return body  # to h11 that would be the end of the connection
        self._http.receive_data(data)
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                assert event.status_code == 200
            elif isinstance(event, h11.Data):
                body += event.data
        return body


class _HTTP2(_Carrier):
    def __init__(self, path: str) -> None:
        # It does not know `:protocol`.
        configuration = h2.config.H2Configuration(validate_outbound_headers=False)
        self._http = h2.connection.H2Connection(configuration)
        self._http.initiate_connection()
        self._message = b""
        head = {":path": path, ":scheme": "https", ":authority": "t"}
        if path in STREAMS:
            method, query, body = STREAMS[path]
            head |= {":method": method, ":path": path + query, "content-type": _type(path)}
            self._http.send_headers(1, list(head.items()))
            self._http.send_data(1, body, end_stream=True)
        else:
            query, message = WEBSOCKETS[path]
            self._message = _framed(path, message)
            head |= {":method": "CONNECT", ":protocol": "websocket", ":path": path + query}
            head |= {"sec-websocket-version": "13"}
            self._http.send_headers(1, list(head.items()))
        self.request = self._http.data_to_send()

    def feed(self, data: bytes) -> bytes:
        body = b""
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                assert dict(event.headers)[b":status"] == b"200"
                if self._message:
                    self._http.send_data(1, self._message)
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
        self.due = self._http.data_to_send()
        return body


class _Wire(_Carrier):
    """A WebSocket's own bytes, with its head."""

    def __init__(self, path: str) -> None:
        query, message = WEBSOCKETS[path]
        self._message = _framed(path, message)
        self.request = UPGRADE.format(path=path + query, more="").encode()

    def feed(self, data: bytes) -> bytes:
        if self._message and data.endswith(b"\r\n\r\n"):
            self.due = self._message
        return data


class _Events:
    """Of `/events` and the SDKs' streams alike."""

    def __init__(self) -> None:
        self._source = EventSource()

    @property
    def messages(self) -> list[str]:
        return self._source.data()

    def feed(self, data: bytes) -> None:
        self._source.feed(data)


class _Lines:
    def __init__(self) -> None:
        self._text = b""

    @property
    def messages(self) -> list[str]:
        return self._text.decode().split("\n")[:-1]

    def feed(self, data: bytes) -> None:
        self._text += data


class _Messages:
    """Of a Protobuf client, told as JSON."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._rest = b""

    def feed(self, data: bytes) -> None:
        replies, self._rest = whole(self._rest + data)
        self.messages += map(json.dumps, replies)


class _Frames:
    def __init__(self, end: str) -> None:
        self.messages: list[str] = []
        self._protocol = ClientProtocol(parse_uri("ws://localhost/"))
        self._protocol.key = _KEY
        self._protocol.send_request(self._protocol.connect())
        if end == "h2":
            self.feed(_UPGRADED)

    def feed(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        assert self._protocol.handshake_exc is None
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self.messages.append(bytes(event.data).decode())
            elif isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                replies, rest = whole(bytes(event.data))
                assert not rest
                self.messages += map(json.dumps, replies)


def _carrier(path: str, end: str) -> _Carrier:
    if end == "h2":
        return _HTTP2(path)
    return _HTTP1(path) if path in STREAMS else _Wire(path)


def _reader(path: str, end: str) -> _Reader:
    if path in WEBSOCKETS:
        return _Frames(end)
    if path.endswith(_PROTOBUF):
        return _Messages()
    return _Lines() if path.endswith("http_stream") else _Events()


def _type(path: str) -> str:
    return "application/octet-stream" if path.endswith(_PROTOBUF) else "application/json"


def _framed(path: str, message: bytes) -> bytes:
    """A client's message as a frame, or nothing."""
    if not message:
        return b""
    return frame(message, Opcode.BINARY if path.endswith(_PROTOBUF) else Opcode.TEXT)


async def record(server: Server, path: str, end: str) -> Recording:
    """The server's first bytes on this way, up to its first message: a connect, or an event."""
    carrier, data = _carrier(path, end), b""
    async with peer(server, protocols=["h2"] if end == "h2" else ()) as client:
        if end == "asgi":
            assert b" 200 " in await client.call("GET", "/health")
        await client.stream.send_all(carrier.request)
        async with trio.open_nursery() as nursery:
            if path in ("/ws", "/events"):
                nursery.start_soon(_publish_to_the_subscriber, server)
            while not Recording(path, end, data).read([data]):
                chunk = await client.stream.receive_some()
                assert chunk, f"the end came after {data!r}"
                data += chunk
                carrier.feed(chunk)
                await client.stream.send_all(carrier.due)
                carrier.due = b""
            nursery.cancel_scope.cancel()
    return Recording(path, end, data)


async def _publish_to_the_subscriber(server: Server) -> None:
    """At once when the channel is subscribed, so that nothing is between head and event.

    A subscription begins at the stream's top, which is read behind its place in the hub. What is
    published in between is before it, and another event is needed.
    """
    while not server.node.statistics().repeater.deliveries:
        if server.node.hub.channels:
            await server.node.publish(Publication("news", json.dumps({"n": 1}).encode()))
            await trio.sleep(0.05)
        await trio.lowlevel.checkpoint()
