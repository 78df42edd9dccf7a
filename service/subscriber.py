"""The Trio client: subscribe to a server's channels and iterate over their events.

For users, tests, benchmarks and the command line. Speaks the Centrifugo JSON protocol through
trio-websocket; comes back by itself with full-jitter back-off, unless the server said to stay
away. Recovery of what was missed meanwhile is not part of it yet.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self
from urllib.parse import urlsplit

import msgspec
import trio
import trio_websocket

_PATH: Final = "/connection/websocket"
_PING_GRACE: Final = 10.0  # seconds a server's ping may be late, as in the SDKs
_BACKOFF_FIRST: Final = 0.5  # seconds; these two as in the SDKs
_BACKOFF_LAST: Final = 20.0

OnReconnect = Callable[[str, float], None]
"""Called before each reconnect with the reason and the delay in seconds."""


class SubscriberError(Exception):
    """The connection can't be made, or the server ended it for good."""


class SubscriptionError(SubscriberError):
    """The server refused a subscription; `code` is the protocol's error code."""

    def __init__(self, channel: str, code: int, message: str) -> None:
        super().__init__(f"cannot subscribe to {channel}: {code} {message}")
        self.code = code


class Event(msgspec.Struct, frozen=True):
    """One publication: `text` is its data as JSON text, `offset` 0 without history."""

    channel: str
    text: str
    offset: int = 0

    @property
    def data(self) -> object:
        """The decoded data."""
        return msgspec.json.decode(self.text)


class _Pub(msgspec.Struct):
    data: msgspec.Raw
    offset: int = 0


class _Push(msgspec.Struct):
    channel: str = ""
    pub: _Pub | None = None


class _Failure(msgspec.Struct):
    code: int
    message: str


class _Connected(msgspec.Struct):
    ping: float = 0


class _Reply(msgspec.Struct):
    id: int = 0
    error: _Failure | None = None
    connect: _Connected | None = None
    push: _Push | None = None


_decode: Final = msgspec.json.Decoder(_Reply).decode


