"""What the transports behind an ASGI server share: for what the native path cannot serve.

That is HTTP/2, a request on a reused keep-alive connection, and the application under a stock
`hypercorn -k trio`. Every chunk passes through the ASGI server, so each waits in the client's
backlog for the drain task; it is correct, not fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import trio

from repeater.protocol.centrifugo.codecs import Codec

if TYPE_CHECKING:
    from repeater.errors import Disconnect
    from repeater.protocol.http.answer import Answer, Headers

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

abort_connection: Final[ContextVar[Callable[[], None] | None]] = ContextVar(
    "abort_connection", default=None
)
"""Resets the TCP connection that the running request came by; set where it was handed over.

Hypercorn writes under a shielded scope: with a peer that never reads, a cancel does nothing, and
only closing the socket ends the write. Under a stock Hypercorn nobody sets it.
"""


class ASGITransport(ABC):
    """What an ASGI server writes for one client. Owned by the handler of its request."""

    def __init__(self, send: Send, codec: Codec, name: str, address: str = "") -> None:
        self.codec = codec
        self.name = name
        self._send = send
        self._address = address
        self._abort = abort_connection.get()
        self._aborted = False

    @abstractmethod
    async def hand_over(self, chunk: bytes) -> None:
        """Give one whole chunk to the ASGI server."""

    @abstractmethod
    async def close(self, disconnect: Disconnect) -> None:
        """Say why it ends, in the way of this transport, and end it."""

    async def begin(self, event: Any) -> None:
        """Have the ASGI server answer the request, before there is a client."""
        await self._send(event)

    def write(self, _chunk: bytes) -> int:
        """ASGI has no way to write without waiting."""
        raise BlockingIOError

    def address(self) -> str:
        """What the ASGI server says, where it knows."""
        return self._address

    async def send_some(self, chunk: bytes) -> int:
        """Hand the whole chunk to the ASGI server."""
        if self._aborted:
            raise trio.ClosedResourceError
        await self.hand_over(chunk)
        return len(chunk)

    def abort(self) -> None:
        """Reset the connection, where it was handed over to us. Idempotent."""
        if not self._aborted and self._abort is not None:
            self._abort()
        self._aborted = True

    def release(self) -> None:  # noqa: B027  # every transport's, and nothing for these
        """Nothing to give back: the connection is the ASGI server's."""


async def send_answer(send: Send, answer: Answer, prefix: str = "http") -> None:
    """Send an ordinary answer; `prefix` is `websocket.http` for a WebSocket that is denied."""
    await send(start(answer.status, answer.header_lines(), prefix))
    await send({"type": f"{prefix}.response.body", "body": answer.body, "more_body": False})


def start(status: int, headers: Headers, prefix: str = "http") -> dict[str, Any]:
    """The event that begins a response."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": f"{prefix}.response.start", "status": int(status), "headers": raw}
