"""The connections of one subscriber, one after the other, and the state that they share.

After a lost connection every channel is subscribed from its last position, so missed events come
before new ones. Rule 1: an event is handed to the consumer before its position is stored. So an
event whose hand-over was cancelled is requested again.
"""

from __future__ import annotations

import json
import math
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import msgspec
import trio
import trio_websocket

from repeater.errors import open_service_nursery
from repeater.subscriber.wire import (
    Position,
    Pub,
    Push,
    Reply,
    SubscriberError,
    SubscriptionError,
    connect_command,
    messages,
    replies,
    stays_away,
    subscribe_command,
    websocket_url,
)

_PING_GRACE: Final = 10.0  # seconds by which a server's ping may be late, as in the SDKs
_STABLE: Final = 5.0  # seconds after which a connection counts as a good one
_RESUBSCRIBE: Final = 2_500  # unsubscribe codes from here on ask the client to subscribe again
_TOKEN_EXPIRED: Final = 109

_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Event(msgspec.Struct, frozen=True):
    """One publication: `text` is its data as JSON text, `offset` 0 without history."""

    channel: str
    text: str
    offset: int = 0

    @property
    def data(self) -> object:
        """The decoded data."""
        try:
            return msgspec.json.decode(self.text)
        except msgspec.DecodeError:
            return json.loads(self.text)  # which takes half a surrogate pair


class LostError(Exception):
    """A connection ended in a way that allows the client to reconnect."""


class Hooks(msgspec.Struct, frozen=True):
    """The user's callbacks."""

    on_reconnect: Callable[[str, float], None] | None = None
    on_gap: Callable[[str], None] | None = None
    get_token: Callable[[], Awaitable[str]] | None = None
    get_subscription_token: Callable[[str], Awaitable[str]] | None = None


class Way(msgspec.Struct, frozen=True):
    """How to reach the server, other than by its URL alone."""

    ssl_context: ssl.SSLContext | None = None
    host: str = ""
    """The header `Host`; empty for the URL's host and port."""
    unix_socket: str = ""
    """The path to connect to; empty for the URL's host and port."""


