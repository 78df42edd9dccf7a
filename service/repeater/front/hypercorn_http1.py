"""HTTP/1 behind Hypercorn: its `H11Protocol`, one request at a time, and never another protocol.

Hypercorn's own takes bytes in while a request is carried out, and fails on them. This one is fed
only when `full` is false, so what follows a request waits, and cannot spoil its answer.

Hypercorn's parser, h11, has other rules than the native paths: `Content-Length` with
`Transfer-Encoding`, chunk sizes with blanks, and `post` for POST are right to it. So it gets the
bytes of requests that `RequestFraming` has judged, and its own rules never decide anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import h11
import trio
from hypercorn.protocol.events import Body, Data, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream

from repeater.front.hypercorn_websocket import WebSocketStream, seen_headers
from repeater.front.responses import write_fault
from repeater.protocol.http.fault import NOT_WHOLE
from repeater.protocol.http.request_framing import RequestFraming

if TYPE_CHECKING:
    from repeater.front.handed_connection import Link
    from repeater.front.served import Stage
    from repeater.protocol.http.fault import Fault

_BODILESS: Final = (204, 304)


class HTTP1(H11Protocol):
    """One connection of HTTP/1. Owned by its `Link`, which is the only one to feed it."""

    says_goodbye = False
    step = 4_096

    def __init__(self, link: Link) -> None:
        super().__init__(*link.protocol_parts())
        self._link = link
        self._requests = 0
        self._endless = False
        self._head_only = False
        self._framing = RequestFraming(link.options.head_limit)
        self._refused = False
        self._answered = False  # a request, and what follows it was not looked at yet
        self._upgrading = False  # as above, for a request of a WebSocket

    @property
    def full(self) -> bool:
        """Whether the connection carries out a request that is whole; then nothing is fed."""
        if self.stream is None:
            return False
        if isinstance(self.stream, WebSocketStream):
            return self.stream.undecided
        return self.connection.their_state is not h11.SEND_BODY

    @property
    def resumable(self) -> bool:
        """Whether bytes behind a request may go on: it was answered, or is an open WebSocket."""
        return self._answered or (self._upgrading and not self.full)

    @property
    def discards(self) -> bool:
        """Whether an answer without an end is under way, behind which nothing can be served."""
        return self.full and self._endless

    @property
    def stage(self) -> Stage:
        """What the connection waits for: a request, the rest of a head, or an answer's end."""
        if self.stream is not None:
            return "busy", self._requests
        return "head" if self._framing.pending else "idle", self._requests

    @property
    def incomplete(self) -> bool:
        """Whether a request's body is not whole yet."""
        return isinstance(self.stream, HTTPStream) and not self.full

    async def feed(self, data: bytes) -> None:
        """Take bytes in; carry on until they are used up, or until a request is whole."""
        self._framing.feed(data)
        await self._advance()

    async def resume(self) -> None:
        """Go on with the bytes behind a request that was answered, or that became a WebSocket."""
        self._answered = self._upgrading = False
        if isinstance(self.connection, H11WSConnection):
            await self._handle_events()  # the frames that h11 was given with the request
        await self._advance()

    async def half_close(self) -> bool:
        """The peer has sent its last byte; return whether no answer is owed to it.

        An answer of known end is owed to a request that is whole; a WebSocket or an answer without
        an end is over.
        """
        if self.full:
            return self._endless or isinstance(self.stream, WebSocketStream)
        if self._framing.pending or isinstance(self.stream, HTTPStream):
            await self._refuse(NOT_WHOLE)
        return True

    async def close(self) -> None:
        """Tell the request under way that its peer has gone."""
        stream, self.stream = self.stream, None
        if stream is not None:
            await stream.handle(StreamClosed(stream_id=STREAM_ID))

    async def goodbye(self) -> None:
        """Do nothing: the end of the connection is all that HTTP/1 can say."""

    async def drop_bodies(self) -> None:
        """End the connection: the rest of a body did not come in time."""
        self._link.end()

    async def stream_send(self, event: Any) -> None:
        """Send a part of the answer; after the connection's end, do nothing."""
        if self._link.over or self._refused:
            await trio.lowlevel.checkpoint()  # an application must not spin on it
        if self._refused:
            return  # the refusal is the last answer
        if isinstance(event, Response) and event.status_code >= 200:
            self._endless = not self._has_end(event)
        await super().stream_send(event)
        if self._endless:
            self._link.wake()

    def _has_end(self, answer: Response) -> bool:
        if self._head_only or answer.status_code in _BODILESS:
            return True
        return any(name.lower() == b"content-length" for name, _ in answer.headers)

    async def _advance(self) -> None:
        """Give h11 the next request, as far as it has come."""
        while not self.full and not self._link.over:
            part = self._framing.take()
            fault = self._framing.fault
            # An application that answers before the body is whole would answer while it gets the
            # part before the fault, and that answer would be cut: the refusal is the only one.
            self._refused = self._refused or fault is not None
            if part:
                self.connection.receive_data(part)
                await self._handle_events()
            if fault is not None:
                await self._refuse(fault)
            elif not part:
                return

    async def _handle_events(self) -> None:
        while not self.full and not self._link.over:
            await self._link.give_way()
            if self.connection.they_are_waiting_for_100_continue:
                headers = self.config.response_headers("h11")
                await self._send_h11_event(
                    h11.InformationalResponse(status_code=100, headers=headers)
                )
            event: Any = self.connection.next_event()
            if isinstance(event, h11.Request):
                await self._create_stream(event)
            elif isinstance(event, h11.Data | Data) and self.stream is not None:
                await self.stream.handle(_part(event))
            elif isinstance(event, h11.EndOfMessage) and self.stream is not None:
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:
                return  # more bytes are needed, or the connection has ended

    async def _refuse(self, fault: Fault) -> None:
        """Answer an invalid request, tell the application that it is over, and end."""
        stream, self.stream = self.stream, None
        self._refused = True
        if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._link.write(write_fault(fault))
        self._link.end()
        if stream is not None:
            await stream.handle(StreamClosed(stream_id=STREAM_ID))

    async def _create_stream(self, request: h11.Request) -> None:
        self._requests += 1
        self._endless = False
        method = request.method.decode("ascii").upper()
        self._head_only = method == "HEAD"
        parts = (*self._link.stream_parts(), self.stream_send, STREAM_ID)
        if self._framing.tunnel:
            self.stream = WebSocketStream(self._link, self._link.abort, *parts)
            self._upgrading = True
            self.connection = H11WSConnection(cast("h11.Connection", self.connection))
        else:
            self.stream = HTTPStream(*parts)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=seen_headers(request.headers),
                http_version=request.http_version.decode(),
                method=method,
                raw_path=request.target,
                state=self.connection_state,
            )
        )

    async def _send_h11_event(self, event: Any) -> None:
        if self._link.draining and isinstance(event, h11.Response):
            headers = [*event.headers, (b"connection", b"close")]
            event = h11.Response(status_code=event.status_code, headers=headers)
        try:
            await super()._send_h11_event(event)
        except h11.LocalProtocolError:
            if not self._link.over:
                raise

    async def _maybe_recycle(self) -> None:
        """End the request, then go on or end the connection; no checkpoint comes in between.

        Quart cancels a request as soon as it hears of its end, and so cancels this very call.
        """
        stream, self.stream = self.stream, None
        done = self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE
        if done and not self._link.draining:
            cast("h11.Connection", self.connection).start_next_cycle()
            self._answered = True
            self._link.wake()
        else:
            self._link.end()
        if stream is not None:
            await stream.handle(StreamClosed(stream_id=STREAM_ID))


def _part(event: h11.Data | Data) -> Body | Data:
    """A part of a body, or the frames of a WebSocket, which are passed on as they are."""
    if isinstance(event, Data):
        return event
    return Body(stream_id=STREAM_ID, data=bytes(event.data))
