"""The Trio client: subscribe to a server's channels and iterate over their events.

For users, tests, benchmarks and the command line. The client speaks the Centrifugo JSON protocol
through trio-websocket. It reconnects by itself with full-jitter back-off, unless the server told
it not to. Then it recovers missed events from the channels' history.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import trio

from repeater.errors import open_service_nursery
from repeater.subscriber.link import Event, Hooks, Link, Way
from repeater.subscriber.wire import SubscriberError, SubscriptionError, websocket_url

__all__ = [
    "Event",
    "Subscriber",
    "SubscriberError",
    "SubscriptionError",
    "open_subscriber",
    "websocket_url",
]

_BACKOFF: Final = (0.5, 20.0)  # seconds; as in the SDKs

OnReconnect = Callable[[str, float], None]
"""Called before each reconnect with the reason and the delay in seconds."""

OnGap = Callable[[str], None]
"""Called with a channel's name when its events of an interruption could not be recovered."""

GetToken = Callable[[], Awaitable[str]]
"""Called before each connect; returns a connection token."""


GetSubscriptionToken = Callable[[str], Awaitable[str]]
"""Called before each subscribe with the channel's name; returns a subscription token, or an empty
text for a channel that needs none."""


class Subscriber:
    """An async iterator of events. Made and ended by `open_subscriber`."""

    def __init__(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event. Cancelled, no event is lost.

        No deadline: a channel may never get another event.
        """
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


@asynccontextmanager
async def open_subscriber(
    url: str,
    channels: Sequence[str],
    *,
    get_token: GetToken | None = None,
    get_subscription_token: GetSubscriptionToken | None = None,
    reconnect: bool = True,
    on_reconnect: OnReconnect | None = None,
    on_gap: OnGap | None = None,
    connect_timeout: float = 10.0,
    backoff: tuple[float, float] = _BACKOFF,
    buffer: int = 1_000,
    ssl_context: ssl.SSLContext | None = None,
    host: str = "",
    unix_socket: str = "",
    message_limit: int = 16_777_216,
) -> AsyncIterator[Subscriber]:
    """Subscribe for as long as the block lasts. When the block begins, all channels are subscribed.

    Args:
        url: The server's base, `http://host:port` or `https://...` (`ws`, `wss` work too).
        channels: The names of the channels.
        get_token: Returns a token for each connect; without it the connection is anonymous. A call
            may take as long as `connect_timeout`. An error of this function, or of one of the
            next three, ends the block as it is.
        get_subscription_token: Returns a token for a channel, before each subscribe. While a
            connection is made, its calls count for `connect_timeout`.
        on_reconnect: Called before each attempt to reconnect.
        on_gap: Called when this client has lost events of an interruption: the history does not
            hold them any more, or the channel has no history that the client may recover from.
        reconnect: Whether to reconnect after a lost connection; otherwise the iteration ends.
        connect_timeout: Seconds for one attempt to connect and subscribe.
        backoff: Shortest and longest delay before an attempt, in seconds.
        buffer: Number of events that may wait for the consumer. When the buffer is full, the
            client stops reading, and the server at some point cuts the client as slow (3008). The
            client then reconnects and recovers.
        ssl_context: Verifies the server's certificate, for `https`. By default the authorities
            that Python trusts do.
        host: The header `Host`, if the server is to be asked for by another name than the URL's.
        unix_socket: The path of the Unix socket to connect to, in place of the URL's host.
        message_limit: The largest message to take, in bytes. It must be above the server's
            `outbox_limit` (1 MiB by default); a larger message ends the subscriber (1009).

    Raises:
        SubscriberError: the first connection failed, or the server ended it for good.
        SubscriptionError: the server refused the connection or a channel, or ended a subscription.

    An error of the block comes out as it is (see `repeater.errors.open_service_nursery`).
    """
    send, receive = trio.open_memory_channel[Event](buffer)
    hooks = Hooks(on_reconnect, on_gap, get_token, get_subscription_token)
    way = Way(ssl_context, host, unix_socket)
    link = Link(url, channels, send, connect_timeout, hooks, way, message_limit)
    try:
        async with open_service_nursery() as nursery:
            # Not `async with`: its checkpoint would put a Cancelled in the place of an error.
            with receive:
                await nursery.start(link.run, reconnect, backoff)
                yield Subscriber(receive)
    except BaseExceptionGroup as group:
        # The link is the nursery's one task: of its errors no caller expects a group.
        if link.failure is None or len(group.exceptions) > 1:
            raise
    else:
        return
    try:
        raise link.failure
    finally:
        link.failure = None  # its traceback refers to this frame
