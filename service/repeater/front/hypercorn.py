"""The hand-over of a connection to Hypercorn: the one module that knows Hypercorn's internals.

Hypercorn's minor version is pinned because of this module, which uses the per-connection
`TCPServer` (it expects a stream, so the bytes already read are put in front), `WorkerContext`,
`Config` and `wrap_app`. The tests send REST calls through all of them.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import trio
from hypercorn.config import Config
from hypercorn.protocol import h2
from hypercorn.protocol.h2 import BUFFER_LOW_WATER, StreamBuffer
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from repeater.front.raw_stream import RawStream
from repeater.front.tls import TLSSocket
from repeater.front.trusted_proxies import ForwardedApp, TrustedProxies
from repeater.log import get_logger
from repeater.transports.asgi import abort_connection
from repeater.transports.sockets import abort_socket

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from repeater.config import Settings

_log = get_logger("http")


_IDLE_TIMEOUT = 75.0  # seconds between two requests of a connection; nginx's default
_LINGER = 2.0  # seconds that a peer gets to read its last answer while it still sends
_LEFTOVER = 0.5  # seconds from a connection's end to the end of its tasks
_RECEIVE = 65_536


class BoundedBuffer(StreamBuffer):
    """The bytes that wait in one stream of HTTP/2 until its peer opens the window.

    Hypercorn's own buffer wakes its writer whenever few bytes were *taken*, even if the window is
    closed and none were; so it grows without a bound. This one wakes the writer when few bytes
    are left.
    """

    async def pop(self, max_length: int) -> bytes:
        """Take up to `max_length` bytes, the room in the window."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[: len(data)]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


h2.StreamBuffer = BoundedBuffer  # type: ignore[misc]


