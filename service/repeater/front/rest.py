"""The native REST path: plain API calls on kept-alive connections, without ASGI in between.

It serves the common case only: an authorised `POST` to a known method, its body delimited by a
length (a stream's may be chunked). At the first other request, `serve` returns the bytes that it
has not consumed, and the caller hands them over; so all unusual cases have one implementation.
Each connection has one task.
"""

from __future__ import annotations

import contextlib
import math
import socket
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.access.origins import host_allowed
from repeater.api.answers import (
    ERROR_MODE_HEADER,
    FAILED,
    SHUTTING_DOWN,
    TRANSPORT_MODE,
    CallRefusal,
)
from repeater.api.budget import Budget
from repeater.api.methods import BODY_TIMEOUT, LATE_BODY, METHODS, call
from repeater.api.refusals import note_refusal
from repeater.api.stream import STREAM, STREAM_TIMEOUT, EventStream
from repeater.api.wrong_request import API, BODY_TOO_LATE, too_large
from repeater.deadlines import within
from repeater.front.responses import http_date
from repeater.log import get_logger
from repeater.protocol.http.answer import Answer, write_answer
from repeater.protocol.http.call_head import CallHead, read_call_head
from repeater.protocol.http.chunked import ChunkedReader
from repeater.protocol.http.head import HEAD_END, skip_empty_lines
from repeater.transports.sockets import abort_socket

if TYPE_CHECKING:
    from repeater.api.keys import ApiKey
    from repeater.config import CurrentSettings
    from repeater.front.open_connections import OpenConnection
    from repeater.node import Node

_log = get_logger("rest")

_NAMES: Final = (*METHODS, STREAM)
_RECEIVE: Final = 65_536
_FIRST_RECEIVE: Final = 4_096  # of a peer that has not shown the API key
_IDLE_TIMEOUT: Final = 75.0  # seconds between two requests; as in hypercorn.py
_ERROR_MODE: Final = ERROR_MODE_HEADER.lower().encode()
_TRANSPORT_MODE: Final = TRANSPORT_MODE.encode()


class RestOptions(msgspec.Struct, frozen=True):
    """Limits of a request, in bytes and seconds; a stream's line counts as a body.

    The paths of calls begin with `path_prefix`.
    """

    body_limit: int
    head_limit: int
    head_timeout: float
    path_prefix: str = ""


class RestStatistics(msgspec.Struct, frozen=True):
    """Connections served here now, requests answered, and connections handed over."""

    open: int
    requests: int
    handed_over: int


class _EndedError(Exception):
    """The connection is over: the peer hung up, was silent for too long, or we shut down."""


class Rest:
    """Serves API calls on raw connections. Lives inside the `Acceptor`; ended by `drain`."""

    def __init__(
        self,
        node: Node,
        key: ApiKey,
        options: RestOptions,
        settings: CurrentSettings | None = None,
    ) -> None:
        """Keep `settings`, which says whose hosts and pages may call; without it, all may."""
        self.node = node
        self.key = key
        self.settings = settings
        self.options = options
        path = options.path_prefix + API
        self.beginning = f"POST {path}".encode()
        """How every plain call begins."""
        self.names = {f"{path}{name}".encode(): name for name in _NAMES}
        """The methods, by the paths of their calls."""
        self.draining = False
        self.drained_at = math.inf
        self.idle_until = math.inf
        self.requests = 0
        self._connections: dict[_Connection, None] = {}
        self._handed_over = 0

    def statistics(self) -> RestStatistics:
        """A snapshot of the counters."""
        return RestStatistics(len(self._connections), self.requests, self._handed_over)

    async def serve(
        self, sock: socket.socket, received: bytes, connection: OpenConnection | None = None
    ) -> bytes:
        """Serve one connection's plain calls; return the bytes to hand over, or `b""` at its end.

        `connection` is told that its caller has the key.

        The caller owns the socket and closes it. An error in a call is answered with 500, logged
        with its traceback, and ends this connection only.
        """
        if not self.beginning.startswith(received[: len(self.beginning)]):
            return received
        calls = _Connection(self, sock, received)
        calls.accepted = connection
        self._connections[calls] = None
        del connection, received  # it lives for as long as the peer likes
        try:
            rest = await calls.serve()
        except (_EndedError, trio.ClosedResourceError):
            return b""
        except OSError as error:
            _log.debug("a connection was lost", reason=str(error))
            return b""
        finally:
            del self._connections[calls]
        self._handed_over += bool(rest)
        return rest

    def drain(self, patience: float = 0.0) -> None:
        """End idle connections and streams; let calls finish, whose body comes soon. Idempotent.

        Args:
            patience: Seconds for which idle ones may still send a request: their next answer, and
                that of each call under way, says that the connection ends.
        """
        if self.draining:
            return
        self.draining, self.drained_at = True, trio.current_time()
        self.idle_until = self.drained_at + patience
        for connection in self._connections:
            connection.end_if_idle()


