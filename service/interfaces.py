"""The contracts between rooms: what a broker, an intake and a transport must do.

A broker knows no hub and no client; a transport knows no broker. Everything else may rely on
these few methods and on nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from service.errors import Disconnect
from service.protocol.codecs import Codec
from service.publication import Publication, StreamPosition


class PublicationSink(Protocol):
    """Where a broker puts what happened. `Intake` is the real one."""

    async def wait_room(self) -> None:
        """Wait until one more publication fits. Cancellation leaves nothing behind."""

    def check_room(self) -> None:
        """`wait_room` without waiting.

        Raises:
            trio.WouldBlock: there is no room.
        """

    def put_nowait(self, publication: Publication) -> None:
        """Hand one publication to fan-out, in order, without waiting.

        Raises:
            trio.WouldBlock: there is no room; call `wait_room` first.
        """


class Broker(Protocol):
    """What happened in the channels: numbering, history and the way to fan-out."""

    async def run(self, intake: PublicationSink) -> None:
        """Own the back end's connections and house-keeping until cancelled.

        Lives in the node's nursery; ended by the node, after the last publisher.
        """

    async def publish(
        self, publication: Publication, *, idempotency_key: str = "", skip_history: bool = False
    ) -> StreamPosition | None:
        """Number, keep and hand on one publication; returns its position.

        Returns before fan-out. None means that the channel keeps no history. Between numbering
        and hand-over no other publication of the channel may come in between. Cancelled before
        that point, nothing was published.

        Raises:
            BrokerError: the back end failed.
        """

    async def history(
        self, channel: str, *, since: StreamPosition | None = None, limit: int | None = None
    ) -> tuple[Sequence[Publication], StreamPosition]:
        """Publications after `since` (oldest first, at most `limit`) and the stream's top.

        Raises:
            BrokerError: the back end failed.
        """


@runtime_checkable
class InstantBroker(Broker, Protocol):
    """A broker that need not wait for anything but room in the intake."""

    def publish_nowait(
        self, publication: Publication, *, idempotency_key: str = "", skip_history: bool = False
    ) -> StreamPosition | None:
        """`publish` without waiting.

        Raises:
            trio.WouldBlock: there is no room in the intake; nothing was published.
        """


class Transport(Protocol):
    """How bytes leave for one client. Owned by the handler of its connection."""

    name: str
    codec: Codec

    @property
    def write(self) -> Callable[[bytes], int]:
        """Writes what the socket takes now; returns the number of bytes. A bound method.

        Raises:
            BlockingIOError: it takes nothing now.
            OSError: the peer is gone.
        """

    async def send_some(self, chunk: bytes) -> int:
        """Wait until the socket takes something, and write it; returns the number of bytes.

        Has no deadline of its own: the backlog sweep cuts a client that makes no progress.

        Raises:
            OSError, trio.ClosedResourceError: the peer is gone, or `abort` was called.
        """

    def abort(self) -> None:
        """End the connection at once, unread data or not. Wakes every waiter. Idempotent."""

    def release(self) -> None:
        """Give back what the transport holds, after an orderly end. Idempotent."""

    async def close(self, disconnect: Disconnect) -> None:
        """Say goodbye with the code and reason, and let the peer read it.

        The caller sets the deadline, then calls `release`, or `abort` if the deadline passed.
        """
