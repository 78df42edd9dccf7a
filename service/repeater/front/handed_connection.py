"""One connection that Hypercorn's protocols serve: its reading, its deadlines and its end.

Rule: every wait for the peer has a deadline that is set once, when the wait begins; bytes that
trickle in or out do not move it. Whoever ends the connection (`end`, `abort`) does not wait; the
reader does the rest.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import trio
from hypercorn.events import Closed, RawData
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from repeater.api.methods import LATE_BODY
from repeater.deadlines import within
from repeater.front.exchange import Fail, Requests
from repeater.front.tls import TLSSocket
from repeater.front.writer import Writer
from repeater.options import LimitOptions
from repeater.transports.asgi import abort_connection
from repeater.transports.sockets import abort_socket, discard, notice_silence

if TYPE_CHECKING:
    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import AppWrapper

    from repeater.front.served import Served
    from repeater.front.starts import ConnectionStarts
    from repeater.turns import Turns

Outcome = Literal["flood", "stalled", "lost"]
"""Why a connection, or one of its streams, was ended: frames that carry nothing, an answer that the
peer did not take in time, or a reset by the peer."""

IDLE_TIMEOUT: Final = 75.0  # seconds between two requests of a connection; nginx's default
_LINGER: Final = 2.0  # seconds that a peer gets to read its last answer while it still sends
_LEFTOVER: Final = 0.5  # seconds from a connection's end to the end of its tasks
_RECEIVE: Final = 4_096
_HELD: Final = 4_096  # bytes that wait behind a request under way; then TCP holds the peer back


class LinkOptions(msgspec.Struct, frozen=True):
    """Limits of a connection, in bytes and seconds."""

    head_limit: int
    head_timeout: float
    write_timeout: float
    ping_interval: float
    pong_timeout: float
    limits: LimitOptions
    """Frames of a WebSocket count as commands."""


class Link:
    """One connection. Lives inside `Handover.serve`; ended by its peer, by `end` or by `abort`."""

    def __init__(
        self,
        sock: socket.socket,
        received: bytes,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        options: LinkOptions,
        turns: Turns | None,
        starts: ConnectionStarts,
        count: Callable[[Outcome], None],
    ) -> None:
        """Serve a socket from which `received` was read already.

        It reads in the line `turns`, if there is one. In `starts` it waits for the turn to begin a
        request, or to reset a peer that does not read.
        """
        self.options = options
        self.config = config
        self.connection_state = ConnectionState({})
        self.count = count
        self.over = False
        """Whether the connection has ended: nothing is read any more."""
        self.draining = False
        self.requests: Requests
        self._socket = sock
        self._app = app
        self._context = context
        self._turns = turns
        self._starts = starts
        self._protocol: Served
        self._lingers = True  # whether the peer has time to read what was written last
        self._half_closed = False  # by the peer
        self._pending = bytearray(received)  # read, and not fed yet
        self._waiting = trio.CancelScope()
        self._until: dict[str, tuple[int, float]] = {}  # when the wait for this ends
        self._drained_at = math.inf
        self._idle_until = math.inf
        self._writer = Writer(sock, options.write_timeout, self._stall)

    # ---- what the protocols ask

    def stream_parts(self) -> tuple[Any, ...]:
        """Hypercorn's arguments for a stream, up to its `send`."""
        secure = isinstance(self._socket, TLSSocket)
        client = parse_socket_addr(self._socket.family, self._names[0])
        server = parse_socket_addr(self._socket.family, self._names[1])
        return self._app, self.config, self._context, self.requests, secure, client, server

    def protocol_parts(self) -> tuple[Any, ...]:
        """Hypercorn's arguments for a protocol."""
        app, config, context, tasks, secure, client, server = self.stream_parts()
        state = self.connection_state
        return app, config, context, tasks, state, secure, client, server, self._send

    async def give_way(self) -> None:
        """Let other tasks run if the readers' share of the loop's time is used up."""
        if self._turns is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._turns.give_way()

    def wake(self) -> None:
        """Make the reader look again at what there is to do."""
        self._waiting.cancel()

    def end(self, *, linger: bool = True) -> None:
        """End our side; the reader ends the connection. Idempotent."""
        if not self.over:
            self.over, self._lingers = True, linger
            with contextlib.suppress(OSError):  # The peer is gone already.
                self._socket.shutdown(socket.SHUT_WR)
            self.wake()

    def abort(self) -> None:
        """Reset the connection: everything that waits for it wakes. Idempotent."""
        self.over, self._lingers = True, False
        self._writer.close()
        abort_socket(self._socket)
        self.wake()

    def drain(self, idle_until: float = 0.0) -> None:
        """End the connection if nothing is under way; else when the answers are given.

        Until `idle_until` an idle HTTP/1 connection may still send a request.
        """
        self.draining = True
        self._drained_at = trio.current_time()
        self._idle_until = idle_until
        self.wake()

    # ---- its life

    async def serve(self, choose: Callable[[Link], Served], fail: Fail) -> None:
        """Serve the connection until it ends, with the protocol that `choose` makes.

        `fail` notes the failure of a request.
        """
        self._names = self._socket.getpeername(), self._socket.getsockname()
        # Streams have no pongs: TCP finds a peer that has vanished.
        notice_silence(self._socket, self.options.pong_timeout)
        token = abort_connection.set(self.abort)
        try:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    self.requests = Requests(nursery, fail, self._starts.next)
                    self._protocol = choose(self)
                    await self._protocol.initiate()
                    await self._read()
                    if self._lingers:
                        await self._linger()
                    await self._protocol.close()
                    # No answer is owed any more. A request that does not hear of its end is cut.
                    scope.deadline = trio.current_time() + _LEFTOVER
        finally:
            abort_connection.reset(token)
            abort_socket(self._socket)
            # Without these references no garbage collector is needed to free the connection.
            self._writer.close()
            del self._protocol, self.requests

    async def _read(self) -> None:
        """Read and feed the protocol until the connection is over.

        Each turn of the loop looks at everything anew, so `wake` is never lost.
        """
        protocol = self._protocol
        while not self.over:
            if protocol.resumable:
                await protocol.resume()
            elif self._pending and not protocol.full:
                await protocol.feed(self._take_step())
                await self.give_way()
            elif self._half_closed:
                if await protocol.half_close():
                    self.end(linger=False)
                else:
                    await self._wait()
            elif self.draining and await self._end_if_nothing_is_owed():
                return
            else:
                await self._receive()

    def _take_step(self) -> bytes:
        size = self._protocol.step
        step = bytes(self._pending[:size])
        del self._pending[:size]
        return step

    async def _end_if_nothing_is_owed(self) -> bool:
        """In a shutdown: end the connection unless an answer is under way."""
        protocol = self._protocol
        if protocol.stage[0] != "busy":
            if trio.current_time() < self._idle_until and not protocol.says_goodbye:
                return False
            await protocol.goodbye()
            self.end(linger=False)
        elif protocol.incomplete and trio.current_time() >= self._drained_at + LATE_BODY:
            await protocol.drop_bodies()
        return self.over

    async def _receive(self) -> None:
        """Wait for bytes, until woken, at most until the deadline of what is waited for."""
        if self._protocol.discards:
            self._pending.clear()
        if len(self._pending) >= _HELD:
            await self._wait()
            return
        deadline = self._deadline()
        data = None
        try:
            with trio.CancelScope(deadline=deadline) as self._waiting:
                data = await self._receive_some()
        except (OSError, trio.ClosedResourceError):
            if not self.over:
                self.count("lost")
            self.over, self._lingers = True, False
            return
        if data:
            self._pending += data
        elif data is not None:
            self._half_closed = True
        elif trio.current_time() >= deadline and not self.draining:
            self.end(linger=False)

    async def _receive_some(self) -> bytes:
        """Wait for bytes, and for a turn: what is discarded is read without another wait."""
        await self.give_way()
        while True:
            try:
                return self._socket.recv(_RECEIVE)
            except BlockingIOError:
                if self._socket.fileno() < 0:  # Trio would raise ValueError, a bug of ours.
                    raise trio.ClosedResourceError from None
                await trio.lowlevel.wait_readable(self._socket)

    async def _wait(self) -> None:
        """Wait until woken. No deadline: answers are under way, and these have deadlines."""
        with trio.CancelScope() as self._waiting:
            await trio.sleep_forever()

    def _deadline(self) -> float:
        """When the present wait ends: set as it begins, however many bytes come."""
        name, number = self._protocol.stage
        if name == "busy":
            late = self.draining and self._protocol.incomplete
            return self._drained_at + LATE_BODY if late else math.inf
        if self._until.get(name, (-1, 0.0))[0] != number:
            seconds = IDLE_TIMEOUT if name == "idle" else self.options.head_timeout
            self._until[name] = number, within(seconds)
        return min(self._until[name][1], self._idle_until if self.draining else math.inf)

    async def _linger(self) -> None:
        """Read and discard until the peer hangs up, or had its time to read the last answer.

        A socket that is closed while an unwanted body still arrives (413) resets its peer, before
        the peer has read the answer.
        """
        if self.draining and trio.current_time() >= self._idle_until:
            return
        until = within(_LINGER)
        if self.draining:
            until = min(until, self._idle_until)
        with trio.move_on_at(until) as self._waiting:  # a shutdown ends it, too
            try:
                await discard(self._socket)
            except (OSError, trio.ClosedResourceError):
                return  # The peer is gone already.

    # ---- writing

    async def _send(self, event: object) -> None:
        """What Hypercorn's protocol sends: bytes, or that the connection is to end."""
        if isinstance(event, RawData):
            await self.write(event.data)
        elif isinstance(event, Closed):
            self.end()

    async def write(self, data: bytes) -> None:
        """As `Writer.write`; end the connection if its peer has gone: no request begins then."""
        await self._writer.write(data)
        if self._writer.closed and not self.over:
            self.count("lost")
            self.end(linger=False)

    async def _stall(self) -> None:
        try:
            await self._starts.later()
        finally:  # if cancelled, too: half an answer may have been written
            if self._socket.fileno() >= 0:
                self.count("stalled")
                self.abort()
