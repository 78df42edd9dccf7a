"""Fakes for the tests of whoever builds on Repeater; supported API, like the rest.

`open_test_node` runs a node that everybody may use; `connect` puts a client with a fake transport
on it. With `trio.testing.MockClock` nothing here needs real time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from repeater.access.grants import TokenVerifier
from repeater.brokers.contract import Broker
from repeater.clients.client import Client
from repeater.errors import Disconnect
from repeater.node import Node, open_node
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import PLAIN_ASGI, Codec


class MemoryTransport:
    """Takes every chunk at once and keeps it in `sent`. Unframed by default: chunk is message."""

    name = "memory"

    def __init__(self, codec: Codec = PLAIN_ASGI) -> None:
        self.codec = codec
        self.sent: list[bytes] = []
        self.closed_with: Disconnect | None = None
        self.aborted = False
        self.released = False

    def address(self) -> str:
        """Nowhere."""
        return ""

    def write(self, chunk: bytes) -> int:
        """Keep the chunk; after `abort`, refuse it as a closed socket does."""
        if self.aborted:
            raise OSError("aborted")
        self.sent.append(chunk)
        return len(chunk)

    async def send_some(self, chunk: bytes) -> int:
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

    def write(self, chunk: bytes) -> int:
        """Take what is allowed, partly if need be, like a socket whose buffer is nearly full."""
        if self.aborted:
            raise OSError("aborted")
        size = min(self._allowed, len(chunk))
        if size == 0:
            raise BlockingIOError
        self._allowed -= size
        return super().write(chunk[:size])

    async def send_some(self, chunk: bytes) -> int:
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
        """Reset: whoever waits in `send_some` wakes."""
        super().abort()
        self._moved.set()


@asynccontextmanager
async def open_test_node(
    options: NodeOptions | None = None,
    *,
    broker: Broker | None = None,
    verifier: TokenVerifier | None = None,
) -> AsyncIterator[Node]:
    """A node on which every client may do everything, whatever `options` says of it."""
    open_to_all = msgspec.structs.replace(options or NodeOptions(), insecure=True)
    async with open_node(open_to_all, broker=broker, verifier=verifier) as node:
        yield node


@asynccontextmanager
async def connect(
    node: Node,
    transport: MemoryTransport,
    channels: Sequence[str] = (),
    *,
    ready: bool = True,
) -> AsyncIterator[Client]:
    """A client on the node for as long as the block lasts, or until something cuts it."""
    with trio.CancelScope() as scope:
        client = Client(node.registry, transport, scope, ready=ready)
        try:
            for channel in channels:
                client.subscribe(channel)
            if ready:
                node.connection_log.connected(client)
            yield client
        finally:
            await client.leave()
