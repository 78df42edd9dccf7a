"""The contracts of a broker and of a presence store.

A broker knows no hub and no client: it gets a sink for its events. The rest of the server relies on
these few methods and on nothing more. The data of a publication is a `JSONText`, and fan-out parses
nothing again. So a broker hands on the data that it got; data that comes from another process is
first checked by `publication.checked`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from repeater.options import ChannelOptions
from repeater.publication import Announcement, ClientInfo, Event, Publication, StreamPosition


class BrokerStatistics(msgspec.Struct, frozen=True):
    """What a broker keeps in this process, and what its bounds made it forget before its time."""

    streams: int = 0
    """Channels whose offset and epoch are kept."""
    history_bytes: int = 0
    """The bytes of their publications."""
    dropped_publications: int = 0
    forgotten_streams: int = 0
    results: int = 0
    """Results of publishes with an idempotency key."""
    dropped_results: int = 0


class EventSink(Protocol):
    """Where a broker puts its events. `Intake` is the real one."""

    async def wait_room(self) -> None:
        """Wait until one more event fits, behind those who wait already.

        Then the caller puts one event, or none, before it awaits anything. Cancellation leaves
        nothing behind.
        """

    def check_room(self) -> None:
        """`wait_room` without waiting.

        Raises:
            trio.WouldBlock: the sink is full, or others wait.
        """

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        """Hand one event to fan-out, in order, without waiting.

        The caller has called `wait_room` or `check_room` since its last await. `weight` is the
        event's `weight_of`, from a caller that knows it; by default the sink weighs the event.

        Raises:
            trio.WouldBlock: the sink is full.
        """


class Broker(Protocol):
    """Numbers a channel's publications, keeps its history and hands its events to fan-out."""

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
        no history. No other publication of the channel may come between numbering and hand-over.
        If it is cancelled before the numbering, nothing was published. With a `history_size` of 0
        a publication is not numbered; a stream that it should have been in must have another epoch
        when the channel keeps history again.

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

        Oldest first, at most `limit` of them; 0 gives the position alone. With `reverse`,
        publications before `since`, newest first. An empty epoch in `since` matches any epoch; an
        epoch other than the stream's selects nothing. A channel without a stream has offset 0 and
        the epoch of its first publication. Reading keeps nothing: anybody may ask for any name.
        An epoch has at most 32 bytes, and streams share it where they can: event ids have each
        epoch of a client's channels once, in a request head whose size is limited.

        A stream may be forgotten to keep a bound. Then its epoch changes, also if nobody publishes.

        Raises:
            BrokerError: the back end failed.
        """

    async def remove_history(self, channel: str) -> None:
        """Forget a channel's publications; its top and epoch stay.

        Raises:
            BrokerError: the back end failed.
        """

    def outage(self) -> str:
        """Why the broker is not available now, in a few words; empty if it is.

        The text has no addresses or secrets. Health checks call this: it says what is known and
        never waits to find out.
        """

    def statistics(self) -> BrokerStatistics:
        """What this process keeps for the broker; zeros for a broker that keeps all elsewhere."""


class PresenceStore(Protocol):
    """Who is in a channel: a map from connection id to its information.

    The node that added an entry also removes it; a store that outlives its process must expire
    entries by itself.
    """

    async def add(self, channel: str, info: ClientInfo) -> None:
        """Note that a client is in the channel, or is still there.

        Raises:
            BrokerError: the back end failed.
        """

    async def remove(self, channel: str, client: str) -> None:
        """Note that this connection is not in the channel any more. Idempotent.

        Raises:
            BrokerError: the back end failed.
        """

    async def members(self, channel: str) -> Mapping[str, ClientInfo]:
        """All clients in the channel, by connection id.

        Raises:
            BrokerError: the back end failed.
        """

    async def count(self, channel: str) -> tuple[int, int]:
        """How many connections are in the channel, and how many different users.

        Raises:
            BrokerError: the back end failed.
        """


@runtime_checkable
class InstantBroker(Broker, Protocol):
    """A broker that waits for nothing but room in the intake."""

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
            trio.WouldBlock: the intake is full; nothing was published.
        """
