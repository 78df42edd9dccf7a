"""The bound of a request's body in front of Quart, whose newer versions look at it too late.

From Quart 0.23 on, a body without an announced length is kept whole before its size is judged.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from repeater.protocol.http.answer import answer_status
from repeater.transports.asgi import Application, Receive, Send, send_answer


class BodyLimit:
    """An ASGI application: answers 413 to a longer body, and gives all others to `app`."""

    def __init__(self, app: Application, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0
        started = refused = False

        async def receive_counted() -> Any:
            nonlocal seen, refused
            if refused:
                return {"type": "http.disconnect"}
            event = await receive()
            seen += len(event.get("body", b""))
            if seen <= self._limit:
                return event
            refused = True
            if not started:
                await send_answer(send, answer_status(HTTPStatus.REQUEST_ENTITY_TOO_LARGE))
            return {"type": "http.disconnect"}  # whatever it says now, nobody hears

        async def send_unless_refused(event: Any) -> None:
            nonlocal started
            if not refused:
                started = True
                await send(event)

        await self._app(scope, receive_counted, send_unless_refused)
