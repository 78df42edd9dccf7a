"""The contracts between rooms: a broker, a presence store, a back end, a transport.

A broker knows no hub and no client; a transport knows no broker. Everything else may rely on
these few methods and on nothing more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from repeater.access.grants import (
    Caller,
    ConnectionGrant,
    Denial,
    PublicationGrant,
    Renewal,
    SubscriptionGrant,
)
from repeater.backend.options import CallbackKind
from repeater.errors import Disconnect, Unsubscribed
from repeater.options import ChannelOptions
from repeater.protocol.centrifugo.codecs import Codec
from repeater.protocol.centrifugo.commands import ConnectRequest
from repeater.publication import Announcement, ClientInfo, Event, Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.statistics import BackendStatistics, EventStatistics


class EventSink(Protocol):
    """Where a broker puts what happened. `Intake` is the real one."""

    async def wait_room(self) -> None:
        """Wait until one more event fits. Cancellation leaves nothing behind."""

    def check_room(self) -> None:
        """`wait_room` without waiting.

        Raises:
            trio.WouldBlock: there is no room.
        """

    def put_nowait(self, event: Event) -> None:
        """Hand one event to fan-out, in order, without waiting.

        Raises:
            trio.WouldBlock: there is no room; call `wait_room` first.
        """


class Broker(Protocol):
    """What happened in the channels: numbering, history and the way to fan-out."""

    async def run(self, intake: EventSink) -> None:
        """Own the back end's connections and house-keeping until cancelled.

        Lives in the node's nursery; ended by the node, after the last publisher.
        """

    async def publish(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> StreamPosition | None:
        """Number, keep and hand on one publication; returns its position.

        A repeated idempotency key, or a `version` that is not newer than the stream's, publishes
        nothing (protocol, section 9.1). Returns before fan-out. None means that the channel keeps
        no history. Between numbering and hand-over no other publication of the channel may come
        in between. Cancelled before that point, nothing was published.

        Raises:
            BrokerError: the back end failed.
        """

    async def announce(self, announcement: Announcement) -> None:
        """Hand on a join or leave, at most once.

        Raises:
            BrokerError: the back end failed.
        """

    async def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> tuple[Sequence[Publication], StreamPosition]:
        """Publications after `since` and the stream's top, both of one moment.

        Oldest first, at most `limit` of them, 0 for the position alone. With `reverse` newest
        first, and those before `since`. An empty epoch in `since` is any; another epoch than the
        stream's selects nothing. Makes an unseen stream.

        Raises:
            BrokerError: the back end failed.
        """

    async def remove_history(self, channel: str) -> None:
        """Forget a channel's publications; its top and epoch stay.

        Raises:
            BrokerError: the back end failed.
        """

    def outage(self) -> str:
        """Why it is of no use now, in a few words and without addresses or secrets; else empty.

        Asked by health checks: it says what is known and never waits to find out.
        """


class PresenceStore(Protocol):
    """Who is in a channel: a map from connection id to its information.

    Entries are removed by whoever put them; a store that outlives its process must expire them
    by itself.
    """

    async def add(self, channel: str, info: ClientInfo) -> None:
        """Somebody is there, or still there.

        Raises:
            BrokerError: the back end failed.
        """

    async def remove(self, channel: str, client: str) -> None:
        """This connection is no longer there. Idempotent.

        Raises:
            BrokerError: the back end failed.
        """

    async def members(self, channel: str) -> Mapping[str, ClientInfo]:
        """Everybody who is there, by connection id.

        Raises:
            BrokerError: the back end failed.
        """

    async def count(self, channel: str) -> tuple[int, int]:
        """How many connections are there, and how many different users.

        Raises:
            BrokerError: the back end failed.
        """


class DenialStore(Protocol):
    """Where blocked users and revoked tokens are kept, so that they outlive the process.

    The node itself knows those in force; it asks for all of them once and saves each change. A
    store that nodes share tells each of the others' changes.
    """

    async def load(self) -> Sequence[Denial]:
        """Everything that is in force. Called once, before `run` and before there are clients.

        Raises:
            BrokerError: the store failed.
        """

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        """Tell `apply` what other nodes saved, until cancelled. Lives in the node's nursery."""

    async def save(self, denial: Denial) -> None:
        """Keep it in place of one with the same key, or forget that if it is `lifted`.

        Cancelled, it was kept or not. Once it returned, a crash does not undo it.

        Raises:
            BrokerError: the store failed, and nothing was kept.
        """

    async def sweep(self, now: int) -> None:
        """Forget what expired up to now, Unix seconds.

        Raises:
            BrokerError: the store failed.
        """


@runtime_checkable
class InstantBroker(Broker, Protocol):
    """A broker that need not wait for anything but room in the intake."""

    def publish_nowait(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> StreamPosition | None:
        """`publish` without waiting.

        Raises:
            trio.WouldBlock: there is no room in the intake; nothing was published.
        """


class Backend(Protocol):
    """The application's say in what its clients do. `HTTPBackend` is the real one.

    Each question may wait, with deadlines of its own, and only for the client that asks.
    Cancelled, it leaves nothing behind; whether the back end got it is not known. Each raises
    `BrokerError` when there is no answer or none that can be used, `ReplyError` or
    `DisconnectError` when that is the answer. `data` is JSON text, empty for none.
    """

    kinds: frozenset[CallbackKind]
    """What it is to be asked; the rest must not be called."""

    forward_headers: frozenset[str]
    """Headers of a client's HTTP request to be kept for its `Caller`, in lower case."""

    forward_emulated_headers: frozenset[str]
    """The same for those in its connect command."""

    async def connect(self, caller: Caller, request: ConnectRequest) -> ConnectionGrant:
        """Who is it that connects?"""

    async def refresh(self, caller: Caller) -> Renewal:
        """Does a connection that expires go on?"""

    async def subscribe(
        self, caller: Caller, channel: str, token: str, data: bytes
    ) -> SubscriptionGrant:
        """May it hear this channel?"""

    async def publish(self, caller: Caller, channel: str, data: bytes) -> PublicationGrant:
        """May it publish this?"""

    async def sub_refresh(self, caller: Caller, channel: str) -> Renewal:
        """Does a subscription that expires go on?"""

    async def rpc(self, caller: Caller, method: str, data: bytes) -> bytes:
        """The answer to a call, JSON text, empty for none."""

    def statistics(self) -> BackendStatistics:
        """A snapshot of what was asked."""


class Events(Protocol):
    """Is told what happens to connections and channels. All sync, cheap, and never fails."""

    def connected(self, caller: Caller) -> None:
        """A client is there, after its `connect`."""

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        """A client is gone. Nothing, if it was never connected."""

    def subscribed(self, caller: Caller, channel: str) -> None:
        """A client hears a channel."""

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        """A client does not hear a channel any more."""

    def channel_occupied(self, channel: str) -> None:
        """A channel has its first listener on this node."""

    def channel_vacated(self, channel: str) -> None:
        """A channel's last listener on this node is gone."""

    def shut_down_by(self, deadline: float) -> None:
        """The node shuts down: what is not told by this Trio time won't be."""

    def statistics(self) -> EventStatistics:
        """A snapshot of what was told."""


class Transport(Protocol):
    """How bytes leave for one client. Owned by the handler of its connection."""

    name: str
    codec: Codec

    def address(self) -> str:
        """Where the peer is, for people; empty if that is not known (any more)."""

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
