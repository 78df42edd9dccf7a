"""A bound for the WebSocket routes of an application's own blueprint, which Quart serves.

quart-trio 0.13 (Python 3.13) takes messages as they arrive and keeps them until the route reads: a
client that sends faster makes the process grow. Here no message is taken from the ASGI server
while a route has `UNREAD` unread messages. The server's own queue is bounded, so TCP then holds
the client back. Repeater's own WebSockets do not pass here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio
from quart import Websocket

UNREAD: Final = 16
"""Messages that may wait for a route; each has at most `message_limit` bytes."""

_ROOM: Final = "repeater.room"

AnyWebsocket = TypeVar("AnyWebsocket", bound=Websocket)
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class PacedWebsockets:
    """An ASGI application in front of Quart's. Each connection has its own semaphore."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Serve one request; take a WebSocket's messages only as fast as the route reads them."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        room = trio.Semaphore(UNREAD)

        async def receive_if_room() -> Any:
            event = await receive()
            if event["type"] == "websocket.receive":
                await room.acquire()  # no deadline: the route reads, or its end cancels this
            return event

        await self._app({**scope, _ROOM: room}, receive_if_room, send)


def paced(websocket_class: type[AnyWebsocket]) -> type[AnyWebsocket]:
    """Return a subclass whose `receive` makes room for the next message."""

    class PacedWebsocket(websocket_class):  # type: ignore[misc, valid-type]
        async def receive(self) -> Any:
            message = await super().receive()
            room = self.scope.get(_ROOM)
            if room is not None:  # Quart's test client makes a WebSocket without one
                room.release()
            return message

    return PacedWebsocket
