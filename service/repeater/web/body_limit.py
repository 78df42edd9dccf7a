"""The bound of a request's body in front of Quart, whose newer versions look at it too late.

From Quart 0.23 on, a body without an announced length is kept whole before its size is judged.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from repeater.api.wrong_request import is_api, too_large
from repeater.protocol.http.answer import answer_status
from repeater.transports.asgi import Application, Receive, Send, send_answer
from repeater.web.api import refuse_call

if TYPE_CHECKING:
    from repeater.node import Node
    from repeater.protocol.http.answer import Answer


class BodyLimit:
    """An ASGI application: answers 413 to a longer body, and gives all others to `app`."""

    def __init__(self, app: Application, node: Callable[[], Node], limit: int) -> None:
        self._app = app
        self._node = node
        self._limit = limit

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _announced(scope) > self._limit:
            # Quart would refuse it as well, and this would cut its answer as the body comes.
            await send_answer(send, self._answer(scope))
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
            return {"type": "http.disconnect"}  # whatever it says now, nobody hears

        async def send_unless_refused(event: Any) -> None:
            nonlocal started
            if not refused:
                started = True
                await send(event)

        await self._app(scope, receive_counted, send_unless_refused)
        # Not while the application runs, which might cancel the task that waits for the body,
        # and so cut the answer.
        if refused and not started:
            await send_answer(send, self._answer(scope))

    def _answer(self, scope: Any) -> Answer:
        if is_api(scope["path"]):
            return refuse_call(self._node(), scope, too_large(self._limit))
        return answer_status(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def _announced(scope: Any) -> int:
    """The length of the body that the request announces; 0 without any."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
