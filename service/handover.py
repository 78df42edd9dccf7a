"""The hand-over of a connection to Hypercorn: the one module that knows its insides.

Hypercorn's minor version is pinned for this module's sake. It uses the per-connection `TCPServer`
(which expects a stream, so the bytes already read are put in front), `WorkerContext`, `Config` and
`wrap_app`; the tests talk REST through it.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, cast

import trio
from hypercorn.config import Config
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


class HandedStream:
    """A Trio stream whose first bytes were already read. Has the methods that Hypercorn uses."""

    def __init__(self, stream: trio.SocketStream, received: bytes) -> None:
        self._stream = stream
        self._received = received
        self.socket = stream.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The bytes already read, then the socket's."""
        if self._received:
            await trio.lowlevel.checkpoint()
            received, self._received = self._received, b""
            return received
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        """As `trio.SocketStream.send_all`."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """As `trio.SocketStream.send_eof`."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """As `trio.SocketStream.aclose`."""
        await self._stream.aclose()


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

    async def serve(self, sock: socket.socket, received: bytes) -> None:
        """Serve one connection until it ends. Owns the socket from here on.

        An error in it ends this connection only: it is logged with its traceback.
        """
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        handed = HandedStream(stream, received)
        token = abort_connection.set(lambda: abort_socket(stream.socket))
        try:
            await TCPServer(
                self._app,
                self._config,
                self._context,
                ConnectionState({}),
                cast("trio.SSLStream[trio.SocketStream]", handed),
            ).run()
        except Exception:
            # A request's failure, or Hypercorn's, is not the other connections' trouble.
            _log.exception("an HTTP connection failed")
        finally:
            abort_connection.reset(token)
            abort_socket(stream.socket)

    async def drain(self) -> None:
        """Let requests under way finish, and close connections that are idle."""
        await self._context.terminated.set()
