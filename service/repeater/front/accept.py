"""The door: accepts every connection, reads the first request head, and sends it the right way.

A subscription or a plain API call is served natively, by the very task that read its head;
anything else goes to Hypercorn with the bytes already read. Each connection is one task inside
one cancel scope.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import msgspec
import trio

from repeater.backend.headers import headers_of
from repeater.front.admit import WAYS
from repeater.front.auth import connect_parameter
from repeater.front.preamble import Gate, GateError
from repeater.front.rest import Rest, RestOptions, RestStatistics
from repeater.front.tls import HTTP2
from repeater.front.upgrade import UNIDIRECTIONAL_PATH, WEBSOCKET_PATHS, Reception, Visitor
from repeater.log import get_logger
from repeater.protocol.http.head import HEAD_END
from repeater.transports import http_stream, websocket
from repeater.transports.sockets import abort_socket, send_last

if TYPE_CHECKING:
    from repeater.config import CurrentSettings
    from repeater.front.auth import Query
    from repeater.front.hypercorn import Handover
    from repeater.node import Node

_log = get_logger("door")

_STREAM_PATHS: Final = tuple(path.encode() for path in WAYS)

_ACCEPTS_PER_TURN: Final = 64  # connections taken before others have a turn
_PAUSE: Final = 0.1  # seconds without accepting when descriptors or memory ran out
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class DoorStatistics(msgspec.Struct, frozen=True):
    """Connections accepted, open now, turned away for their first bytes, and pauses taken."""

    accepted: int
    open: int
    rejected: int
    pauses: int
    rest: RestStatistics


class _RejectedError(Exception):
    """The first bytes are no request head; `answer` may be empty."""

    def __init__(self, reason: str, answer: bytes = b"") -> None:
        super().__init__(reason)
        self.answer = answer


class Door:
    """Lives inside the server, in its connections' nursery; ended by that nursery."""

    def __init__(
        self, node: Node, handover: Handover, settings: CurrentSettings, gate: Gate | None = None
    ) -> None:
        """Take `settings` for what they are at each connection."""
        self._node = node
        self._gate = gate or Gate()
        self._handover = handover
        self._settings = settings
        self._head_limit = settings().head_limit
        self._head_timeout = settings().head_timeout
        options = RestOptions(settings().body_limit, self._head_limit, self._head_timeout)
        self._reception = Reception(node, settings)
        self._rest = Rest(node, settings.api_key, options)
        self._draining = False
        self._silent: dict[trio.CancelScope, None] = {}
        self._sockets: dict[socket.socket, None] = {}
        self._emptied = trio.Event()
        self._accepted = 0
        self._rejected = 0
        self._pauses = 0

    def statistics(self) -> DoorStatistics:
        """A snapshot of the counters."""
        return DoorStatistics(
            self._accepted,
            len(self._sockets),
            self._rejected,
            self._pauses,
            self._rest.statistics(),
        )

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        """Accept connections of one listener until cancelled; each is a task in `nursery`.

        No deadline: waiting for clients is what it is for. Out of descriptors it pauses, and
        those who are there are served on.
        """
        while listener.fileno() >= 0:  # closed at shutdown, also in the turn of an accept
            await trio.lowlevel.wait_readable(listener)
            try:
                for _ in range(_ACCEPTS_PER_TURN):
                    sock, _address = listener.accept()
                    nursery.start_soon(self._serve, sock)
            except BlockingIOError:
                continue
            except ConnectionAbortedError:
                continue  # The peer gave up while it waited in the kernel's queue.
            except OSError as error:
                if listener.fileno() < 0:
                    return  # closed at shutdown, just when somebody came
                if error.errno not in _EXHAUSTED:
                    raise
                await self._pause(error)

    async def _pause(self, error: OSError) -> None:
        if self._pauses % 100 == 0:  # every ten seconds, not every try
            _log.warning("not accepting", reason=error.strerror)
        self._pauses += 1
        await trio.sleep(_PAUSE)

    def drain(self) -> None:
        """End the connections that wait for a request; calls under way finish."""
        self._draining = True
        for scope in self._silent:
            scope.cancel()
        self._rest.drain()

    async def wait_empty(self) -> None:
        """Wait until no connection is open. The caller sets the deadline."""
        while self._sockets:
            self._emptied = trio.Event()
            await self._emptied.wait()

    def abort_all(self) -> None:
        """Reset every connection still open: the end of a shutdown's patience."""
        for sock in tuple(self._sockets):
            abort_socket(sock)

    async def _serve(self, sock: socket.socket) -> None:
        """One connection, from its first byte to its last."""
        self._accepted += 1
        try:
            sock = self._gate.take(sock)
        except OSError as error:
            sock.close()
            _log.debug("lost before it was let in", reason=str(error))
            return
        self._sockets[sock] = None
        try:
            with trio.CancelScope() as scope:
                await self._route(sock, scope)
        except _RejectedError as rejection:
            self._rejected += 1
            _log.debug("rejected", reason=str(rejection))
            send_last(sock, rejection.answer)
        except (OSError, trio.ClosedResourceError) as error:
            _log.debug("lost while it was let in", reason=str(error))
        finally:
            del self._sockets[sock]
            sock.close()
            if not self._sockets:
                self._emptied.set()

    async def _route(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        if not self._gate.is_open(sock) and await self._enter(sock, scope) == HTTP2:
            _lift_deadline(scope)
            await self._handover.serve(sock, b"")
            return
        received = await self._read_head(sock, scope)
        path, query = _split_target(received)
        if path in _STREAM_PATHS:
            await self._serve_stream(sock, scope, received)
            return
        _lift_deadline(scope)  # from here on each way in has its own
        if path not in WEBSOCKET_PATHS:
            if received := await self._rest.serve(sock, received):
                await self._handover.serve(sock, received)
            return
        end = received.index(HEAD_END) + len(HEAD_END)
        head, received = received[:end], received[end:]
        if self._gate.expects_forwarded(sock):
            self._gate.note_forwarded(sock, headers_of(head))
        client = await self._reception.receive(sock, scope, Visitor(path, query), head)
        first = connect_parameter(query) if path == UNIDIRECTIONAL_PATH else ""
        # Nothing of the head may stay in this frame, which lives as long as its client.
        del head, path, query
        if client is not None:
            await websocket.serve(self._node, client, sock, received, first)

    async def _serve_stream(
        self, sock: socket.socket, scope: trio.CancelScope, received: bytes
    ) -> None:
        """A stream, its request's body within the deadline that the head had; or hand it over."""
        self._set_deadline(scope)
        if self._gate.expects_forwarded(sock):
            self._gate.note_forwarded(sock, headers_of(received.partition(b"\r\n\r\n")[0]))
        stream = await http_stream.open_stream(self._node, self._settings().origins, sock, received)
        _lift_deadline(scope)
        if not isinstance(stream, bytes):
            del received
            await http_stream.serve(self._node, sock, scope, stream)
        elif stream:
            self._gate.forget_forwarded(sock)  # more requests may come, of other clients
            await self._handover.serve(sock, stream)

    async def _read_head(self, sock: socket.socket, scope: trio.CancelScope) -> bytes:
        """Everything up to the head's end, and what came with it."""
        received = b""
        while True:
            try:
                chunk = sock.recv(self._head_limit)
            except BlockingIOError:
                self._set_deadline(scope)
                if not received:
                    await self._wait_first(sock, scope)
                else:
                    await trio.lowlevel.wait_readable(sock)
                continue
            if not chunk:
                raise _RejectedError("hung up before a request")
            received += chunk
            if not _is_request(received):
                raise _RejectedError("not HTTP")
            end = received.find(b"\r\n\r\n")
            if end > self._head_limit or (end < 0 and len(received) > self._head_limit):
                raise _RejectedError("head too large", _TOO_LARGE)
            if end >= 0:
                return received
            await trio.lowlevel.checkpoint()

    def _set_deadline(self, scope: trio.CancelScope) -> None:
        """From the first wait on, unless it is set: mostly a request comes without a wait."""
        if scope.deadline == math.inf:
            scope.deadline = trio.current_time() + self._head_timeout

    async def _wait_first(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        """Wait for a connection's first bytes; `drain` does not wait for them."""
        with self._no_request_yet(scope):
            await trio.lowlevel.wait_readable(sock)

    async def _enter(self, sock: socket.socket, scope: trio.CancelScope) -> str:
        """Pass the gate; the protocol that TLS chose."""
        self._set_deadline(scope)
        try:
            with self._no_request_yet(scope):
                return await self._gate.enter(sock)
        except GateError as error:
            raise _RejectedError(str(error)) from None

    @contextmanager
    def _no_request_yet(self, scope: trio.CancelScope) -> Iterator[None]:
        """Whatever waits in this block, `drain` ends."""
        if self._draining:
            raise _RejectedError("no request before the shutdown")
        self._silent[scope] = None
        try:
            yield
        finally:
            del self._silent[scope]


def _lift_deadline(scope: trio.CancelScope) -> None:
    if scope.deadline != math.inf:
        scope.deadline = math.inf


def _split_target(head: bytes) -> tuple[bytes, Query]:
    """Path and query of the request line; an empty path where the line has no target."""
    words = head.partition(b"\r\n")[0].split(b" ")
    target = words[1] if len(words) == 3 else b""
    path, _, query = target.partition(b"?")
    return path, parse_qs(query.decode("latin-1")) if query else {}


def _is_request(received: bytes) -> bool:
    """Whether this can be the begin of `METHOD target`: TLS and noise are not."""
    method, space, rest = received[:32].partition(b" ")
    if not (method.isalpha() and method.isupper() and method.isascii()):
        return False
    return bool(space) and not rest.startswith(b" ") if len(received) >= 32 else True
