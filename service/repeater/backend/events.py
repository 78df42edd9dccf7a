"""The queue of events of connections and channels, in order, until they are delivered.

Rule 1: to note an event is sync and costs one append, so any code may do so. Rule 2: an event
leaves the queue because the one delivery task takes it or because the queue is full. In both cases
the oldest event leaves first.

A run is one life of a node, as the application sees it. A batch has events of one run only.
"""

from __future__ import annotations

import math
import platform
import time
from collections import deque
from collections.abc import Callable, Sequence
from uuid import uuid4

import msgspec
import trio

from repeater.access.grants import Caller
from repeater.backend.contract import EventStatistics
from repeater.backend.event_batch import Batch, NotedEvent
from repeater.backend.options import EVENT_KINDS, CallbackOptions, EventKind
from repeater.errors import Disconnect, Unsubscribed

_encode = msgspec.json.Encoder().encode


class EventQueue:
    """Implements `Events`. Made and ended by `open_events`; one task takes batches out.

    When the queue is full, it drops the oldest events.
    """

    def __init__(self, options: CallbackOptions, node: str = "", run: str = "") -> None:
        """Note the kinds that the options name.

        Args:
            options: The kinds of events, and how many may wait.
            node: The node's name in each batch; by default the host's.
            run: The name of the run, which no other run ever has; by default a random one.
        """
        self.closing = trio.Event()
        """Set when the node shuts down: delivery stops waiting for fuller batches."""
        self.deadline = math.inf
        """The Trio time by which delivery must end; infinite before the shutdown."""
        self._node = node or platform.node()
        self._run = run or uuid4().hex
        self._batch_run = self._run
        # Runs that begin with a later event: its number, and the run.
        self._runs: deque[tuple[int, str]] = deque()
        self.wanted: frozenset[EventKind] = options.events or EVENT_KINDS
        """The kinds that are noted; others are left out."""
        self._limit = options.event_queue
        self._events: deque[NotedEvent] = deque()
        self._appended = 0
        self._watched: dict[str, Callable[[], None]] = {}
        self._noted = trio.Event()
        self._taken = trio.Event()
        self._closed = False
        self._sequences: dict[str, int] = {}
        self._last = self._last_change = 0
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
        self._change("channel_occupied", channel)

    def channel_vacated(self, channel: str) -> None:
        """Note that a channel's last listener on this node is gone."""
        self._change("channel_vacated", channel)

    def _change(self, kind: EventKind, channel: str) -> None:
        if kind in self.wanted:
            # The clock may be set back while the process runs; the numbers still grow.
            self._last_change = max(self._last_change + 1, int(time.time() * 1_000_000))
            self._append(NotedEvent(*self._stamp(), kind, self._last_change, channel=channel))

    def channel_changed(
        self, kind: EventKind, channel: str, seq: int, delivered: Callable[[], None]
    ) -> None:
        """Note a change over all nodes, which this one tells.

        Args:
            kind: `channel_occupied` or `channel_vacated`.
            channel: The channel.
            seq: The Unix microseconds of the change, or later: no other change of the channel has
                them.
            delivered: Called when the event needs no keeping any more: it was accepted, dropped, or
                is not wanted. Not called if the queue ends before. Never waits and never fails.
        """
        event = NotedEvent(f"{channel}:{seq}", seq // 1_000, kind, seq, channel=channel)
        self._watch(event, delivered)

    def node_lost(self, node: str, run: str, delivered: Callable[[], None]) -> None:
        """Note that another node was lost in a run; `delivered` as of `channel_changed`."""
        now = int(time.time() * 1_000)
        self._watch(NotedEvent(f"{run}-lost", now, "node_lost", node=node, run=run), delivered)

    def _watch(self, event: NotedEvent, delivered: Callable[[], None]) -> None:
        if event.event not in self.wanted:
            delivered()
            return
        before = self._watched.get(event.id)
        if before is not None:  # It waits already: after a failure it is noted again.
            self._watched[event.id] = _both(before, delivered)
            return
        self._watched[event.id] = delivered
        self._append(event)

    def begin_run(self, run: str) -> None:
        """Begin another run, because the application has been told that this one has ended.

        The connections that it knew are unknown again until `connected` is called once more.
        """
        self._run = run
        self._runs.append((self._appended, run))
        self._sequences = {}

    def knows(self, client: str) -> bool:
        """Whether the application was told in this run that the client has connected."""
        return client in self._sequences

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
        if before is None or kind not in self.wanted:
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
            self._keep_no_more((self._events.popleft(),))
            self._dropped += 1
        self._events.append(event)
        self._appended += 1
        self._noted.set()

    def _keep_no_more(self, events: Sequence[NotedEvent]) -> None:
        if self._watched:
            for event in events:
                delivered = self._watched.pop(event.id, None)
                if delivered is not None:
                    delivered()

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

    async def wait_room(self) -> None:
        """Wait until half of the queue is free: for whoever has very much to note.

        No deadline: the application may accept nothing for days. Cancellation leaves nothing
        behind.
        """
        while len(self._events) > self._limit // 2:
            self._taken = trio.Event()
            await self._taken.wait()

    def take(self, most: int) -> None:
        """Move at most `most` of the oldest events, all of one run, to the batch to deliver."""
        first = self._appended - len(self._events)
        while self._runs and self._runs[0][0] <= first:
            _, self._batch_run = self._runs.popleft()
        count = min(most, len(self._events))
        if self._runs:
            count = min(count, self._runs[0][0] - first)
        self._batch = [self._events.popleft() for _ in range(count)]
        self._taken.set()

    def body(self) -> bytes:
        """The body to post for the batch."""
        return _encode(Batch(self._batch_run, self._node, self._dropped, self._batch))

    def tried(self, *, accepted: bool) -> None:
        """Count an attempt to send the batch, and drop the batch if it was accepted."""
        self._attempts += 1
        if accepted:
            self._delivered += len(self._batch)
            batch, self._batch = self._batch, []
            self._keep_no_more(batch)
        else:
            self._failures += 1

    def give_up(self) -> int:
        """Drop all events that are left, because time is over, and return their number."""
        lost = len(self._events) + len(self._batch)
        self._events.clear()
        self._batch = []
        self._dropped += lost
        return lost


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call
