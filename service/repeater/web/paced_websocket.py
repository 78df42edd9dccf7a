"""A bound for WebSocket routes of somebody's own blueprint, which Quart serves.

quart-trio 0.13 (Python 3.13) takes messages as they come and keeps them until the route reads: a
client that sends faster makes the process grow. Here no message is taken from the ASGI server
while a route has this many unread ones; the server's own queue is bounded, and then TCP holds the
client back. Repeater's own WebSockets do not come here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio
from quart import Websocket

UNREAD: Final = 16
"""Messages that wait for a route; each is as long as `message_limit` at most."""

_ROOM: Final = "repeater.room"

AnyWebsocket = TypeVar("AnyWebsocket", bound=Websocket)
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class PacedWebsockets:
    """An ASGI application in front of Quart's. Each connection has a room of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Serve one request, a WebSocket's messages no faster than they are read."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        room = trio.Semaphore(UNREAD)

        async def receive_if_room() -> Any:
            event = await receive()
            if event["type"] == "websocket.receive":
                await room.acquire()  # no deadline: the route reads, or ends, which cancels this
            return event

        await self._app({**scope, _ROOM: room}, receive_if_room, send)


def paced(websocket_class: type[AnyWebsocket]) -> type[AnyWebsocket]:
    """The same class of Quart, whose `receive` makes room for the next message."""

    class PacedWebsocket(websocket_class):  # type: ignore[misc, valid-type]
        async def receive(self) -> Any:
            message = await super().receive()
            room = self.scope.get(_ROOM)
            if room is not None:  # Quart's test client makes a WebSocket without it
                room.release()
            return message

    return PacedWebsocket