class _Connection:
    """One connection's requests, one after the other. Lives inside `Rest.serve`."""

    def __init__(self, rest: Rest, sock: socket.socket, received: bytes) -> None:
        self._rest = rest
        self._node = rest.node
        self._socket = sock
        self._received = received
        self._budget = Budget(rest.node.options.fanout_budget)
        self._waiting: trio.CancelScope | None = None
        self._idle = False  # whether nothing is owed while the connection waits
        self._allowed: CallHead | None = None
        self.accepted: OpenConnection | None = None

    def end_if_idle(self) -> None:
        """End the connection if it waits for a request, or for more bytes of a stream."""
        if self._waiting is not None:
            self._waiting.deadline = min(self._waiting.deadline, self._last_moment())

    def _last_moment(self) -> float:
        """When a shutdown ends the present wait."""
        return self._rest.idle_until if self._idle else self._rest.drained_at + LATE_BODY

    async def serve(self) -> bytes:
        """Serve requests until one is not plain, and return its bytes; `b""` at the end."""
        while True:
            head = await self._next_head()
            if head is None:
                return self._received
            name = self._rest.names[head.path]
            if name == STREAM:
                going_on = await self._serve_stream(head)
            else:
                going_on = await self._serve_call(head, name)
            self._rest.requests += 1
            if not going_on:
                await self._linger()
                return b""

    async def _next_head(self) -> CallHead | None:
        """Consume and return the next head; None, consuming nothing, if it is not plain."""
        deadline = within(_IDLE_TIMEOUT)
        begun = False
        while True:
            if self._received:
                if self._received.startswith(b"\r"):
                    self._received = skip_empty_lines(self._received)
                if (end := self._received.find(HEAD_END)) >= 0:
                    break
                if not self._may_be_ours():
                    return None
                if self._received and not begun:
                    begun = True
                    deadline = within(self._rest.options.head_timeout)
            part = await self._receive_or_none(deadline, idle=True)
            if part is None:
                raise _EndedError
            self._received += part
        end += len(HEAD_END)
        beginning = self._rest.beginning
        if end > self._rest.options.head_limit or not self._received.startswith(beginning):
            return None
        head = read_call_head(self._received[:end])
        if head is None or not self._is_ours(head):
            return None
        self._received = self._received[end:]
        return head

    def _may_be_ours(self) -> bool:
        """Whether the bytes so far may be the beginning of a plain call's head."""
        received, beginning = self._received, self._rest.beginning
        if not beginning.startswith(received[: len(beginning)]) and received != b"\r":
            return False
        return len(received) <= self._rest.options.head_limit

    def _is_ours(self, head: CallHead) -> bool:
        name = self._rest.names.get(head.path)
        if name is None:
            return False
        if name != STREAM and head.length is None:
            return False
        if head is not self._allowed:  # equal heads are one object (`read_call_head`)
            if not self._is_page_allowed(head):
                return False
            self._allowed = head
        if not self._rest.key.admits(head.api_key, head.authorization, head.query):
            return False
        if self.accepted is not None:
            self.accepted.identify_caller()
            self.accepted = None
        return True

    def _is_page_allowed(self, head: CallHead) -> bool:
        """Whether host and page are certainly allowed; `web/pages.py` judges all others."""
        if self._rest.settings is None:
            return True
        settings = self._rest.settings()
        if settings.dev and head.from_page:
            return False
        hosts = settings.hosts
        return not hosts or host_allowed(head.host.decode("latin-1"), hosts)

    async def _serve_call(self, head: CallHead, name: str) -> bool:
        """Serve one call; return whether the connection goes on."""
        assert head.length is not None
        if head.length > self._rest.options.body_limit:
            return await self._refuse(head, name, too_large(self._rest.options.body_limit))
        body = await self._body(head.length)
        if body is None:
            late = SHUTTING_DOWN if self._rest.draining else BODY_TOO_LATE
            return await self._refuse(head, name, late)
        keep_alive = head.keep_alive
        transport_mode = head.error_mode == _TRANSPORT_MODE
        try:
            answer = await call(self._node, name, body, transport_mode=transport_mode)
        except Exception as error:
            # A bug in one method must not end other connections.
            self._node.failures.note("call", error)
            answer, keep_alive = FAILED.answer(transport_mode=transport_mode), False
        return await self._send(answer, keep_alive=keep_alive)

    async def _refuse(self, head: CallHead, name: str, refusal: CallRefusal) -> bool:
        """Refuse a request whose body was not read, and end the connection."""
        note_refusal(self._node, name, refusal)
        transport_mode = head.error_mode == _TRANSPORT_MODE
        return await self._send(refusal.answer(transport_mode=transport_mode), keep_alive=False)

    async def _body(self, length: int) -> bytes | None:
        """Consume and return the body; None if it did not come in time."""
        if len(self._received) < length:
            parts, missing = [self._received], length - len(self._received)
            self._received = b""
            deadline = within(BODY_TIMEOUT)
            while missing > 0:
                part = await self._receive_or_none(deadline)
                if part is None:
                    return None
                parts.append(part)
                missing -= len(part)
            self._received = b"".join(parts)
        body, self._received = self._received[:length], self._received[length:]
        return body

    async def _serve_stream(self, head: CallHead) -> bool:
        """Serve one stream; return whether the connection goes on: only after a whole body."""
        stream = EventStream(self._node, self._rest.options.body_limit)
        status = await self._feed(stream, head.length)
        if status == 200 and not stream.stopped:
            await stream.end()
        whole = status == 200 and not stream.stopped
        return await self._send(await stream.answer(status), keep_alive=whole and head.keep_alive)

    async def _feed(self, stream: EventStream, length: int | None) -> int:
        """Feed the body to the stream; return the status of its answer."""
        chunked = ChunkedReader() if length is None else None
        missing = length or 0
        data, self._received = self._received, b""
        while True:
            if chunked is not None:
                content = chunked.feed(data)
                complete, rest = chunked.complete, chunked.rest
            else:
                content, rest = data[:missing], data[missing:]
                missing -= len(content)
                complete = missing == 0
            await stream.feed(content)
            if complete:
                self._received = rest
            if complete or stream.stopped:
                return 200
            if chunked is not None and chunked.broken:
                return 400
            deadline = within(STREAM_TIMEOUT)
            part = await self._receive_or_none(deadline, idle=True)
            if part is None:
                return 503 if self._rest.draining else 408
            data = part

    async def _receive_or_none(self, deadline: float, *, idle: bool = False) -> bytes | None:
        """As `_wait_readable`, but return bytes or None; `_EndedError` if the peer hung up."""
        await self._budget.give_way()
        size = _RECEIVE if self.accepted is None else _FIRST_RECEIVE
        while True:
            try:
                data = self._socket.recv(size)
            except BlockingIOError:
                if not await self._wait_readable(deadline, idle=idle):
                    return None
                continue
            if not data:
                raise _EndedError
            return data

    async def _wait_readable(self, deadline: float, *, idle: bool) -> bool:
        """Return whether bytes came in time; a shutdown ends `idle` waits at once."""
        self._idle = idle
        if self._rest.draining:
            deadline = min(deadline, self._last_moment())
        scope = self._waiting = trio.CancelScope(deadline=deadline)
        with scope:
            await trio.lowlevel.wait_readable(self._socket)
        self._waiting = None
        self._budget.renew()
        return not scope.cancelled_caught

    async def _send(self, answer: Answer, *, keep_alive: bool) -> bool:
        """Send one answer; return whether the connection goes on."""
        keep_alive = keep_alive and not self._rest.draining
        await self._send_all(write_answer(answer, keep_alive=keep_alive, date=http_date()))
        if not keep_alive:
            self._socket.shutdown(socket.SHUT_WR)
        return keep_alive

    async def _send_all(self, data: bytes) -> None:
        """Write; reset a peer that takes no bytes for the write timeout.

        Raises:
            _EndedError: the peer was reset.
        """
        while True:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            data = data[sent:]
            if not data:
                return
            with trio.move_on_after(self._node.options.write_timeout) as scope:
                await trio.lowlevel.wait_writable(self._socket)
            self._budget.renew()
            if scope.cancelled_caught:
                abort_socket(self._socket)
                raise _EndedError

    async def _linger(self) -> None:
        """Read and discard until the peer hangs up, at most for the close timeout.

        If the socket were closed at once, bytes that nobody reads, such as the rest of a body or
        an empty line behind it, would reset the peer, which might lose the answer.
        """
        with (
            contextlib.suppress(_EndedError),
            trio.move_on_at(within(self._node.options.close_timeout)),
        ):
            while await self._receive_or_none(math.inf, idle=True):
                pass
