"""Accepts every connection, reads its first request head, and chooses the code that serves it.

A subscription or a plain API call is served natively, by the same task that read its head; any
other request goes to Hypercorn, with the bytes already read. Each connection is one task inside
one cancel scope.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Awaitable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import random
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from repeater.deadlines import lift, within
from repeater.front.live_check import LIVE_TARGET, answer_live, is_live_check
from repeater.front.open_connections import REFUSED_TIMEOUT, OpenConnections
from repeater.front.path_prefix import targets
from repeater.front.preamble import Preamble, PreambleError
from repeater.front.reasons import LARGE_HEAD, not_http
from repeater.front.request import client_address
from repeater.front.responses import write_fault
from repeater.front.rest import Rest, RestOptions, RestStatistics
from repeater.front.routes import STREAMS, WEBSOCKETS
from repeater.front.subscriptions import Subscriptions
from repeater.front.tls import HTTP2
from repeater.log import get_logger
from repeater.protocol.http.fault import HEAD_TOO_LARGE, NOT_HTTP
from repeater.protocol.http.head import (
    HEAD_END,
    LINE_END,
    begins_request,
    read_head,
    skip_empty_lines,
)
from repeater.transports.sockets import abort_socket, send_last

if TYPE_CHECKING:
    from repeater.causes import Why
    from repeater.config import CurrentSettings
    from repeater.front.hypercorn import Handover, HandoverStatistics
    from repeater.node import Node
    from repeater.protocol.http.head import Head

_log = get_logger("acceptor")

_USUAL: Final = (b"GET /", b"POST /")
"""How most requests begin, looked for first."""
_ACCEPTS_PER_TURN: Final = 64  # connections taken before others have a turn
_FEWEST_ACCEPTS: Final = 8  # taken even where others have used up this turn
_PAUSE: Final = 0.1  # seconds without accepting after an error, as when descriptors ran out
# At once from a new connection. What comes behind its first request is kept until that is answered.
_READ: Final = 4_096
_FIRST_PAUSE: Final = 0.01  # seconds before the third read of a head; then as long as it has taken
_LONGEST_PAUSE: Final = 1.0
_LOOK: Final = 0.02  # seconds between two looks for connections without a request
_LISTENER_BROKEN: Final = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP)


class AcceptorStatistics(msgspec.Struct, frozen=True):
    """Connections accepted, open now, rejected for their first bytes, and pauses of accepting."""

    accepted: int
    open: int
    rejected: int
    pauses: int
    rest: RestStatistics
    handover: HandoverStatistics


class _RejectedError(Exception):
    """The first bytes are not a request head; `answer` may be empty.

    `why` is for the log; None if the peer has only hung up, or we shut down.
    """

    def __init__(self, reason: str, answer: bytes = b"", why: Why | None = None) -> None:
        super().__init__(reason)
        self.answer = answer
        self.why = why


class Acceptor:
    """Lives inside the server, in its connections' nursery; ended by that nursery."""

    def __init__(
        self,
        node: Node,
        handover: Handover,
        settings: CurrentSettings,
        preamble: Preamble | None = None,
    ) -> None:
        """Keep `settings`, a function; each connection calls it for the settings then in force."""
        self._node = node
        self._preamble = preamble or Preamble()
        self._handover = handover
        self._settings = settings
        self._head_limit = settings().head_limit
        self._head_timeout = settings().head_timeout
        prefix = settings().path_prefix
        self._stream_paths = targets(prefix, STREAMS)
        self._websocket_paths = targets(prefix, WEBSOCKETS)
        self._live_target = prefix.encode() + LIVE_TARGET
        options = RestOptions(settings().body_limit, self._head_limit, self._head_timeout, prefix)
        self._subscriptions = Subscriptions(
            node, handover, settings, self._preamble, self._rest_of_request
        )
        self._rest = Rest(node, settings.api_key, options, settings)
        self._draining = False
        self._silent: dict[trio.CancelScope, None] = {}
        self._open = OpenConnections(
            node.places,
            lambda: node.options.limits,
            node.limited,
            node.refusals,
            settings.api_key,
        )
        self._emptied = trio.Event()
        self._accepted = 0
        self._rejected = 0
        self._pauses = 0

    def statistics(self) -> AcceptorStatistics:
        """A snapshot of the counters."""
        return AcceptorStatistics(
            self._accepted,
            len(self._open.sockets),
            self._rejected,
            self._pauses,
            self._rest.statistics(),
            self._handover.statistics(),
        )

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        """Accept connections of one listener until cancelled; each is a task in `nursery`.

        No deadline: this task exists to wait for clients. When descriptors run out, it pauses
        accepting; open connections are still served.
        """
        kind = listener.family, listener.type, listener.proto
        while listener.fileno() >= 0:  # closed at shutdown, perhaps between two accepts
            await trio.lowlevel.wait_readable(listener)
            try:
                for number in range(_ACCEPTS_PER_TURN):
                    sock, address = _accept(listener, kind)
                    client = self._preamble.client_of(address)
                    if self._open.take(client):
                        nursery.start_soon(self._serve, sock, client)
                    else:
                        sock.close()
                    if number >= _FEWEST_ACCEPTS and self._node.turns.over:
                        break
            except BlockingIOError:
                continue
            except ConnectionAbortedError:
                continue  # The peer hung up while its connection waited in the kernel's queue.
            except OSError as error:
                if listener.fileno() < 0:
                    return  # closed at shutdown, just when a client connected
                if error.errno in _LISTENER_BROKEN:
                    raise  # a mistake of ours
                # Descriptors ran out, or Linux hands on the network's error of one peer (accept(2)
                # lists some ten of them): neither is the listener's end.
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

    async def move_on(self, patience: float) -> None:
        """Let the peers notice that another server accepts connections now.

        The connections that were accepted before get their answer. Idle connections of HTTP/1 may
        still send a request, whose answer says that the connection ends: a peer that sent one just
        now would else be reset. Returns when each connection has sent its first request.

        Args:
            patience: Seconds for that, at most.
        """
        self._rest.drain(patience)
        await self._handover.drain(patience)
        with trio.move_on_after(patience):
            while True:
                await trio.sleep(_LOOK)  # what was accepted last begins to be read meanwhile
                if not self._silent:
                    return

    async def wait_empty(self) -> None:
        """Wait until no connection is open. The caller sets the deadline."""
        while self._open.sockets:
            self._emptied = trio.Event()
            await self._emptied.wait()

    def abort_all(self) -> None:
        """Reset every connection that is still open when the shutdown's time is over."""
        for sock in tuple(self._open.sockets):
            abort_socket(sock)

    async def _serve(self, sock: socket.socket, client: str) -> None:
        """Serve one connection, from its first byte to its last."""
        self._accepted += 1
        try:
            sock = self._preamble.take(sock)
        except OSError as error:
            sock.close()
            self._open.give_back()
            _log.debug("lost as it was accepted", reason=str(error))
            return
        self._open.enter(sock, client)
        del client  # this frame lives as long as the connection
        try:
            with trio.CancelScope() as scope:
                # `_route` decides in a call of its own, which has returned before the serving
                # begins: a frame kept for each idle subscriber would cost memory for each of them.
                await (await self._route(sock, scope))
        except _RejectedError as rejection:
            self._rejected += 1
            _log.debug("rejected", reason=str(rejection))
            if rejection.why is not None:
                address = client_address(sock)
                self._node.refusals.note(rejection.why, "connection", address=address)
            send_last(sock, rejection.answer)
        except (OSError, trio.ClosedResourceError) as error:
            _log.debug("lost before it was served", reason=str(error))
        except Exception as error:  # the boundary: what fails here costs this connection only
            self._node.failures.note("connection", error)
            abort_socket(sock)
        finally:
            self._open.leave(sock)
            sock.close()
            if not self._open.sockets:
                self._emptied.set()

    async def _route(self, sock: socket.socket, scope: trio.CancelScope) -> Awaitable[None]:
        """Read the first head; return the call that serves the connection, not yet awaited."""
        await self._node.turns.give_way()
        opened = self._preamble.absent or self._preamble.is_open(sock)
        if not opened and await self._enter(sock, scope) == HTTP2:
            lift(scope)
            return self._handover.serve(sock, b"", self._open.of(sock))
        received = await self._read_head(sock, scope)
        if received.startswith(self._rest.beginning):
            lift(scope)  # from here on each path sets its own deadlines
            return self._serve_calls(sock, received)
        end = received.index(HEAD_END) + len(HEAD_END)
        head = read_head(received[:end])
        path = head.target.partition(b"?")[0]
        if path in self._stream_paths:
            # A deadline that was set for the head also holds for the body.
            return self._subscriptions.serve_stream(
                sock, scope, head, received[end:], self._open.of(sock)
            )
        lift(scope)
        if head.target == self._live_target and is_live_check(sock, head, self._settings().hosts):
            return self._serve_live(sock, head, received[end:])
        if path in self._websocket_paths:
            return self._subscriptions.serve_websocket(
                sock, scope, head, received[end:], self._open.of(sock)
            )
        return self._handover.serve(sock, received, self._open.of(sock))

    async def _serve_live(self, sock: socket.socket, head: Head, rest: bytes) -> None:
        """Answer that the process lives, and hand the connection over for what comes next."""
        if answer_live(sock, head):
            handed_over = self._handover.serve(sock, rest, self._open.of(sock))
            del rest  # this frame lives as long as the connection
            await handed_over

    async def _serve_calls(self, sock: socket.socket, received: bytes) -> None:
        """Serve calls of the server API; at the first other request hand the connection over."""
        if received := await self._rest.serve(sock, received, self._open.of(sock)):
            handed_over = self._handover.serve(sock, received, self._open.of(sock))
            del received  # this frame lives as long as the connection
            await handed_over

    async def _read_head(self, sock: socket.socket, scope: trio.CancelScope) -> bytes:
        """Return the bytes up to the head's end, and those that arrived with them."""
        received = b""
        since: float | None = None  # when the first bytes were read
        while True:
            try:
                chunk = sock.recv(_READ)
            except BlockingIOError:
                self._set_deadline(sock, scope)
                with self._no_request_yet(scope):
                    await trio.lowlevel.wait_readable(sock)
                    await self._node.turns.give_way()
                continue
            if not chunk:
                raise _RejectedError("hung up before a request")
            received += chunk
            if not (received.startswith(_USUAL) or begins_request(received)):
                received = skip_empty_lines(received)
                # Only empty lines so far are the beginning of a head like any other.
                if not (received in LINE_END or begins_request(received)):
                    raise _RejectedError("not HTTP", write_fault(NOT_HTTP), not_http(received))
            end = received.find(HEAD_END)
            if end > self._head_limit or (end < 0 and len(received) > self._head_limit):
                raise _RejectedError("head too large", write_fault(HEAD_TOO_LARGE), LARGE_HEAD)
            if end >= 0:
                return received
            if len(chunk) == _READ <= len(received):
                continue  # more of it is there, up to the head's limit; not so of empty lines
            if since is None:
                since = trio.current_time()
            else:
                await self._wait_for_more(since, sock, scope)

    async def _wait_for_more(
        self, since: float, sock: socket.socket, scope: trio.CancelScope
    ) -> None:
        """Let the rest of a head gather before it is read again: as long as it has taken `since`.

        A head in two packets is read at once. One that comes byte by byte would cost as many turns
        of the loop as it has bytes, and a thousand that came together would wake in one pass.
        """
        self._set_deadline(sock, scope)
        with self._no_request_yet(scope):
            await trio.sleep(_pause_after(trio.current_time() - since))
            await self._node.turns.give_way()

    def _set_deadline(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        """Set the head's deadline once, at the first wait: most heads arrive without one."""
        if scope.deadline == math.inf:
            connection = self._open.of(sock)
            refused = connection is not None and connection.refused
            seconds = min(self._head_timeout, REFUSED_TIMEOUT) if refused else self._head_timeout
            scope.deadline = within(seconds)

    async def _enter(self, sock: socket.socket, scope: trio.CancelScope) -> str:
        """Read the PROXY header and do the TLS handshake; return the protocol that TLS chose."""
        self._set_deadline(sock, scope)
        try:
            with self._no_request_yet(scope):
                protocol = await self._preamble.enter(sock, self._node.turns.give_way)
        except PreambleError as error:
            raise _RejectedError(str(error), why=error.why) from None
        connection, client = self._open.of(sock), self._preamble.named_client(sock)
        if connection is not None and client:
            self._open.name(connection, client)
            if connection.refused:
                scope.deadline = min(scope.deadline, within(REFUSED_TIMEOUT))
        return protocol

    def _rest_of_request(
        self, sock: socket.socket, scope: trio.CancelScope
    ) -> AbstractContextManager[None]:
        """Around a wait for a request's body: the head's deadline and `_no_request_yet`."""
        self._set_deadline(sock, scope)
        return self._no_request_yet(scope)

    @contextmanager
    def _no_request_yet(self, scope: trio.CancelScope) -> Iterator[None]:
        """While the block waits, `drain` may cancel it."""
        if self._draining:
            raise _RejectedError("no request before the shutdown")
        self._silent[scope] = None
        try:
            yield
        finally:
            del self._silent[scope]


def _accept(listener: socket.socket, kind: tuple[int, int, int]) -> tuple[socket.socket, object]:
    # `listener.accept()` without the enums that its `family` and `type` are made into each time.
    descriptor, address = listener._accept()  # type: ignore[attr-defined]  # not in its stub
    return socket.socket(*kind, descriptor), address


def _pause_after(taken: float) -> float:
    """Seconds until a head is read again that has taken so many; with a random part."""
    return min(max(taken, _FIRST_PAUSE) * (1.0 + random()), _LONGEST_PAUSE)
