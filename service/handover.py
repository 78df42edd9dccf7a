"""The hand-over of a connection to Hypercorn: the one module that knows its insides.

Hypercorn's minor version is pinned for this module's sake. It uses the per-connection `TCPServer`
(which expects a stream, so the bytes already read are put in front), `WorkerContext`, `Config` and
`wrap_app`; the tests talk REST through it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import trio
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from service.log import get_logger
from service.transports.asgi import abort_connection
from service.transports.websocket import abort_socket

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from service.config import Settings

_log = get_logger("http")


_IDLE_TIMEOUT = 75.0  # seconds between two requests of a connection; nginx's default
_LINGER = 2.0  # seconds that a peer gets to read its last answer while it still sends
_RECEIVE = 65_536


class HandedStream:
    """A Trio stream whose first bytes were already read. Has the methods that Hypercorn uses.

    It also ends connections that wait for their next request. Hypercorn would, but with quart-trio
    it loses its idle task: closing a request's stream cancels the very call that starts it.
    """

    def __init__(self, stream: trio.SocketStream, received: bytes, idle_timeout: float) -> None:
        self._stream = stream
        self._received = received
        self._idle_timeout = idle_timeout
        self._waiting = trio.CancelScope()
        self._closing = trio.Lock()
        self._over = False  # nothing more is to be read, or nobody to be waited for
        self.is_idle: Callable[[], bool] = lambda: False
        self.socket = stream.socket

    def end_if_idle(self) -> None:
        """Have the reader look now whether a request is under way, and end it if not."""
        self._over = self._over or self.is_idle()
        self._waiting.cancel()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The bytes already read, then the socket's; nothing (the end) once idle for too long."""
        if self._received:
            await trio.lowlevel.checkpoint()
            received, self._received = self._received, b""
            return received
        while not self._over:
            with trio.CancelScope() as self._waiting:
                self._waiting.deadline = trio.current_time() + self._idle_timeout
                received = bytes(await self._stream.receive_some(max_bytes))
                self._over = not received
                return received
            self._over = self._over or self.is_idle()
        return b""

    async def send_all(self, data: bytes) -> None:
        """As `trio.SocketStream.send_all`."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """As `trio.SocketStream.send_eof`."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close it, as soon as the peer has hung up or had its time to read the last answer.

        Closed at once, with a body on its way that nobody wants (413), the peer would be reset
        before it saw why.
        """
        async with self._closing:
            if not self._over:
                self._over = True
                self._waiting.cancel()  # the reader ends, and this reads in its place
                await self._linger()
            await self._stream.aclose()

    async def _linger(self) -> None:
        with trio.move_on_after(_LINGER):
            try:
                while await self._stream.receive_some(_RECEIVE):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # It is gone already.


class Handover:
    """Serves HTTP connections with Hypercorn. Lives inside the server; ended by `drain`."""

    def __init__(self, app: QuartTrio, settings: Settings) -> None:
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = None
        self._config.include_server_header = False
        # A back end publishes on one connection for ever; the limit guards against leaks elsewhere.
        self._config.keep_alive_max_requests = 2**31
        self._config.h11_max_incomplete_size = settings.head_limit
        self._config.websocket_max_message_size = settings.node_options().message_limit
        self._config.websocket_ping_interval = settings.ping_interval
        self._app = wrap_app(app, self._config.wsgi_max_body_size, "asgi")
        self._context = WorkerContext(None)
        self._streams: dict[HandedStream, None] = {}

    async def serve(self, sock: socket.socket, received: bytes) -> None:
        """Serve one connection until it ends. Owns the socket from here on.

        An error in it ends this connection only: it is logged with its traceback.
        """
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        handed = HandedStream(stream, received, _IDLE_TIMEOUT)
        server = TCPServer(
            self._app,
            self._config,
            self._context,
            ConnectionState({}),
            cast("trio.SSLStream[trio.SocketStream]", handed),
        )
        handed.is_idle = lambda: _is_idle(server)
        self._streams[handed] = None
        token = abort_connection.set(lambda: abort_socket(stream.socket))
        try:
            await server.run()
        except Exception:
            # A request's failure, or Hypercorn's, is not the other connections' trouble.
            _log.exception("an HTTP connection failed")
        finally:
            del self._streams[handed]
            abort_connection.reset(token)
            abort_socket(stream.socket)

    async def drain(self) -> None:
        """Let requests under way finish, and close connections that are idle."""
        await self._context.terminated.set()
        for handed in self._streams:
            handed.end_if_idle()


def _is_idle(server: TCPServer) -> bool:
    """Whether no request is under way on this connection."""
    protocol = server.protocol.protocol
    if isinstance(protocol, H11Protocol):
        return protocol.stream is None
    return not protocol.streams
