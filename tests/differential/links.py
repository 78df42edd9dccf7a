"""One connection to either server: messages out, and what comes in, as dictionaries.

The bytes are made and read by `websockets`, h11 and the official classes of `centrifuge-python`,
never by Repeater's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

import h11
import trio
from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from tests.differential.codecs import Codec

Message = dict[str, Any]
_PATIENCE: Final = 10.0  # seconds for an answer of a server on this machine


class Link:
    """A connection of one client. `receive` gives what came; a `closed` message is the last."""

    node = session = ""  # for commands of emulation
    bidirectional = True

    def __init__(self, codec: Codec, port: int) -> None:
        self.codec = codec
        self.port = port

    async def open(self, way: str, connect: Message | None) -> None:
        """Open it; ways other than WebSockets begin with the `connect` command."""
        raise NotImplementedError

    async def send(self, message: bytes) -> int:
        """Send one message, with some commands; the HTTP status, or 0 without any."""
        raise NotImplementedError

    async def receive(self) -> Sequence[Message]:
        """What came, once something has; empty at the end, which was told before."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Cut the connection."""
        raise NotImplementedError


class WebSocket(Link):
    """A WebSocket, bidirectional or unidirectional."""

    _stream: trio.SocketStream
    _protocol: ClientProtocol
    _told = False

    def __init__(self, codec: Codec, port: int) -> None:
        super().__init__(codec, port)
        self._sending = trio.Lock()

    async def open(self, way: str, connect: Message | None) -> None:
        self.bidirectional = way == "websocket"
        uri = parse_uri(f"ws://127.0.0.1:{self.port}/connection/{way}")
        names = [Subprotocol("centrifuge-protobuf")] if self.codec.binary else None
        self._protocol = ClientProtocol(uri, subprotocols=names, max_size=2**22)
        self._stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self._protocol.send_request(self._protocol.connect())
        with trio.fail_after(_PATIENCE):
            while self._protocol.state is State.CONNECTING:
                await self._exchange()
        if connect is not None:
            await self.send(self.codec.bare(connect))

    async def send(self, message: bytes) -> int:
        if self._protocol.state is State.OPEN:
            if self.codec.binary:
                self._protocol.send_binary(message)
            else:
                self._protocol.send_text(message)
            await self._flush()
        return 0

    async def receive(self) -> Sequence[Message]:
        messages = list[Message]()
        while not messages and not self._told:
            for frame in await self._exchange():
                messages += self.codec.messages(bytes(frame.data))
            if self._protocol.state is not State.OPEN:
                close = self._protocol.close_rcvd
                closed = [1006, ""] if close is None else [close.code, close.reason]
                self._told = True
                messages.append({"closed": closed})
        return messages

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def _exchange(self) -> Sequence[Frame]:
        await self._flush()
        try:
            received = await self._stream.receive_some(65_536)
            if received:
                self._protocol.receive_data(received)
            else:
                self._protocol.receive_eof()
        except (trio.BrokenResourceError, WebSocketException):
            self._protocol.receive_eof()
        events = self._protocol.events_received()
        await self._flush()
        kinds = (Opcode.TEXT, Opcode.BINARY)
        return [one for one in events if isinstance(one, Frame) and one.opcode in kinds]

    async def _flush(self) -> None:
        async with self._sending:
            if data := b"".join(self._protocol.data_to_send()):
                with suppress(trio.BrokenResourceError):  # the next `_exchange` finds the end
                    await self._stream.send_all(data)


class Stream(Link):
    """An endless answer, and a request for each message of the client's: emulation."""

    _answer: Answer

    async def open(self, way: str, connect: Message | None) -> None:
        path = f"/connection/{way}"
        self.bidirectional = not way.startswith("uni")
        self._events = way.endswith("sse")
        body = self.codec.first(connect) if way[:3] != "uni" else self.codec.bare(connect)
        if self._events:
            path += f"?cf_connect={quote(body)}"
            self._answer = await request(self.port, "GET", path)
        else:
            headers = {"Content-Type": self.codec.content_type}
            self._answer = await request(self.port, "POST", path, body, headers)
        self._rest = b""
        self._told = False

    async def send(self, message: bytes) -> int:
        body = self.codec.emulated(self.session, self.node, message)
        headers = {"Content-Type": self.codec.content_type}
        answer = await request(self.port, "POST", "/emulation", body, headers)
        await answer.aclose()
        return answer.status

    async def receive(self) -> Sequence[Message]:
        messages = list[Message]()
        if self._answer.status != 200 and not self._told:
            self._told = True
            return [{"status": self._answer.status}]
        while not messages and not self._told:
            chunk = await self._answer.chunk()
            if not chunk:
                self._told = True
                return [{"closed": []}]
            whole, self._rest = self.codec.split(self._rest + chunk, events=self._events)
            messages += whole
        return messages

    async def aclose(self) -> None:
        await self._answer.aclose()


class Answer:
    """The answer to a request on a connection of its own."""

    status = 0

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def begin(self, head: h11.Request, body: bytes) -> None:
        parts = (head, h11.Data(data=body), h11.EndOfMessage())
        await self._stream.send_all(b"".join(self._http.send(one) or b"" for one in parts))
        with trio.fail_after(_PATIENCE):
            event = await self._event()
        self.status = event.status_code

    async def chunk(self) -> bytes:
        """More of the body; empty at its end."""
        event = await self._event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def whole(self) -> bytes:
        body = b""
        with trio.fail_after(_PATIENCE):
            while chunk := await self.chunk():
                body += chunk
        await self.aclose()
        return body

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def _event(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(bytes(await self._stream.receive_some(65_536)))
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            return h11.ConnectionClosed()
        return event


async def request(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    """Send one request; its answer, of which the head has come."""
    answer = Answer(await trio.open_tcp_stream("127.0.0.1", port))
    pairs = {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}
    head = h11.Request(method=method, target=path, headers=list(pairs.items()))
    await answer.begin(head, body)
    return answer