class HandedStream:
    """A Trio stream whose first bytes were already read. Has the methods that Hypercorn uses.

    It also ends connections, because Hypercorn cannot with quart-trio: closing a request's stream
    cancels the very call that would start Hypercorn's idle task or close the connection. So
    `send_eof` and `aclose` have no checkpoint before they take effect, and the reader, in
    `receive_some`, does the rest.
    """

    def __init__(self, stream: RawStream, received: bytes, idle_timeout: float) -> None:
        self._stream = stream
        self._received = received
        self._idle_timeout = idle_timeout
        self._waiting = trio.CancelScope()
        self._ended = False  # whether our side ended
        self._draining = False
        self._hurried = False  # ended by a shutdown, while no request was under way
        self._over = False  # the reader has returned the end
        self.scope = trio.CancelScope()
        """Surrounds everything that Hypercorn does for this connection."""
        self.is_idle: Callable[[], bool] = lambda: False
        self.socket = stream.socket

    def end_if_idle(self) -> None:
        """Make the reader check now: without a request under way it ends the connection."""
        self._draining = True
        self._hurried = self.is_idle()
        self._waiting.cancel()
        self._leave_nothing()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The bytes already read, then the socket's; `b""`, the end, after the idle timeout."""
        if self._received:
            await trio.lowlevel.checkpoint()
            received, self._received = self._received, b""
            return received
        received = b""
        try:
            received = await self._receive(max_bytes)
        finally:
            self._over = not received
            self._leave_nothing()
        return received

    def _leave_nothing(self) -> None:
        """Give everything a deadline once either side has ended the connection.

        Hypercorn leaves tasks behind: the pings to a peer that is gone, a reader paused by bytes
        that nothing will serve, a WebSocket whose peer hung up without a close frame. No answer is
        owed by then, since Quart cancels a request whose peer has ended; and a shutdown must not
        wait for such tasks.
        """
        seconds = _LEFTOVER
        if not self._draining and self.socket.fileno() >= 0:  # not reset by us
            seconds += _LINGER
        if self._ended or self._over:
            self.scope.deadline = min(self.scope.deadline, trio.current_time() + seconds)

    async def _receive(self, max_bytes: int | None) -> bytes:
        while not self._ended:
            with trio.CancelScope() as self._waiting:
                self._waiting.deadline = trio.current_time() + self._idle_timeout
                return bytes(await self._stream.receive_some(max_bytes))
            if self.is_idle():
                break
        if self._ended and not self._hurried:
            await self._linger()
        return b""

    async def _linger(self) -> None:
        """Read and discard until the peer hangs up, or had its time to read the last answer.

        A socket that is closed while an unwanted body still arrives (413) resets its peer, before
        the peer has read the answer.
        """
        with trio.move_on_after(_LINGER):
            try:
                while await self._stream.receive_some(_RECEIVE):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # The peer is gone already.

    async def send_all(self, data: bytes) -> None:
        """As `trio.SocketStream.send_all`."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """End our side; the reader ends the connection."""
        self._ended = True
        with contextlib.suppress(OSError):  # The peer is gone already.
            self.socket.shutdown(socket.SHUT_WR)
        self._waiting.cancel()
        self._leave_nothing()

    async def aclose(self) -> None:
        """As `trio.SocketStream.aclose`, as soon as the reader has returned the end."""
        await self.send_eof()
        if self._over:
            await self._stream.aclose()


class HandedTLSStream(HandedStream):
    """A handed stream with TLS; Hypercorn learns the scheme and the protocol from it."""

    def __init__(self, sock: TLSSocket, received: bytes, idle_timeout: float) -> None:
        stream = RawStream(sock)
        super().__init__(stream, received, idle_timeout)
        self._protocol = sock.selected_alpn_protocol()
        self.transport_stream = stream

    async def do_handshake(self) -> None:
        """Do nothing: `Preamble.enter` did the handshake."""
        await trio.lowlevel.checkpoint()

    def selected_alpn_protocol(self) -> str:
        """The protocol that the client chose; HTTP/1.1 if it chose none."""
        return self._protocol or "http/1.1"


class Handover:
    """Serves HTTP connections with Hypercorn. Lives inside the server; ended by `drain`."""

    def __init__(
        self, app: QuartTrio, settings: Settings, proxies: TrustedProxies | None = None
    ) -> None:
        self._proxies = proxies or TrustedProxies(())
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = None
        self._config.include_server_header = False
        # A back end publishes on one connection for ever; the limit guards against leaks elsewhere.
        self._config.keep_alive_max_requests = 2**31
        self._config.h11_max_incomplete_size = settings.head_limit
        self._config.websocket_max_message_size = settings.node_options().message_limit
        self._config.websocket_ping_interval = settings.node_options().ping_interval
        self._app = wrap_app(app, self._config.wsgi_max_body_size, "asgi")
        self._context = WorkerContext(None)
        self._streams: dict[HandedStream, None] = {}

    async def serve(self, sock: socket.socket, received: bytes) -> None:
        """Serve one connection until it ends. Owns the socket from here on.

        An error while serving is logged with its traceback and ends this connection only.
        """
        handed: HandedStream
        if isinstance(sock, TLSSocket):
            handed = HandedTLSStream(sock, received, _IDLE_TIMEOUT)
        else:
            handed = HandedStream(RawStream(sock), received, _IDLE_TIMEOUT)
        server = TCPServer(
            ForwardedApp(self._app, sock.getpeername(), self._proxies),
            self._config,
            self._context,
            ConnectionState({}),
            cast("trio.SSLStream[trio.SocketStream]", handed),
        )
        handed.is_idle = lambda: _is_idle(server)
        self._streams[handed] = None
        token = abort_connection.set(lambda: abort_socket(handed.socket))
        try:
            with handed.scope:
                await server.run()
        except Exception:
            # A failure of a request, or of Hypercorn, must not end other connections.
            _log.exception("an HTTP connection failed")
        finally:
            del self._streams[handed]
            abort_connection.reset(token)
            abort_socket(handed.socket)

    async def drain(self) -> None:
        """Let requests under way finish, and close idle connections."""
        await self._context.terminated.set()
        for handed in self._streams:
            handed.end_if_idle()


def _is_idle(server: TCPServer) -> bool:
    """Whether no request is under way on this connection."""
    protocol = server.protocol.protocol
    if isinstance(protocol, H11Protocol):
        return protocol.stream is None
    return not protocol.streams