class Link:
    """Lives inside `open_subscriber`'s nursery, and ends with it."""

    def __init__(
        self,
        url: str,
        channels: Sequence[str],
        events: trio.MemorySendChannel[Event],
        timeout: float,
        hooks: Hooks,
        way: Way,
        message_limit: int,
    ) -> None:
        self.failure: BaseException | None = None
        """What `run` raised, other than that it was cancelled."""
        self._way = way
        self._message_limit = message_limit
        self._url = websocket_url(url)
        self._channels = tuple(dict.fromkeys(channels))
        self._events = events
        self._timeout = timeout
        self._hooks = hooks
        self._positions: dict[str, Position] = {}
        self._asked: dict[int, str] = {}  # channels of unanswered subscribe commands, by number
        self._heard: set[str] = set()
        self._number = 0
        self._since = math.inf  # when the last connection was made
        self._delivered = False

    async def run(
        self,
        reconnect: bool,
        backoff: tuple[float, float],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Stay connected until cancelled, or until the server tells the client to stay away."""
        try:
            async with open_service_nursery() as readers:
                await self._stay_connected(readers, reconnect, backoff, task_status)
        except trio.Cancelled:
            raise
        except BaseException as error:
            # The channel stays open: the iteration is cancelled, and does not end as if all
            # had been well.
            self.failure = error
            raise
        self._events.close()

    async def _stay_connected(
        self,
        readers: trio.Nursery,
        reconnect: bool,
        backoff: tuple[float, float],
        task_status: trio.TaskStatus[None],
    ) -> None:
        started, attempts = False, 0
        while True:
            try:
                async with self._connected(readers) as (socket, ping):
                    if not started:
                        started = True
                        task_status.started()
                    await self._read(socket, ping)
            except LostError as lost:
                if not started:
                    raise SubscriberError(str(lost)) from None
                if not reconnect:
                    return
                if self._was_stable():
                    attempts = 0
                delay = random.uniform(0, min(backoff[1], backoff[0] * 2**attempts))
                attempts = min(attempts + 1, 30)
                if self._hooks.on_reconnect is not None:
                    self._hooks.on_reconnect(str(lost), delay)
                await trio.sleep(delay)

    def _was_stable(self) -> bool:
        """Whether the connection that was just lost delivered something, or lived for a while.

        Else the pauses grow: a server that ends each new connection at once is not helped by one
        that comes back at once.
        """
        return self._delivered or trio.current_time() - self._since >= _STABLE

    @asynccontextmanager
    async def _connected(
        self, readers: trio.Nursery
    ) -> AsyncIterator[tuple[trio_websocket.WebSocketConnection, float]]:
        """Open a connection with every channel subscribed; yields it and its ping interval.

        Closes the stream, because the library leaves it open if the server closes first.
        Errors of the user's own calls pass: only what opens the connection is "cannot connect".
        """
        self._since, self._delivered = math.inf, False
        with trio.move_on_after(self._timeout) as connecting:
            token = "" if self._hooks.get_token is None else await self._hooks.get_token()
            async with await self._open_stream() as stream:
                try:
                    socket = await self._shake_hands(readers, stream)
                    ping = await self._subscribe(socket, token)
                    connecting.deadline = math.inf
                    self._since = trio.current_time()
                    yield socket, ping
                except trio_websocket.ConnectionClosed as closed:
                    raise _lost(closed) from None
                with trio.move_on_after(self._timeout):
                    await socket.aclose()
        if connecting.cancelled_caught:
            raise self._no_connection("no answer in time")

    async def _open_stream(self) -> _Stream:
        parts = urlsplit(self._url)
        host, port = parts.hostname or "", parts.port
        try:
            if self._way.unix_socket:
                return await trio.open_unix_socket(self._way.unix_socket)
            if parts.scheme != "wss":
                return await trio.open_tcp_stream(host, port or 80)
            return await trio.open_ssl_over_tcp_stream(
                host, port or 443, https_compatible=True, ssl_context=self._way.ssl_context
            )
        except OSError as error:
            raise self._no_connection(_reason(error)) from None

    async def _shake_hands(
        self, readers: trio.Nursery, stream: _Stream
    ) -> trio_websocket.WebSocketConnection:
        try:
            if isinstance(stream, trio.SSLStream):
                # Left to the library's reader, a failure here would not be told before the timeout.
                await stream.do_handshake()
            host, resource = _host_and_resource(self._url)
            return await trio_websocket.wrap_client_stream(
                readers,
                stream,
                self._way.host or host,
                resource,
                max_message_size=self._message_limit,
            )
        except (trio_websocket.HandshakeError, trio.BrokenResourceError) as error:
            raise self._no_connection(_reason(error)) from None

    def _no_connection(self, reason: str) -> LostError:
        return LostError(f"cannot connect to {self._url}: {reason}")

    async def _subscribe(self, socket: trio_websocket.WebSocketConnection, token: str) -> float:
        """Send connect and subscribe commands, and wait for all the replies."""
        self._asked.clear()
        commands = [connect_command(self._next(), token)]
        commands += [await self._ask(channel) for channel in self._channels]
        for message in messages(commands):
            await socket.send_message(message)
        ping: float | None = None
        while ping is None or self._asked:
            for reply in replies(await socket.get_message()):
                if reply.connect is not None:
                    ping = reply.connect.ping
                await self._take(socket, reply)
        return ping

    async def _ask(self, channel: str) -> str:
        ask = self._hooks.get_subscription_token
        token = "" if ask is None else await ask(channel)
        number = self._next()
        self._asked[number] = channel
        return subscribe_command(number, channel, self._positions.get(channel), token)

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _read(self, socket: trio_websocket.WebSocketConnection, ping: float) -> None:
        """Hand on events until the connection is lost. A missing ping means that it is lost."""
        patience = ping + _PING_GRACE if ping else math.inf
        while True:
            with trio.move_on_after(patience) as waiting:
                message = await socket.get_message()
            if waiting.cancelled_caught:
                raise LostError("no ping from the server")
            for reply in replies(message):
                await self._take(socket, reply)

    async def _take(self, socket: trio_websocket.WebSocketConnection, reply: Reply) -> None:
        if reply.push is not None:
            await self._pushed(socket, reply.push)
        elif reply.id:
            await self._answered(reply)
        else:
            await socket.send_message("{}")  # the answer to the server's ping

    async def _pushed(self, socket: trio_websocket.WebSocketConnection, push: Push) -> None:
        if push.pub is not None:
            await self._hand_on(push.channel, push.pub)
        elif push.unsubscribe is not None:
            if push.unsubscribe.code < _RESUBSCRIBE:
                raise SubscriptionError(
                    push.channel, push.unsubscribe.code, push.unsubscribe.reason
                )
            await socket.send_message(await self._ask(push.channel))

    async def _answered(self, reply: Reply) -> None:
        channel = self._asked.pop(reply.id, "")
        if reply.error is not None:
            if reply.error.temporary or reply.error.code == _TOKEN_EXPIRED:
                raise LostError(f"{reply.error.code} {reply.error.message}")
            raise SubscriptionError(channel, reply.error.code, reply.error.message)
        if reply.subscribe is None:
            return
        if reply.subscribe.recoverable:
            self._positions[channel] = Position(reply.subscribe.offset, reply.subscribe.epoch)
        interrupted = channel in self._heard and not reply.subscribe.recovered
        self._heard.add(channel)
        if interrupted and self._hooks.on_gap is not None:
            self._hooks.on_gap(channel)
        for pub in reply.subscribe.publications:
            await self._hand_on(channel, pub)

    async def _hand_on(self, channel: str, pub: Pub) -> None:
        await self._events.send(Event(channel, bytes(pub.data).decode(), pub.offset))
        self._delivered = True
        position = self._positions.get(channel)
        if pub.offset and position is not None:
            self._positions[channel] = Position(pub.offset, position.epoch)


def _host_and_resource(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2], parts.path


def _lost(closed: trio_websocket.ConnectionClosed) -> Exception:
    """The error for a closed connection: its class says whether to reconnect, by the code."""
    reason = closed.reason
    if reason is None:
        return LostError("connection lost")
    text = f"disconnected: {reason.code} {reason.reason or reason.name}"
    return SubscriberError(text) if stays_away(reason.code) else LostError(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, trio_websocket.ConnectionRejected):
        return f"the server answered {error.status_code}"
    cause: BaseException | None = error
    while cause is not None:
        # Trio tells of each address that it tried in a group behind its error.
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
        cause = error.__cause__
    if isinstance(error, ssl.SSLError):  # an OSError whose number is OpenSSL's
        return str(error)
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)  # the rest is the address, which the caller names
    return str(error) or type(error).__name__
