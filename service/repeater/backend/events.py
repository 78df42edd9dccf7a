"""The queue of events of connections and channels, in order, until they are delivered.

Rule 1: to note an event is sync and costs one append, so any code may do so. Rule 2: an event
leaves the queue because the one delivery task takes it or because the queue is full. In both cases
the oldest event leaves first.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from uuid import uuid4

import msgspec
import trio

from repeater.access.grants import Caller
from repeater.backend.contract import EventStatistics
from repeater.backend.options import EVENT_KINDS, CallbackOptions, EventKind
from repeater.errors import Disconnect, Unsubscribed

_encode = msgspec.json.Encoder().encode


class NotedEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event as the back end reads it. Fields that its kind does not have are left out."""

    id: str
    """Unique for ever, so that a back end can ignore an event that it gets twice."""
    time: int
    """Unix milliseconds."""
    event: EventKind
    seq: int = 0
    """1, 2, 3... within a connection. A missing number means that an event was dropped."""
    client: str = ""
    user: str | None = None
    transport: str = ""
    channel: str = ""
    code: int | None = None
    reason: str = ""
    meta: msgspec.Raw | None = None


class Batch(msgspec.Struct, frozen=True):
    """A POST's body. `dropped` counts the events dropped since the server started."""

    run: str
    """Another one after each start of the server: connections of an earlier run have ended."""
    dropped: int
    events: Sequence[NotedEvent]


class EventQueue:
    """Implements `Events`. Made and ended by `open_events`; one task takes batches out.

    When the queue is full, it drops the oldest events.
    """

    def __init__(self, options: CallbackOptions) -> None:
        self.closing = trio.Event()
        """Set when the node shuts down: delivery stops waiting for fuller batches."""
        self.deadline = math.inf
        """The Trio time by which delivery must end; infinite before the shutdown."""
        self._run = uuid4().hex
        self._wanted = options.events or EVENT_KINDS
        self._limit = options.event_queue
        self._events: deque[NotedEvent] = deque()
        self._noted = trio.Event()
        self._closed = False
        self._sequences: dict[str, int] = {}
        self._last = 0
        self._batch: list[NotedEvent] = []
        self._delivered = self._dropped = self._attempts = self._failures = 0

    def __len__(self) -> int:
        """The number of waiting events, without those of the batch under way."""
        return len(self._events)

    def statistics(self) -> EventStatistics:
        """A snapshot."""
        return EventStatistics(
            waiting=len(self._events) + len(self._batch),
            delivered=self._delivered,
            dropped=self._dropped,
            attempts=self._attempts,
            failures=self._failures,
        )

    def connected(self, caller: Caller) -> None:
        """Note that a client has connected, after its `connect`."""
        self._sequences[caller.client] = 0
        self._note_of("connected", caller)

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        """Note that a client has ended. Does nothing if the client was never connected."""
        self._note_of("disconnected", caller, code=why.code, reason=why.reason)
        self._sequences.pop(caller.client, None)

    def subscribed(self, caller: Caller, channel: str) -> None:
        """Note that a client hears a channel."""
        self._note_of("subscribed", caller, channel)

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        """Note that a client does not hear a channel any more."""
        self._note_of("unsubscribed", caller, channel, code=why.code, reason=why.reason)

    def channel_occupied(self, channel: str) -> None:
        """Note that a channel has its first listener on this node."""
        if "channel_occupied" in self._wanted:
            self._append(NotedEvent(*self._stamp(), "channel_occupied", channel=channel))

    def channel_vacated(self, channel: str) -> None:
        """Note that a channel's last listener on this node is gone."""
        if "channel_vacated" in self._wanted:
            self._append(NotedEvent(*self._stamp(), "channel_vacated", channel=channel))

    def _note_of(
        self,
        kind: EventKind,
        caller: Caller,
        channel: str = "",
        *,
        code: int | None = None,
        reason: str = "",
    ) -> None:
        """Note an event of a connection, with the connection's next number."""
        before = self._sequences.get(caller.client)
        if before is None or kind not in self._wanted:
            return
        self._sequences[caller.client] = before + 1
        event = NotedEvent(
            *self._stamp(),
            kind,
            before + 1,
            caller.client,
            caller.user,
            caller.transport,
            channel,
            code,
            reason,
            msgspec.Raw(caller.meta) if caller.meta else None,
        )
        self._append(event)

    def _stamp(self) -> tuple[str, int]:
        self._last += 1
        return f"{self._run}-{self._last}", int(time.time() * 1_000)

    def _append(self, event: NotedEvent) -> None:
        if len(self._events) >= self._limit:
            # Drop the oldest: the newest events show best which clients are connected now.
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._noted.set()

    def shut_down_by(self, deadline: float) -> None:
        """Set the Trio time by which delivery must end, because the node shuts down."""
        self.deadline = deadline
        self.closing.set()

    def close(self) -> None:
        """Let delivery take the last batch and end, because no more events will be noted."""
        self._closed = True
        self.closing.set()
        self._noted.set()

    async def wait_noted(self) -> bool:
        """Wait until an event is noted; False if the queue is closed and empty.

        No deadline: the next event may come in days. Cancellation leaves nothing behind.
        """
        while not self._events:
            if self._closed:
                return False
            self._noted = trio.Event()
            await self._noted.wait()
        return True

    def take(self, most: int) -> None:
        """Move at most `most` of the oldest events to the batch, which is delivered next."""
        self._batch = [self._events.popleft() for _ in range(min(most, len(self._events)))]

    def body(self) -> bytes:
        """The body to post for the batch."""
        return _encode(Batch(self._run, self._dropped, self._batch))

    def tried(self, *, accepted: bool) -> None:
        """Count an attempt to send the batch, and drop the batch if it was accepted."""
        self._attempts += 1
        if accepted:
            self._delivered += len(self._batch)
            self._batch = []
        else:
            self._failures += 1

    def give_up(self) -> int:
        """Drop all events that are left, because time is over, and return their number."""
        lost = len(self._events) + len(self._batch)
        self._events.clear()
        self._batch = []
        self._dropped += lost
        return lost
