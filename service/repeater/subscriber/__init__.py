"""The Trio client: subscribe to a server's channels and iterate over their events.

For users, tests, benchmarks and the command line. Speaks the Centrifugo JSON protocol through
trio-websocket; comes back by itself with full-jitter back-off, unless the server said to stay
away, and gets what was published meanwhile from the channels' history.
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
"""Asked for a connection token before each connect."""


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
    get_token: GetToken | None = None,
    reconnect: bool = True,
    on_reconnect: OnReconnect | None = None,
    on_gap: OnGap | None = None,
    connect_timeout: float = 10.0,
    backoff: tuple[float, float] = _BACKOFF,
    buffer: int = 1_000,
) -> AsyncIterator[Subscriber]:
    """Subscribe for as long as the block lasts; inside it every channel is subscribed already.

    Args:
        url: The server's base, `http://host:port` or `https://...` (`ws`, `wss` work too).
        channels: What to hear.
        get_token: Who to connect as; nobody in particular without it.
        reconnect: Whether to come back after a lost connection; else the iteration ends.
        on_reconnect: Told before each attempt to come back.
        on_gap: Told when events of an interruption are lost to this client: they are no longer
            in the history, or the channel has none that it may recover from.
        connect_timeout: Seconds for one attempt to connect and subscribe.
        backoff: Shortest and longest delay before an attempt, in seconds.
        buffer: Events that wait for the consumer. When full, the reader stops reading, and the
            server ends up cutting this client as slow (3008); it then comes back and recovers.

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
    """The error that our nursery wrapped; None if there are several."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error
