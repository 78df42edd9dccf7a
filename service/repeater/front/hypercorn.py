"""The hand-over of a connection to Hypercorn, and what all such connections share.

Hypercorn's minor version is pinned because of this module and its neighbours `hypercorn_http1`,
`hypercorn_http2` and `hypercorn_websocket`: they use its `H11Protocol`, `HTTPStream`, `WSStream`,
`WorkerContext`, `Config` and `wrap_app`. Its connections (`TCPServer`) are not used: they have no
deadlines for a peer that trickles. The tests send REST calls through all of it.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app
from quart.wrappers import base as quart

from repeater.front.counted_app import CountedApp
from repeater.front.handed_connection import Link, LinkOptions, Outcome
from repeater.front.hypercorn_http1 import HTTP1
from repeater.front.hypercorn_http2 import HTTP2
from repeater.front.path_prefix import PrefixedApp
from repeater.front.starts import ConnectionStarts, Starts
from repeater.front.tls import HTTP2 as ALPN_HTTP2
from repeater.front.tls import TLSSocket
from repeater.front.trusted_proxies import ForwardedApp, TrustedProxies
from repeater.log import get_logger

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper
    from quart_trio import QuartTrio

    from repeater.clients.refusals import Refusals
    from repeater.config import Settings
    from repeater.failures import Failures
    from repeater.front.open_connections import OpenConnection
    from repeater.front.served import Served
    from repeater.turns import Turns

_log = get_logger("http")

# The last one is of Quart's newer versions; older ones raise nothing of their own.
_GONE: Final = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    ConnectionError,
    getattr(quart, "ClientDisconnectedError", ConnectionError),
)
_PAUSE: Final = 10.0  # seconds between two lines about floods, whatever their number


class HandoverStatistics(msgspec.Struct, frozen=True):
    """Connections served behind Hypercorn now, and those that were ended, by reason."""

    open: int
    flood: int
    stalled: int
    lost: int


class Handover:
    """Serves HTTP connections with Hypercorn. Lives inside the server; ended by `drain`."""

    def __init__(
        self,
        app: QuartTrio,
        settings: Settings,
        proxies: TrustedProxies | None = None,
        *,
        turns: Turns | None = None,
        failures: Failures | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        """Take the node's `turns`, `failures` and `refusals`; without them, others have to wait for
        a reader, a failure is logged each time, and a path without the prefix is not noted."""
        options = settings.node_options()
        self._proxies = proxies or TrustedProxies(())
        self._turns = turns
        self._failures = failures
        self._refusals = refusals
        self._options = LinkOptions(
            head_limit=settings.head_limit,
            head_timeout=settings.head_timeout,
            write_timeout=options.write_timeout,
            ping_interval=options.ping_interval,
            pong_timeout=options.pong_timeout,
            limits=options.limits,
        )
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = None
        self._config.include_server_header = False
        # A back end publishes on one connection for ever; the limit guards against leaks elsewhere.
        self._config.keep_alive_max_requests = 2**31
        self._config.h11_max_incomplete_size = settings.head_limit
        self._config.websocket_max_message_size = options.message_limit
        self._config.websocket_ping_interval = options.ping_interval
        self._app = wrap_app(app, self._config.wsgi_max_body_size, "asgi")
        self._prefix = settings.path_prefix
        self._context = WorkerContext(None)
        self._starts = Starts()
        self._links: dict[Link, None] = {}
        self._draining = False
        self._idle_until = 0.0
        self._ended: Counter[Outcome] = Counter()
        self._told = -_PAUSE

    def statistics(self) -> HandoverStatistics:
        """A snapshot of the counters."""
        ended = self._ended
        return HandoverStatistics(len(self._links), ended["flood"], ended["stalled"], ended["lost"])

    async def serve(
        self, sock: socket.socket, received: bytes, connection: OpenConnection | None = None
    ) -> None:
        """Serve one connection until it ends. Owns the socket from here on.

        A failure while serving is noted and ends this connection only.

        Raises:
            OSError: the peer is gone already.
        """
        app: AppWrapper = self._app
        if connection is not None:
            app = CountedApp(app, connection)
        if self._prefix:
            app = PrefixedApp(  # type: ignore[assignment]  # called by position
                app, self._prefix, lambda: self._refusals
            )
        app = ForwardedApp(app, sock.getpeername(), self._proxies)
        link = Link(
            sock,
            received,
            app,
            self._config,
            self._context,
            self._options,
            self._turns,
            ConnectionStarts(self._starts, connection),
            self._count,
        )
        del received  # this frame lives as long as the connection
        self._links[link] = None
        if self._draining:
            link.drain(self._idle_until)
        try:
            await link.serve(_choose(sock), self._fail)
        except Exception as error:
            # A failure of Hypercorn, or of ours, must not end other connections.
            self._fail(error)
        finally:
            del self._links[link]

    async def drain(self, patience: float = 0.0) -> None:
        """Let requests under way finish, and end the other connections. Idempotent.

        Args:
            patience: Seconds for which idle HTTP/1 connections may still send a request.
        """
        if self._draining:
            return
        self._draining = True
        self._idle_until = trio.current_time() + patience
        await self._context.terminated.set()
        for link in tuple(self._links):
            link.drain(self._idle_until)

    def _count(self, outcome: Outcome) -> None:
        """Count a connection that was ended. A flood is one line, at most one a second."""
        self._ended[outcome] += 1
        if outcome != "flood":
            _log.debug("an HTTP connection ended", reason=outcome)
            return
        now = trio.current_time()
        if now - self._told >= _PAUSE:
            self._told = now
            _log.warning("HTTP/2 connections closed for a flood", so_far=self._ended[outcome])

    def _fail(self, error: BaseException) -> None:
        """Note a failure with its traceback; a peer that has gone is not a failure."""
        if _is_gone(error):
            self._count("lost")
        elif self._failures is not None:
            self._failures.note("http", error)
        else:
            _log.error("an HTTP connection failed", exc_info=error)


def _choose(sock: socket.socket) -> Callable[[Link], Served]:
    """HTTP/2 only if TLS negotiated it, whatever the first bytes say."""
    if isinstance(sock, TLSSocket) and sock.selected_alpn_protocol() == ALPN_HTTP2:
        return HTTP2
    return HTTP1


def _is_gone(error: BaseException) -> bool:
    """Whether an error says nothing but that the peer has gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_gone(one) for one in error.exceptions)
    if isinstance(error, OSError) and error.errno == errno.ENOTCONN:
        return True  # of `getpeername`, if the reset came while the head was read
    return isinstance(error, _GONE)
