"""The events of a worker's clients, on their way to the supervisor, which delivers all of them.

An event is dropped, and counted, only while more than `LIMIT` bytes of messages wait for the
supervisor, which then answers nothing. The end of a client that the supervisor knows is never
dropped: there is one for each client, and the supervisor counts on it.

Which channels have listeners is not told here. The supervisor knows it from what its workers hold:
`channel_occupied` is the first of all workers, and `channel_vacated` the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.backend.contract import EventStatistics
from repeater.workers.up import (
    ClientConnected,
    ClientDisconnected,
    ClientSubscribed,
    ClientUnsubscribed,
)
from repeater.workers.values import caller_row

if TYPE_CHECKING:
    from repeater.access.grants import Caller
    from repeater.errors import Disconnect, Unsubscribed
    from repeater.workers.calls import Calls
    from repeater.workers.messages import Message

LIMIT: Final = 16 * 1024 * 1024
"""About 100,000 events, the default of `callbacks.event_queue`."""

_NONE: Final = EventStatistics(0, 0, 0, 0, 0)


class WorkerEvents:
    """Implements `Events` over the link. Made by `open_worker_link`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._known: set[str] = set()  # clients that the supervisor knows
        self._dropped = 0

    def connected(self, caller: Caller) -> None:
        """Tell that a client has connected."""
        if self._has_room():
            self._known.add(caller.client)
            self._calls.tell(ClientConnected(caller_row(caller)))

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        """Tell that a client has ended; does nothing if the supervisor does not know the client."""
        if caller.client in self._known:
            self._known.discard(caller.client)
            self._calls.tell(ClientDisconnected(caller_row(caller), why.code, why.reason))

    def subscribed(self, caller: Caller, channel: str) -> None:
        """Tell that a client hears a channel."""
        self._tell(caller, ClientSubscribed(caller_row(caller), channel))

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        """Tell that a client does not hear a channel any more."""
        row = caller_row(caller)
        self._tell(caller, ClientUnsubscribed(row, channel, why.code, why.reason))

    def _tell(self, caller: Caller, event: Message) -> None:
        if caller.client not in self._known:
            self._dropped += 1  # as its `connected`
        elif self._has_room():
            self._calls.tell(event)

    def _has_room(self) -> bool:
        room = self._calls.waiting_bytes < LIMIT
        self._dropped += not room
        return room

    def channel_occupied(self, channel: str) -> None:
        """Do nothing: the broker's `hold` of the channel says it."""

    def channel_vacated(self, channel: str) -> None:
        """Do nothing: the broker's `release` of the channel says it."""

    def shut_down_by(self, deadline: float) -> None:
        """Do nothing: the supervisor delivers, and shuts down after its workers."""

    def statistics(self) -> EventStatistics:
        """What the supervisor counts, at most a second old, and what was dropped here."""
        told = self._calls.told.events or _NONE
        return EventStatistics(
            told.waiting,
            told.delivered,
            told.dropped + self._dropped,
            told.attempts,
            told.failures,
        )
