"""Transports without a socket: they remember what a client was sent."""

from __future__ import annotations

from typing import Any

import trio

from repeater.errors import Disconnect
from repeater.fanout.transport import Chunk
from repeater.protocol.centrifugo.codecs import PLAIN_ASGI, Codec
from repeater.testing.messages import decoded_messages


class MemoryTransport:
    """Takes every chunk at once and keeps it in `sent`. Unframed by default: chunk is message."""

    name = "memory"

    def __init__(self, codec: Codec = PLAIN_ASGI) -> None:
        self.codec = codec
        self.sent: list[bytes] = []
        self.closed_with: Disconnect | None = None
        self.aborted = False
        self.released = False

    def messages(self) -> list[Any]:
        """What the client was told so far: each message decoded, whatever the codec's framing.

        A message that is not JSON is given as its text, and a binary one as its bytes. What arrived
        of a message in part waits for its rest. Pings are messages too, `{}` to a Centrifugo
        client; a plain WebSocket's are not.
        """
        return decoded_messages(self.codec, self.sent)

    def address(self) -> str:
        """Nowhere."""
        return ""

    def write(self, chunk: Chunk) -> int:
        """Keep the chunk; after `abort`, refuse it as a closed socket does."""
        if self.aborted:
            raise OSError("aborted")
        self.sent.append(bytes(chunk))
        return len(chunk)

    async def send_some(self, chunk: Chunk) -> int:
        """Keep the chunk, after a checkpoint."""
        await trio.lowlevel.checkpoint()
        return self.write(chunk)

    def abort(self) -> None:
        """Note that the connection was reset."""
        self.aborted = True

    def release(self) -> None:
        """Note that the connection ended in order."""
        self.released = True

    async def close(self, disconnect: Disconnect) -> None:
        """Note what was said at the end."""
        await trio.lowlevel.checkpoint()
        self.closed_with = disconnect


class StallingTransport(MemoryTransport):
    """A peer that reads only the bytes it is `allow`ed to: a zero window by default."""

    name = "stalling"

    def __init__(self, codec: Codec = PLAIN_ASGI) -> None:
        super().__init__(codec)
        self._allowed = 0
        self._moved = trio.Event()

    def allow(self, size: int) -> None:
        """Let this many more bytes through."""
        self._allowed += size
        self._moved.set()

    def write(self, chunk: Chunk) -> int:
        """Take what is allowed, partly if need be, like a socket whose buffer is nearly full."""
        if self.aborted:
            raise OSError("aborted")
        size = min(self._allowed, len(chunk))
        if size == 0:
            raise BlockingIOError
        self._allowed -= size
        return super().write(chunk[:size])

    async def send_some(self, chunk: Chunk) -> int:
        """Wait for `allow` or `abort`."""
        while True:
            if self.aborted:
                raise trio.ClosedResourceError
            try:
                return self.write(chunk)
            except BlockingIOError:
                self._moved = trio.Event()
                await self._moved.wait()

    def abort(self) -> None:
        """Reset; a task that waits in `send_some` wakes."""
        super().abort()
        self._moved.set()
