"""The contracts of a broker and of a presence store.

A broker knows no hub and no client: it is given a sink for what happened. Everything else relies
on these few methods and on nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from repeater.options import ChannelOptions
from repeater.publication import Announcement, ClientInfo, Event, Publication, StreamPosition


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
