"""HTTP/2 behind TLS: `h2` for the frames, Hypercorn's streams for the requests.

Hypercorn's own protocol keeps whole answers of a hundred streams in memory for a peer that closes
its window, and can be kept busy by frames that carry nothing. Here a stream holds no bytes: each
application sends its own answer, in frames that its peer's window has room for, within a deadline.
Priorities are not obeyed (RFC 9113, section 5.3.2): streams take turns.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import h2.events
import h2.exceptions
import h2.settings
import trio
from h2.errors import ErrorCodes
from hypercorn.protocol.events import (
    Body,
    Data,
    EndBody,
    EndData,
    InformationalResponse,
    Request,
    Response,
    StreamClosed,
    Trailers,
)
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.utils import filter_pseudo_headers

from repeater.clients.throttle import TokenBucket
from repeater.deadlines import within
from repeater.front.http2_connection import FRAME, Connection, Stream
from repeater.front.hypercorn_websocket import WebSocketStream, seen_headers
from repeater.front.writer import RATE
from repeater.protocol.http.http2_frames import FrameCounter
from repeater.transports.asgi import abort_connection

if TYPE_CHECKING:
    from repeater.front.handed_connection import Link
    from repeater.front.served import Stage

STREAMS: Final = 32
"""Requests of one connection under way at once. A browser page has one EventSource or stream a
tab and some calls; what is more waits in the browser. Each may hold a task and a part of an
answer."""

EMPTY_FRAMES: Final = (200, 512)
"""A second, and at once: frames that carry nothing. Browsers send some ten for a page."""

_WINDOW_UPDATES: Final = 2  # a DATA frame that we sent may be answered with: stream and connection
_CREDIT: Final = 4_096  # window updates that may come later than their frames


class HTTP2:
    """One connection of HTTP/2. Owned by its `Link`, which is the only one to feed it."""

    step = 512  # some fifty frames without a payload, each of which is answered
    says_goodbye = True
    full = False
    discards = False
    resumable = False

    def __init__(self, link: Link) -> None:
        self._link = link
        self._h2 = Connection()
        codes = h2.settings.SettingCodes
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: STREAMS,
                codes.MAX_HEADER_LIST_SIZE: link.options.head_limit,
                codes.ENABLE_CONNECT_PROTOCOL: 1,
            },
        )
        self._streams: dict[int, Stream] = {}
        self._frames = FrameCounter()
        self._empty = TokenBucket()
        self._credit = 0
        self._requests = 0

    async def initiate(self) -> None:
        """Send our settings."""
        self._h2.initiate_connection()
        await self._flush()

    @property
    def stage(self) -> Stage:
        """What the connection waits for; an unfinished frame counts as an unfinished head."""
        if self._frames.unfinished:
            return "head", self._frames.frames
        return "busy" if self._streams else "idle", self._requests

    @property
    def incomplete(self) -> bool:
        """Whether a request's body is not whole yet."""
        return any(self._waits_for_body(stream) for stream in self._streams.values())

    async def feed(self, data: bytes) -> None:
        """Take bytes in, and carry out what they say."""
        if self._is_flood(data):
            self._link.count("flood")
            await self._end(ErrorCodes.ENHANCE_YOUR_CALM)
            return
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            await self._flush()  # what `h2` says about it
            self._link.end()
            return
        reset = {one.stream_id for one in events if isinstance(one, h2.events.StreamReset)}
        for event in events:
            # A request that was reset behind itself does not even begin.
            if not (isinstance(event, h2.events.RequestReceived) and event.stream_id in reset):
                await self._handle(event)
            await self._link.give_way()
        await self._flush()

    def _is_flood(self, data: bytes) -> bool:
        """Count the frames in these bytes; return whether too many carry nothing."""
        counted = self._frames.feed(data)
        paid = min(self._credit, counted.window_updates)
        self._credit -= paid
        rate, burst = EMPTY_FRAMES
        for _ in range(counted.empty + counted.window_updates - paid):
            if self._empty.take(burst, rate):
                return True
        return self._frames.block > self._link.options.head_limit

    async def resume(self) -> None:
        """Do nothing: requests do not wait for each other."""

    async def half_close(self) -> bool:
        """The peer has sent its last byte; return whether no answer is owed to it."""
        for stream in tuple(self._streams.values()):
            if not stream.whole or stream.endless:
                await self._forget(stream)
        return not self._streams

    async def close(self) -> None:
        """Tell all requests under way that their peer has gone."""
        for stream in tuple(self._streams.values()):
            await self._forget(stream)

    async def goodbye(self) -> None:
        """Say that no request is taken any more."""
        await self._say_end(ErrorCodes.NO_ERROR)

    async def drop_bodies(self) -> None:
        """Reset the requests whose bodies did not come in time."""
        for stream in tuple(self._streams.values()):
            if self._waits_for_body(stream):
                await self._reset(stream, ErrorCodes.CANCEL)

    @staticmethod
    def _waits_for_body(stream: Stream) -> bool:
        return not stream.whole and not isinstance(stream.http, WebSocketStream)

    # ---- from the peer

    async def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            await self._open(event)
        elif isinstance(event, h2.events.DataReceived):
            await self._take(event)
        elif isinstance(event, h2.events.StreamEnded):
            if stream := self._streams.get(event.stream_id):
                stream.whole = True
                await stream.http.handle(EndBody(stream_id=stream.number))
        elif isinstance(event, h2.events.StreamReset):
            if stream := self._streams.get(event.stream_id):
                await self._forget(stream)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            number = getattr(event, "stream_id", 0)
            for stream in self._streams.values():
                if number in (0, stream.number):
                    stream.window.set()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._link.end()

    async def _take(self, event: h2.events.DataReceived) -> None:
        """Give a part of a body to its request. The window opens again once it was taken."""
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            await stream.http.handle(Body(stream_id=stream.number, data=event.data))
        try:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        except h2.exceptions.ProtocolError:
            return  # reset, or closed, while the application took the part

    async def _open(self, event: h2.events.RequestReceived) -> None:
        number, headers = event.stream_id, dict(event.headers)
        method, path = headers[b":method"].upper(), headers.get(b":path", b"")
        upgrade = method == b"CONNECT"
        valid = method.isascii() and path.isascii() and path.startswith((b"/", b"*"))
        if upgrade and headers.get(b":protocol") != b"websocket":
            valid = False
        if self._link.draining or not valid:
            code = ErrorCodes.REFUSED_STREAM if valid else ErrorCodes.PROTOCOL_ERROR
            with contextlib.suppress(h2.exceptions.ProtocolError):  # It is closed already.
                self._h2.reset_stream(number, code)
            return
        self._requests += 1
        stream = self._streams[number] = Stream(number)
        parts = (*self._link.stream_parts(), self.stream_send, number)
        token = abort_connection.set(lambda: self._abort(stream))
        try:
            if upgrade:
                stream.http = WebSocketStream(self._link, lambda: self._abort(stream), *parts)
            else:
                stream.http = HTTPStream(*parts)
            pairs = filter_pseudo_headers(event.headers)
            await stream.http.handle(
                Request(
                    stream_id=number,
                    headers=seen_headers(pairs),
                    http_version="2",
                    method=method.decode("ascii"),
                    raw_path=path,
                    state=self._link.connection_state,
                )
            )
        finally:
            abort_connection.reset(token)

    # ---- from the applications

    async def stream_send(self, event: Any) -> None:
        """Send a part of an answer; once its stream has gone, do nothing."""
        stream = self._streams.get(event.stream_id)
        if stream is None or self._link.over:
            await trio.lowlevel.checkpoint()  # an application must not spin on it
            return
        try:
            await self._send(stream, event)
        except h2.exceptions.ProtocolError:
            await self._forget(stream)  # reset by the peer, or the connection has ended

    async def _send(self, stream: Stream, event: Any) -> None:
        number = stream.number
        if isinstance(event, Response | InformationalResponse):
            status = (b":status", b"%d" % event.status_code)
            # A header of a connection is forbidden here (RFC 9113, section 8.2.2).
            headers = [pair for pair in event.headers if pair[0] != b"connection"]
            more = self._link.config.response_headers("h2")
            if event.status_code >= 200:
                stream.endless = not any(name == b"content-length" for name, _ in headers)
            self._h2.send_headers(number, [status, *headers, *more])
            await self._flush()
        elif isinstance(event, Body | Data):
            await self._send_data(stream, event.data)
        elif isinstance(event, EndBody | EndData):
            stream.answered = True
            self._h2.end_stream(number)
            await self._flush()
        elif isinstance(event, Trailers):
            stream.answered = True
            self._h2.send_headers(number, event.headers, end_stream=True)
            await self._flush()
        elif isinstance(event, StreamClosed):
            await self._finish(stream)

    async def _send_data(self, stream: Stream, data: bytes) -> None:
        """Send a part of an answer as the peer makes room; reset a stream that stalls.

        Room for other streams does not count, and a trickle of room does not renew the deadline.
        """
        async with stream.sending:
            if stream.number in self._streams:
                await self._send_whole(stream, data)

    async def _send_whole(self, stream: Stream, data: bytes) -> None:
        timeout = self._link.options.write_timeout
        rest = memoryview(data)
        with trio.move_on_at(within(timeout) + len(data) / RATE):
            while rest:
                room = min(
                    self._h2.local_flow_control_window(stream.number),
                    self._h2.max_outbound_frame_size,
                    FRAME,
                )
                if room <= 0:
                    stream.window = trio.Event()
                    with trio.move_on_at(within(timeout)) as waiting:
                        await stream.window.wait()
                    if waiting.cancelled_caught or stream.number not in self._streams:
                        break
                    continue
                self._h2.send_data(stream.number, bytes(rest[:room]))
                rest = rest[room:]
                self._credit = min(_CREDIT, self._credit + _WINDOW_UPDATES)
                await self._flush()
        if rest and stream.number in self._streams:
            self._link.count("stalled")
            await self._reset(stream, ErrorCodes.CANCEL)

    async def _finish(self, stream: Stream) -> None:
        """The application has ended: so does its stream."""
        if not stream.answered:
            await self._reset(stream, ErrorCodes.INTERNAL_ERROR)
        elif not stream.whole:
            await self._reset(stream, ErrorCodes.NO_ERROR)  # the rest of its body is not wanted
        else:
            await self._forget(stream)
        if self._link.draining and not self._streams:
            await self._end(ErrorCodes.NO_ERROR)

    def _abort(self, stream: Stream) -> None:
        """Reset one stream without waiting. Idempotent."""
        if stream.number in self._streams:
            self._link.requests.spawn(self._reset, stream, ErrorCodes.CANCEL)

    async def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # It is closed already.
            self._h2.reset_stream(stream.number, code)
        await self._forget(stream)
        await self._flush()

    async def _forget(self, stream: Stream) -> None:
        """Drop a stream, and tell its application that the peer has gone. Idempotent."""
        if self._streams.pop(stream.number, None) is not None:
            stream.window.set()
            await stream.http.handle(StreamClosed(stream_id=stream.number))
            self._link.wake()

    async def _end(self, code: ErrorCodes) -> None:
        await self._say_end(code)
        self._link.end()

    async def _say_end(self, code: ErrorCodes) -> None:
        try:
            self._h2.close_connection(code)
        except h2.exceptions.ProtocolError:
            return  # It is closed already.
        await self._flush()

    async def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            await self._link.write(data)
