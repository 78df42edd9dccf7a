"""`POST /api/stream` under an ASGI server, in front of Quart, which would buffer the whole body.

Quart's request takes a body in as fast as it arrives, even if the view does not read it. Here the
ASGI server's own bounded queue is the back-pressure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from repeater.api.stream import STREAM, STREAM_TIMEOUT, EventStream
from repeater.api.wrong_request import not_post, unauthorized
from repeater.deadlines import within
from repeater.protocol.http.answer import Answer
from repeater.transports.asgi import Application, Receive, Send, send_answer
from repeater.web.api import refuse_call

if TYPE_CHECKING:
    from repeater.api.keys import ApiKey
    from repeater.node import Node

STREAM_PATH: Final = f"/api/{STREAM}"
_LOOK = 0.2  # seconds between two checks whether the node drains


class StreamRoute:
    """An ASGI application: serves the stream itself, and gives all other requests to `app`."""

    def __init__(
        self, app: Application, node: Callable[[], Node], key: ApiKey, line_limit: int
    ) -> None:
        self._app = app
        self._node = node
        self._key = key
        self._line_limit = line_limit

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] != STREAM_PATH:
            await self._app(scope, receive, send)
            return
        headers = _first_of_each(scope["headers"])
        given = (
            headers.get(b"x-api-key"),
            headers.get(b"authorization"),
            scope["query_string"],
        )
        answer: Answer | None
        if not self._key.admits(*given):
            answer = refuse_call(self._node(), scope, unauthorized(self._key.why_not(*given)))
        elif scope["method"] != "POST":
            answer = refuse_call(self._node(), scope, not_post(scope["method"]))
        else:
            answer = await self._consume(receive)
        if answer is not None:
            await send_answer(send, answer)

    async def _consume(self, receive: Receive) -> Answer | None:
        """Take the body in; return the answer, or None if the peer is gone."""
        stream = EventStream(self._node(), self._line_limit)
        while not stream.stopped:
            event = await self._event(receive)
            if event is None:
                return await stream.answer(503 if self._node().draining else 408)
            if event["type"] == "http.disconnect":
                return None
            await stream.feed(event.get("body", b""))
            if not event.get("more_body", False) and not stream.stopped:
                await stream.end()
                break
        return await stream.answer()

    async def _event(self, receive: Receive) -> dict[str, Any] | None:
        """Return the body's next event; None if none came in time, or if the node drains."""
        deadline = within(STREAM_TIMEOUT)
        while not self._node().draining and trio.current_time() < deadline:
            with trio.move_on_after(_LOOK):
                return cast("dict[str, Any]", await receive())
        return None


def _first_of_each(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in reversed(headers)}