class Subscriber:
    """An async iterator of events. Made and ended by `open_subscriber`."""

    def __init__(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. No deadline: there may never be one. Cancelled, no event is lost."""
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


@asynccontextmanager
async def open_subscriber(
    url: str,
    channels: Sequence[str],
    *,
    reconnect: bool = True,
    on_reconnect: OnReconnect | None = None,
    connect_timeout: float = 10.0,
    backoff: tuple[float, float] = (_BACKOFF_FIRST, _BACKOFF_LAST),
    buffer: int = 1_000,
) -> AsyncIterator[Subscriber]:
    """Subscribe for as long as the block lasts; inside it every channel is subscribed already.

    Args:
        url: The server's base, `http://host:port` or `https://...` (`ws`, `wss` work too).
        channels: What to hear.
        reconnect: Whether to come back after a lost connection; else the iteration ends.
        on_reconnect: Told before each attempt to come back.
        connect_timeout: Seconds for one attempt to connect and subscribe.
        backoff: Shortest and longest delay before an attempt, in seconds.
        buffer: Events that wait for the consumer. When full, the reader stops reading, and the
            server ends up cutting this client as slow (3008).

    Raises:
        SubscriberError: the first connection failed, or the server ended it for good.
        SubscriptionError: the server refused a channel.
    """
    send, receive = trio.open_memory_channel[Event](buffer)
    link = _Link(url, channels, send, connect_timeout)
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery, receive:
            await nursery.start(link.run, reconnect, on_reconnect, backoff)
            yield Subscriber(receive)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = _only_error(group)
        if error is None:
            raise
    if error is not None:
        raise error


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The error that our nursery wrapped; None if there are several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error


class _LostError(Exception):
    """A connection ended in a way that allows to come back."""


class _Link:
    """The connections, one after the other. Lives inside `open_subscriber`'s nursery."""

    def __init__(
        self,
        url: str,
        channels: Sequence[str],
        events: trio.MemorySendChannel[Event],
        timeout: float,
    ) -> None:
        self._url = websocket_url(url)
        self._channels = tuple(dict.fromkeys(channels))
        self._events = events
        self._timeout = timeout

    async def run(
        self,
        reconnect: bool,
        on_reconnect: OnReconnect | None,
        backoff: tuple[float, float],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Stay connected until cancelled, or until the server said to stay away."""
        started, attempts = False, 0
        async with self._events:
            while True:
                try:
                    async with self._connected() as (socket, ping):
                        if not started:
                            started = True
                            task_status.started()
                        attempts = 0
                        await self._read(socket, ping)
                except _LostError as lost:
                    if not started:
                        raise SubscriberError(str(lost)) from None
                    if not reconnect:
                        return
                    longest = min(backoff[1], backoff[0] * 2**attempts)
                    delay = random.uniform(0, longest)
                    attempts += 1
                    if on_reconnect is not None:
                        on_reconnect(str(lost), delay)
                    await trio.sleep(delay)

    @asynccontextmanager
    async def _connected(
        self,
    ) -> AsyncIterator[tuple[trio_websocket.WebSocketConnection, float]]:
        """A connection with every channel subscribed, and its ping interval."""
        try:
            async with trio_websocket.open_websocket_url(
                self._url, connect_timeout=self._timeout, disconnect_timeout=self._timeout
            ) as socket:
                with trio.fail_after(self._timeout):
                    ping = await self._subscribe(socket)
                yield socket, ping
        except trio_websocket.ConnectionClosed as closed:
            raise _lost(closed) from None
        except (trio_websocket.HandshakeError, trio.TooSlowError, OSError) as error:
            raise _LostError(f"cannot connect to {self._url}: {_reason(error)}") from None

    async def _subscribe(self, socket: trio_websocket.WebSocketConnection) -> float:
        """Connect and subscribe in one message; events that come early are kept in order."""
        commands: list[dict[str, object]] = [{"connect": {}, "id": 1}]
        for number, channel in enumerate(self._channels, 2):
            commands.append({"subscribe": {"channel": channel}, "id": number})
        await socket.send_message("\n".join(msgspec.json.encode(c).decode() for c in commands))
        waiting, ping = len(commands), 0.0
        while waiting:
            for reply in _replies(await socket.get_message()):
                if reply.error is not None:
                    name = self._channels[reply.id - 2] if reply.id > 1 else "the server"
                    raise SubscriptionError(name, reply.error.code, reply.error.message)
                if reply.connect is not None:
                    ping = reply.connect.ping
                waiting -= reply.id > 0
                await self._take(socket, reply)
        return ping

    async def _read(self, socket: trio_websocket.WebSocketConnection, ping: float) -> None:
        """Hand on events until the connection is lost; a missing ping is a lost one."""
        patience = ping + _PING_GRACE if ping else math.inf
        while True:
            with trio.move_on_after(patience) as waiting:
                message = await socket.get_message()
            if waiting.cancelled_caught:
                raise _LostError("no ping from the server")
            for reply in _replies(message):
                await self._take(socket, reply)

    async def _take(self, socket: trio_websocket.WebSocketConnection, reply: _Reply) -> None:
        if reply.push is not None and reply.push.pub is not None:
            pub = reply.push.pub
            await self._events.send(Event(reply.push.channel, bytes(pub.data).decode(), pub.offset))
        elif reply.id == 0 and reply.push is None:
            await socket.send_message("{}")


def websocket_url(url: str) -> str:
    """The Centrifugo endpoint of a server's base URL.

    Raises:
        SubscriberError: it is no http, https, ws or wss URL.
    """
    parts = urlsplit(url)
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.netloc:
        raise SubscriberError(f"not a server's URL: {url}")
    return f"{schemes[parts.scheme]}://{parts.netloc}{parts.path.rstrip('/')}{_PATH}"


def _replies(message: str | bytes) -> list[_Reply]:
    text = message if isinstance(message, str) else message.decode()
    return [_decode(line) for line in text.split("\n") if line]


def _lost(closed: trio_websocket.ConnectionClosed) -> Exception:
    """Whether to come back, by the close code's range (protocol, section 8.2)."""
    reason = closed.reason
    if reason is None:
        return _LostError("connection lost")
    text = f"disconnected: {reason.code} {reason.reason or reason.name}"
    if 3500 <= reason.code < 4000 or 4500 <= reason.code < 5000:
        return SubscriberError(text)
    return _LostError(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    if isinstance(error, trio_websocket.ConnectionRejected):
        return f"the server answered {error.status_code}"
    return str(error.__cause__ or error) or type(error).__name__
