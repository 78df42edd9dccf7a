"""The contracts of a broker and of a presence store.

A broker knows no hub and no client: it gets a sink for its events. The rest of the server relies on
these few methods and on nothing more. No call waits: an answer that takes time is a `Receipt`. The
data of a publication is a `JSONText`, and fan-out parses nothing again. So a broker hands on the
data that it got; data that comes from another process is first checked by `publication.checked`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from repeater.brokers.receipts import Answer
from repeater.brokers.source_rows import SourceRow
from repeater.histogram import HistogramStatistics
from repeater.options import ChannelOptions
from repeater.publication import Announcement, ClientInfo, Event, Publication, StreamPosition

Outcome = StreamPosition | None
"""Where a publication is in its stream; None if the channel keeps no history."""

Page = tuple[Sequence[Publication], StreamPosition]
"""Publications of a stream, and the stream's top, both of one moment."""


class JournalStatistics(msgspec.Struct, frozen=True):
    """The file of a broker that keeps its streams on a disk."""

    commit_seconds: HistogramStatistics
    """From the moment when a commit is begun to its end."""
    failures: int
    """Commits and tries that failed."""
    file_bytes: int
    """The file with its log."""
    used_bytes: int
    """The part of the file that holds something."""
    waiting: int
    """Submissions that are not answered and handed on yet."""
    lag: float
    """Seconds for which the oldest of them has waited."""


