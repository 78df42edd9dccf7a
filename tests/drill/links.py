"""One connection of a subscriber: texts in, and out where the way in allows it.

The bytes are made and read by other libraries than the server's own code: h11, h2 and `websockets`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import h2.connection
import h2.events
import h2.exceptions
import h11
import trio
from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from tests.eventsource import EventSource

Open = Callable[[str], Awaitable[trio.abc.Stream]]
"""Opens a connection for a protocol, by its name in a TLS handshake."""


_OPENING = 10.0  # seconds for the head of an answer, as long as an SDK waits for a connect reply
_FOR_GOOD = 3_500


class Ended(Exception):  # noqa: N818  # nothing is wrong: connections end
    """The connection is over, for whatever reason; the subscriber comes back."""


class SentAway(Exception):  # noqa: N818  # for the loop of a subscriber
    """The server said that the subscriber must not come back: it broke a promise."""


def end(code: int, reason: str) -> Exception:
    """What a code of the protocol means for the subscriber."""
    if _FOR_GOOD <= code < 4_000 or 4_500 <= code < 5_000:
        return SentAway(f"{code} {reason}")
    return Ended(f"{code} {reason}")


class Link(Protocol):
    """An open connection. It ends with its stream, which its caller closes."""

    async def send(self, text: str) -> None:
        """Send a message."""

    async def receive(self) -> str:
        """The next message.

        Raises:
            Ended: the connection is over.
            SentAway: for good.
        """


class Http:
    """Requests on one HTTP/1.1 connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    @property
    def over(self) -> bool:
        """Whether the last answer said that no request may follow it on this connection."""
        return self._http.our_state in (h11.MUST_CLOSE, h11.CLOSED)

    async def request(self, method: str, target: str, body: str = "", **headers: str) -> int:
        """Send a request; the status of its answer, whose body `chunks` gives."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        pairs = [("Host", "localhost"), *((k.replace("_", "-"), v) for k, v in headers.items())]
        if method == "POST":
            pairs.append(("Content-Length", str(len(body.encode()))))
        head = h11.Request(method=method, target=target, headers=pairs)
        parts = (head, h11.Data(data=body.encode()), h11.EndOfMessage())
        try:
            await self._stream.send_all(b"".join(self._http.send(one) or b"" for one in parts))
            with trio.fail_after(_OPENING):
                answer = await self._event()
        except (trio.BrokenResourceError, trio.TooSlowError, h11.RemoteProtocolError) as error:
            raise Ended(f"no answer: {error!r}") from None
        if not isinstance(answer, h11.Response):
            raise Ended(f"no answer: {answer!r}")
        return answer.status_code

    async def chunk(self) -> bytes:
        """More of the answer's body; empty at its end."""
        event = await self._event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def whole(self) -> bytes:
        """The body of the answer, at its end."""
        body = b""
        while chunk := await self.chunk():
            body += chunk
        return body

    async def _event(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(bytes(await self._stream.receive_some(65_536)))
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise Ended(f"cut: {error!r}") from None
        return event


class Http2:
    """One request on a connection of HTTP/2."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h2.connection.H2Connection()
        self._status = 0
        self._body = b""
        self._ended = False

    async def request(self, method: str, target: str, body: str = "", **headers: str) -> int:
        """Send the request; the status of its answer, whose body `chunk` gives."""
        self._http.initiate_connection()
        head = {":method": method, ":path": target, ":scheme": "https", ":authority": "localhost"}
        head |= {name.replace("_", "-").lower(): value for name, value in headers.items()}
        self._http.send_headers(1, list(head.items()), end_stream=not body)
        if body:
            self._http.send_data(1, body.encode(), end_stream=True)
        with trio.move_on_after(_OPENING):
            while not self._status:
                await self._exchange()
        if not self._status:
            raise Ended("no answer")
        return self._status

    async def chunk(self) -> bytes:
        """More of the answer's body; empty at its end."""
        while not self._body and not self._ended:
            await self._exchange()
        body, self._body = self._body, b""
        return body

    async def _exchange(self) -> None:
        try:
            await self._stream.send_all(self._http.data_to_send())
            received = bytes(await self._stream.receive_some(65_536))
            if not received:
                raise Ended("cut")
            for event in self._http.receive_data(received):
                self._take(event)
            await self._stream.send_all(self._http.data_to_send())
        except (trio.BrokenResourceError, h2.exceptions.ProtocolError) as error:
            raise Ended(f"cut: {error!r}") from None

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self._status = int(dict(event.headers)[b":status"])
            case h2.events.DataReceived():
                self._body += event.data
                self._http.acknowledge_received_data(event.flow_controlled_length, 1)
            case h2.events.StreamReset():
                raise Ended("reset")
            case h2.events.StreamEnded() | h2.events.ConnectionTerminated():
                self._ended = True


def http(stream: trio.abc.Stream) -> Http | Http2:
    """What the two ends agreed to speak, when they shook hands."""
    if isinstance(stream, trio.SSLStream) and stream.selected_alpn_protocol() == "h2":
        return Http2(stream)
    return Http(stream)


async def reuse(stream: trio.abc.Stream) -> None:
    """Have the connection used once: what comes next on it is served behind Hypercorn."""
    http = Http(stream)
    if await http.request("GET", "/health/live") != 200:
        raise Ended("not healthy")
    await http.whole()


class WebSocket:
    """A WebSocket; pings of its protocol are answered."""

    def __init__(self, stream: trio.abc.Stream, path: str) -> None:
        self._stream = stream
        self._protocol = ClientProtocol(parse_uri(f"ws://localhost{path}"))
        self.texts = list[str]()

    async def open(self) -> WebSocket:
        self._protocol.send_request(self._protocol.connect())
        with trio.move_on_after(_OPENING) as opening:
            while self._protocol.state is State.CONNECTING:
                await self._exchange()
        if opening.cancelled_caught or self._protocol.state is not State.OPEN:
            raise Ended(f"no handshake: {self._protocol.handshake_exc!r}")
        return self

    async def send(self, text: str) -> None:
        if self._protocol.state is not State.OPEN:
            raise Ended("it closes")
        self._protocol.send_text(text.encode())
        await self._flush()

    async def receive(self) -> str:
        while not self.texts:
            await self.more()
        return self.texts.pop(0)

    async def more(self) -> None:
        """Wait for more bytes; there need not be a message in them."""
        if self._protocol.state is not State.OPEN:
            said = self._protocol.close_rcvd
            raise end(1006, "") if said is None else end(said.code, said.reason)
        await self._exchange()

    async def _exchange(self) -> None:
        await self._flush()
        try:
            received = await self._stream.receive_some(65_536)
            if received:
                self._protocol.receive_data(received)
            else:
                self._protocol.receive_eof()
            for event in self._protocol.events_received():
                if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    self.texts.append(bytes(event.data).decode())
        except (trio.BrokenResourceError, WebSocketException) as error:
            raise Ended(f"cut: {error!r}") from None
        await self._flush()
        if not received and self._protocol.state is State.OPEN:
            raise Ended("cut")

    async def _flush(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                if data:
                    await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise Ended(f"cut: {error!r}") from None


class _Stream:
    """An endless answer, which takes nothing."""

    def __init__(self, http: Http | Http2) -> None:
        self._http = http

    async def send(self, text: str) -> None:
        raise NotImplementedError("commands of a stream go by other requests")

    async def _more(self) -> bytes:
        if chunk := await self._http.chunk():
            return chunk
        raise Ended("the end")


class Sse(_Stream):
    """A stream of server-sent events, each of them one text."""

    def __init__(self, http: Http | Http2, last_event_id: str = "") -> None:
        super().__init__(http)
        self.source = EventSource(last_event_id)

    async def more(self) -> None:
        """Wait for more of the stream; there need not be an event in it."""
        self.source.feed(await self._more())

    async def receive(self) -> str:
        while not self.source.events:
            await self.more()
        return self.source.events.pop(0).data


class Lines(_Stream):
    """A stream of lines, each of them one text."""

    def __init__(self, http: Http | Http2) -> None:
        super().__init__(http)
        self._received = b""

    async def receive(self) -> str:
        while b"\n" not in self._received:
            self._received += await self._more()
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()


class Emulated:
    """A stream, and a request for each message of the client's: what SDKs call emulation."""

    def __init__(self, inner: Link, open_stream: Open) -> None:
        self._inner = inner
        self._open_stream = open_stream
        self.session = self.node = ""

    async def receive(self) -> str:
        return await self._inner.receive()

    async def send(self, text: str) -> None:
        body = json.dumps({"session": self.session, "node": self.node, "data": text})
        async with await self._open_stream("http/1.1") as stream:
            status = await Http(stream).request("POST", "/emulation", body)
        if status != 204:
            raise Ended(f"/emulation answered {status}")
