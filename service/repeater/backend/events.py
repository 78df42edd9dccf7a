"""What happened to connections and channels, in order, until it is delivered.

Rule 1: noting is sync and costs an append, so that it may happen anywhere. Rule 2: an event leaves
the queue to be delivered, by one task, or because the queue is full; in order either way.
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
    """One event as the back end reads it; what does not belong to its kind is left out."""

    id: str
    """Unique for ever: whoever has seen it has seen the event."""
    time: int
    """Unix milliseconds."""
    event: EventKind
    seq: int = 0
    """1, 2, 3... within a connection: a number left out is an event that was dropped."""
    client: str = ""
    user: str | None = None
    transport: str = ""
    channel: str = ""
    code: int | None = None
    reason: str = ""
    meta: msgspec.Raw | None = None


class Batch(msgspec.Struct, frozen=True):
    """A POST's body. `dropped` counts the events lost so far since the server started."""

    run: str
    """Changes when the server starts again: what was connected is not any more."""
    dropped: int
    events: Sequence[NotedEvent]


class EventQueue:
    """Implements `Events`. Made and ended by `open_events`; one task takes batches out.

    When it is full the oldest go: the newest say best how things are now.
    """

    def __init__(self, options: CallbackOptions) -> None:
        self.closing = trio.Event()
        """Set when the node shuts down: there is no time to gather any more."""
        self.deadline = math.inf
        """When the process has to be done, Trio time; infinite while it runs on."""
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
        """How many wait, without those in the batch that is being delivered."""
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
        """A client is there, after its `connect`."""
        self._sequences[caller.client] = 0
        self._note_of("connected", caller)

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        """A client is gone. Nothing, if it was never connected."""
        self._note_of("disconnected", caller, code=why.code, reason=why.reason)
        self._sequences.pop(caller.client, None)

    def subscribed(self, caller: Caller, channel: str) -> None:
        """A client hears a channel."""
        self._note_of("subscribed", caller, channel)

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        """A client does not hear a channel any more."""
        self._note_of("unsubscribed", caller, channel, code=why.code, reason=why.reason)

    def channel_occupied(self, channel: str) -> None:
        """A channel has its first listener on this node."""
        if "channel_occupied" in self._wanted:
            self._append(NotedEvent(*self._stamp(), "channel_occupied", channel=channel))

    def channel_vacated(self, channel: str) -> None:
        """A channel's last listener on this node is gone."""
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
        """Note an event of a connection, under its next number."""
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
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._noted.set()

    def shut_down_by(self, deadline: float) -> None:
        """The node shuts down: what is not told by this Trio time won't be."""
        self.deadline = deadline
        self.closing.set()

    def close(self) -> None:
        """Nothing will be noted any more: the last batch may be taken."""
        self._closed = True
        self.closing.set()
        self._noted.set()

    async def wait_noted(self) -> bool:
        """Wait until there is something to tell; False when there is not and won't be.

        No deadline: there may be nothing for days. Cancellation leaves nothing behind.
        """
        while not self._events:
            if self._closed:
                return False
            self._noted = trio.Event()
            await self._noted.wait()
        return True

    def take(self, most: int) -> None:
        """Make the oldest the batch, which is to be delivered next."""
        self._batch = [self._events.popleft() for _ in range(min(most, len(self._events)))]

    def body(self) -> bytes:
        """What is posted to deliver the batch."""
        return _encode(Batch(self._run, self._dropped, self._batch))

    def tried(self, *, accepted: bool) -> None:
        """The batch was sent once."""
        self._attempts += 1
        if accepted:
            self._delivered += len(self._batch)
            self._batch = []
        else:
            self._failures += 1

    def give_up(self) -> int:
        """Drop what is left, since there is no time for it any more; how much that was."""
        lost = len(self._events) + len(self._batch)
        self._events.clear()
        self._batch = []
        self._dropped += lost
        return lost
