"""The common base of the transports behind an ASGI server, used where the native path cannot serve.

These cases are HTTP/2, a request on a reused keep-alive connection, and the application under a
stock `hypercorn -k trio`. Every chunk waits in the client's backlog for the drain task, because it
passes through the ASGI server: correct, but not fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import trio

from repeater.fanout.transport import Chunk
from repeater.protocol.centrifugo.codecs import Codec

if TYPE_CHECKING:
    from repeater.errors import Disconnect
    from repeater.protocol.http.answer import Answer, Headers

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Any, Receive, Send], Awaitable[None]]

_DENIAL: Final = "websocket.http"

abort_connection: Final[ContextVar[Callable[[], None] | None]] = ContextVar(
    "abort_connection", default=None
)
"""Resets the TCP connection of the running request; set by the hand-over to Hypercorn.

Hypercorn writes under a shielded scope: if the peer never reads, a cancel does nothing, and only
closing the socket ends the write. Under a stock Hypercorn the variable is not set.
"""


class ASGITransport(ABC):
    """Writes to one client through an ASGI server. Owned by the handler of the client's request."""

    def __init__(self, send: Send, codec: Codec, name: str, address: str = "") -> None:
        self.codec = codec
        self.name = name
        self._send = send
        self._address = address
        self._abort = abort_connection.get()
        self.refuse: Callable[[Disconnect], Awaitable[None]] | None = None
        """Gives the HTTP answer in place of a goodbye, while the request is not answered.
        None once it is."""
        self._aborted = False

    @abstractmethod
    async def hand_over(self, chunk: bytes) -> None:
        """Give one whole chunk to the ASGI server."""

    @abstractmethod
    async def say_goodbye(self, disconnect: Disconnect) -> None:
        """Send the client the reason, in this transport's form, and end the response."""

    async def close(self, disconnect: Disconnect) -> None:
        """Say why, in the answer to the request if there was none yet."""
        refuse, self.refuse = self.refuse, None
        await (self.say_goodbye(disconnect) if refuse is None else refuse(disconnect))

    async def begin(self, event: Any) -> None:
        """Make the ASGI server answer the request."""
        self.refuse = None
        await self._send(event)

    def write(self, _chunk: Chunk) -> int:
        """Raise `BlockingIOError`, since ASGI cannot write without waiting."""
        raise BlockingIOError

    def address(self) -> str:
        """The peer's address by the ASGI server; empty if the server does not know it."""
        return self._address

    async def send_some(self, chunk: Chunk) -> int:
        """Hand the whole chunk to the ASGI server."""
        if self._aborted:
            raise trio.ClosedResourceError
        await self.hand_over(bytes(chunk))
        return len(chunk)

    def abort(self) -> None:
        """Reset the connection, if the hand-over gave us the means. Idempotent."""
        if not self._aborted and self._abort is not None:
            self._abort()
        self._aborted = True

    def release(self) -> None:  # noqa: B027  # other transports have work here
        """Do nothing: the ASGI server owns the connection."""


async def send_answer(send: Send, answer: Answer, prefix: str = "http") -> None:
    """Send an ordinary answer; `prefix` is `websocket.http` to deny a WebSocket."""
    await send(start(answer.status, answer.header_lines(), prefix))
    await send({"type": f"{prefix}.response.body", "body": answer.body, "more_body": False})


async def deny(scope: Any, send: Send, answer: Answer) -> None:
    """Refuse a WebSocket with this HTTP answer; an ASGI server that cannot send it answers 403."""
    if f"{_DENIAL}.response" in (scope.get("extensions") or {}):
        await send_answer(send, answer, _DENIAL)
    else:
        await send({"type": "websocket.close"})


async def refuse(scope: Any, receive: Receive, send: Send, answer: Answer) -> None:
    """Refuse a request of either kind that no other code has begun to serve."""
    if scope["type"] == "http":
        await send_answer(send, answer)
    elif (await receive())["type"] == "websocket.connect":  # else the peer hung up before
        await deny(scope, send, answer)


def start(status: int, headers: Headers, prefix: str = "http") -> dict[str, Any]:
    """Return the event that begins a response."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": f"{prefix}.response.start", "status": int(status), "headers": raw}
