"""The Trio client: subscribe to a server's channels and iterate over their events.

For users, tests, benchmarks and the command line. The client speaks the Centrifugo JSON protocol
through trio-websocket. It reconnects by itself with full-jitter back-off, unless the server told
it not to. Then it recovers missed events from the channels' history.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import trio

from repeater.subscriber.link import Event, Hooks, Link
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
    reconnect: bool = True,
    on_reconnect: OnReconnect | None = None,
    on_gap: OnGap | None = None,
    connect_timeout: float = 10.0,
    backoff: tuple[float, float] = _BACKOFF,
    buffer: int = 1_000,
) -> AsyncIterator[Subscriber]:
    """Subscribe for as long as the block lasts. When the block begins, all channels are subscribed.

    Args:
        url: The server's base, `http://host:port` or `https://...` (`ws`, `wss` work too).
        channels: The names of the channels.
        get_token: Returns a token for each connect; without it the connection is anonymous.
        reconnect: Whether to reconnect after a lost connection; otherwise the iteration ends.
        on_reconnect: Called before each attempt to reconnect.
        on_gap: Called when this client has lost events of an interruption: the history does not
            hold them any more, or the channel has no history that the client may recover from.
        connect_timeout: Seconds for one attempt to connect and subscribe.
        backoff: Shortest and longest delay before an attempt, in seconds.
        buffer: Number of events that may wait for the consumer. When the buffer is full, the
            client stops reading, and the server at some point cuts the client as slow (3008). The
            client then reconnects and recovers.

    Raises:
        SubscriberError: the first connection failed, or the server ended it for good.
        SubscriptionError: the server refused a channel, or ended its subscription.
    """
    send, receive = trio.open_memory_channel[Event](buffer)
    link = Link(url, channels, send, connect_timeout, Hooks(on_reconnect, on_gap, get_token))
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery, receive:
            await nursery.start(link.run, reconnect, backoff)
            yield Subscriber(receive)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = _only_error(group)
        if error is None:
            raise
    if error is not None:
        raise error


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The single error in a nursery's group; None if there are several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error