class EngineStatistics(msgspec.Struct, frozen=True):
    """A broker's connections to the servers of an engine that nodes share."""

    primaries: int
    """Those that are known."""
    up: int
    """Those that are there, with commands and bus."""
    losses: Mapping[str, int]
    """How often one was left, by what was the matter: `commands`, `bus`, or its `role`."""
    down: Sequence[str] = ()
    """The halves that are not there now, `commands` and `bus`, as far as that is known."""
    waiting: int = 0
    """Submissions that are not answered yet."""
    scripts: int = 0
    """Scripts that were sent for submissions so far."""
    held: int = 0
    """Channels whose events come, those without listeners included."""
    reads: int = 0
    """Streams that were read since messages were missing, or may have been."""
    forks: int = 0
    """Streams among them that a failover had numbered twice."""
    ruptures: int = 0
    """Streams whose listeners were told that publications are missing."""
    foreign: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Keys, entries and messages that no node has written, by the part that found them: `streams`,
    `control`, or `presence`."""


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
    journal: JournalStatistics | None = None
    """None for a broker without a file."""
    engine: EngineStatistics | None = None
    """None for a broker whose streams are in this process or its supervisor."""


class EventSink(Protocol):
    """Where a broker puts its events. `Intake` is the real one."""

    async def wait_room(self) -> None:
        """Wait until one more event fits, behind those who wait already.

        Then the caller puts one event, or none, before it awaits anything. Cancellation leaves
        nothing behind.

        Raises:
            trio.ClosedResourceError: the node is shutting down and takes no more events. `run` may
                return then, after it has settled all receipts.
        """

    def check_room(self) -> None:
        """`wait_room` without waiting; has room for whoever has just waited for it.

        Raises:
            trio.WouldBlock: the sink is full, or others wait.
            trio.ClosedResourceError: as `wait_room`.
        """

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        """Hand one event to fan-out, in order, without waiting.

        The caller has called `wait_room` or `check_room` since its last await. `weight` is the
        event's `weight_of`, from a caller that knows it; by default the sink weighs the event.

        Raises:
            trio.WouldBlock: the sink is full.
            trio.ClosedResourceError: as `wait_room`.
        """


class Broker(Protocol):
    """Numbers a channel's publications, keeps its history and hands its events to fan-out."""

    async def run(self, intake: EventSink) -> None:
        """Own the back end's connections and house-keeping until cancelled.

        Lives in the node's nursery; ended by the node, after `finish`. Settles every receipt before
        it ends, also when it is cancelled.
        """

    async def finish(self) -> None:
        """Take nothing more, and wait until what was taken is answered and handed on.

        From now on `submit`, `announce` and `wait_room` raise `trio.ClosedResourceError`; history
        can still be read. Called by the node at its end, before it cancels `run`. The caller sets
        the deadline. Idempotent.
        """

    def submit(
        self,
        publication: Publication,
        options: ChannelOptions,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        row: SourceRow | None = None,
    ) -> Answer[Outcome]:
        """Publish one publication: number it, keep it, hand it to fan-out. Never waits.

        The order of submissions is the order in the stream, for each channel, and receipts of one
        channel settle in this order; those of different channels settle in any order. Answers
        before fan-out. A repeated idempotency key, or a `version` that is not newer than the
        stream's, publishes nothing (protocol, section 9.1). The publication's `time` is set where
        it is numbered. It is kept for at least `history_ttl` from then on, as far as `history_size`
        and the broker's bounds allow. With a `history_size` of 0 a publication is not numbered; a
        stream that it should have been in must have another epoch when the channel keeps history
        again.

        A `row` is published once: the broker remembers it with its result, in one step with the
        publication and as safely, until `forget_rows`. A row that it remembers publishes nothing
        and gets the first result. The terms are compared first, and the idempotency key and the
        version of a row count as ever. Rows of one channel can be submitted without waiting for
        answers, each with the one before it as `after`: one that fails takes those behind it with
        it. The rows' two failures, as any other, are raised or settle the receipt.

        Raises:
            trio.WouldBlock: there is no room, and nothing happened; see `wait_room`.
            trio.ClosedResourceError: the node is shutting down, and nothing happened.
            BrokerError: the engine is known to be down, and nothing happened.
            DeposedError: another node submitted rows of this source with a higher term.
            AfterError: the row before this one is not remembered.
        """

    def known_rows(self, source: str) -> Answer[Sequence[str]]:
        """The names of a source's rows that are remembered: published, and not forgotten.

        Raises:
            BrokerError: the engine is known to be down.
        """

    def forget_rows(self, source: str, names: Sequence[str]) -> Answer[None]:
        """Forget rows that are gone from their database, behind all submissions before. Idempotent.

        After a failure they may be remembered: the caller repeats it.

        Raises:
            BrokerError: the engine is known to be down.
        """

    async def wait_room(self) -> None:
        """Wait until one more submission fits, behind those who wait already.

        The caller then submits, or does not, before it awaits anything. Cancellation leaves nothing
        behind. The caller sets the deadline.

        Raises:
            trio.ClosedResourceError: the node is shutting down.
            BrokerError: the engine is known to be down.
        """

    def announce(self, announcement: Announcement) -> None:
        """Hand on a join or leave, at most once, behind what the caller submitted before.

        There is no answer: a broker whose engine loses an announcement logs the loss.

        Raises:
            trio.WouldBlock, trio.ClosedResourceError, BrokerError: as `submit`.
        """

    def hold(self, channel: str) -> Answer[None]:
        """Have the events of a channel come to fan-out; idempotent.

        Once it is answered no event is missed: what is not in a history read after that comes to
        fan-out. The history may already be ahead of fan-out.

        If this fails, at once or later, the broker holds the channel as soon as the engine is back,
        unless it is released before: a listener that needs no history may wait for that.

        Raises:
            BrokerError: the engine is known to be down.
        """

    def release(self, channel: str) -> None:
        """Note that no listener is left: the events need not come any more. Never fails."""

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        """Publications after `since` and the stream's top, both of one moment.

        Oldest first, at most `limit` of them; 0 gives the position alone. With `reverse`,
        publications before `since`, newest first. An empty epoch in `since` matches any epoch; an
        epoch other than the stream's selects nothing. A channel without a stream has offset 0 and
        the epoch of its first publication. Reading keeps nothing: anybody may ask for any name.
        An epoch has at most 32 bytes, and streams share it where they can: event ids have each
        epoch of a client's channels once, in a request head whose size is limited.

        A stream may be forgotten to keep a bound. Then its epoch changes, also if nobody publishes.

        Raises:
            BrokerError: the engine is known to be down.
        """

    def remove_history(self, channel: str) -> Answer[None]:
        """Forget a channel's publications; its top and epoch stay.

        Raises:
            BrokerError: the engine is known to be down.
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
    entries by itself. Calls for one channel take effect in their order: who asks for the members
    after a change has been asked for finds this change. No call waits; a failure that comes later
    settles the call's receipt.
    """

    def add(self, channel: str, info: ClientInfo) -> Answer[None]:
        """Note that a client is in the channel, or is still there.

        After a failure the client may be there: who gives up removes it.

        Raises:
            BrokerError: the store is known to be down.
        """

    def remove(self, channel: str, client: str) -> Answer[None]:
        """Note that this connection is not in the channel any more. Idempotent.

        Raises:
            BrokerError: the store is known to be down.
        """

    def members(self, channel: str) -> Answer[Mapping[str, ClientInfo]]:
        """All clients in the channel, by connection id.

        Raises:
            BrokerError: the store is known to be down.
        """

    def count(self, channel: str) -> Answer[tuple[int, int]]:
        """How many connections are in the channel, and how many different users.

        Raises:
            BrokerError: the store is known to be down.
        """
