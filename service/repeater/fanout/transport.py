"""The contract of a transport: how bytes go to one client.

A transport knows no broker and no other client. Fan-out relies on these few methods and on nothing
more; `transports/` has the transports of real sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from repeater.errors import Disconnect
from repeater.protocol.centrifugo.codecs import Codec

Chunk = bytes | memoryview
"""Bytes on their way out; a view is the rest of a chunk that other clients may share."""


class Transport(Protocol):
    """How bytes go to one client. Owned by the handler of its connection."""

    name: str
    codec: Codec

    def address(self) -> str:
        """The peer's address, for people; empty if it is not known (any more)."""

    @property
    def write(self) -> Callable[[Chunk], int]:
        """Writes what the socket takes now; returns the number of bytes. A bound method.

        Raises:
            BlockingIOError: the socket takes nothing now.
            BrokenPipeError, ConnectionResetError: the peer has left.
            OSError: the connection is broken, or `abort` was called.
        """

    async def send_some(self, chunk: Chunk) -> int:
        """Wait until the socket takes something, and write it; returns the number of bytes.

        Has no deadline of its own: the backlog sweep cuts a client that makes no progress.

        Raises:
            BrokenPipeError, ConnectionResetError, trio.BrokenResourceError: the peer has left.
            OSError, trio.ClosedResourceError: the connection is broken, or `abort` was called.
        """

    def abort(self) -> None:
        """End the connection at once, unread data or not. Wakes every waiter. Idempotent."""

    def release(self) -> None:
        """Give back what the transport holds, after an orderly end. Idempotent."""

    async def close(self, disconnect: Disconnect) -> None:
        """Say goodbye with the code and reason, and let the peer read it.

        The caller sets the deadline, then calls `release`, or `abort` if the deadline passed.
        """
