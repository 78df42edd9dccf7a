"""A connection in this process, which costs as few passes of the loop as a plain socket.

Each piece takes one pass on each side. With Trio's own memory streams it takes three, and a world
of nodes twice as many.
"""

from __future__ import annotations

import trio


class Bytes:
    """One direction of a connection."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._came = trio.lowlevel.ParkingLot()
        self._closed = False

    def put(self, data: bytes) -> None:
        """Send: whoever takes gets it in the next pass.

        Raises:
            trio.BrokenResourceError: this direction is closed.
        """
        if self._closed:
            raise trio.BrokenResourceError("the connection has ended")
        self._held += data
        self._came.unpark_all()

    async def take(self) -> bytes:
        """Everything that has come, when something has; nothing at the end."""
        if self._held or self._closed:
            await trio.lowlevel.checkpoint()
        while not self._held and not self._closed:
            await self._came.park()
        data = bytes(self._held)
        self._held.clear()
        return data

    def close(self) -> None:
        """End it. What has come can still be taken."""
        self._closed = True
        self._came.unpark_all()


class ClientStream(trio.abc.Stream):
    """The client's end of a connection."""

    def __init__(self, out: Bytes, back: Bytes) -> None:
        self._out = out
        self._back = back

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send without a pass of the loop, as the client writes a plain socket."""
        self._out.put(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """There is always room."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """All at once: a world has less than a client reads at a time."""
        return await self._back.take()

    async def aclose(self) -> None:
        self._out.close()
        self._back.close()
        await trio.lowlevel.checkpoint()
