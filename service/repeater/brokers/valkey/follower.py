"""How far a node has come in a channel's stream, and what a message of the bus means for that.

A bus loses messages when a connection ends, when the server cuts a slow reader, or in a failover.
So no message is trusted: what is not the next one has the stream read, from the place on that was
reached, once for the node and not once for each client. All here decides, and nothing waits.

A failover may lose the end of a stream and number it again, in the same epoch. Then offsets look
right and are wrong. So each publication has a uid, and the place has the uid of its publication: if
the stream has another one there, it has forked, and gets a new epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from repeater.publication import Event, Rupture

KEPT: Final = 1_000
"""Most messages of one channel that wait while its stream is read; beyond, it is read again."""


class Place(NamedTuple):
    """A publication of a stream: its offset, the stream's epoch, and its uid.

    Offset 0: before the first one. Then there is no uid, and where there is no stream, no epoch.
    """

    offset: int
    epoch: str
    uid: bytes


class Message(NamedTuple):
    """What came by the bus, or one entry of a stream. Offset 0: it is in no stream."""

    place: Place
    event: Event | None
    """None: the stream has changed, and must be looked at."""


class Read(NamedTuple):
    """What a stream has: its top, and entries from the place on that was asked for, inclusive."""

    top: Place
    entries: Sequence[Message]


class Verdict(NamedTuple):
    """What was found by reading."""

    events: Sequence[Event] = ()
    """To be handed on, in this order."""
    again: bool = False
    """The stream must be read again, from the place on that is reached now."""
    forked: str = ""
    """The epoch that must be ended first, since its publications were numbered twice."""


class Followed:
    """One channel that a node follows. Lives inside the broker from `hold` until after `release`."""

    __slots__ = ("_kept", "_overflowed", "channel", "given_up", "place", "reading")

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.given_up = False
        """Whether the node follows it no more; what is under way for it ends."""
        self.place: Place | None = None
        """What was handed on last; None until the stream was read for the first time."""
        self.reading = True
        """Whether the stream is to be read, or is being read: messages wait."""
        self._kept: deque[Message] = deque()
        self._overflowed = False

    def doubt(self) -> None:
        """Have the stream read: messages may have been lost."""
        self.reading = True

    def take(self, message: Message) -> bool:
        """Take a message; whether its event is to be handed on now.

        If not, it is an old one, or waits; then `reading` says whether the stream is to be read.
        """
        if self.reading:
            self._keep(message)
            return False
        here, place, event = self.place, message.place, message.event
        assert here is not None
        if event is not None:
            if place.offset == here.offset + 1 and here.epoch in (place.epoch, ""):
                self.place = place
                return True
            if not place.offset:
                return True
        if place != here:
            self.reading = True
        return False

    def _keep(self, message: Message) -> None:
        if len(self._kept) < KEPT:
            self._kept.append(message)
        else:
            self._overflowed = True

    def compare(self, head: Place) -> None:
        """Look at what the store says of the top; the stream is read if it is not the place."""
        if head != self.place:
            self.reading = True

    def read(self, found: Read) -> Verdict:
        """Take what was read from `place` on; all that waits is decided, or the stream read again.

        The caller hands on the events before it reads again, and before it gives the channel up.
        """
        here, top, entries = self.place, found.top, found.entries
        if here is None:
            self.place = top
            return self._go_on(entries, [])
        if here.epoch not in (top.epoch, ""):
            return self._break_off(top)
        if top.offset < here.offset or (top.offset == here.offset and top != here):
            return Verdict(again=True, forked=here.epoch)
        if top == here:
            return self._go_on(entries, [])
        if here.offset:
            if not entries or entries[0].place.offset != here.offset:
                return self._break_off(top)  # the place is not kept any more
            if entries[0].place != here:
                return Verdict(again=True, forked=here.epoch)
            following = entries[1:]
        elif not top.offset:
            following = ()  # a stream has begun, and has no publication yet
        elif not entries or entries[0].place.offset != 1:
            return self._break_off(top)
        else:
            following = entries
        events = [one.event for one in following if one.event is not None]
        self.place = following[-1].place if following else top
        if self.place.offset < top.offset:
            return Verdict(events, again=True)  # more than is read at a time
        return self._go_on(entries, events)

    def _break_off(self, top: Place) -> Verdict:
        """Publications are missing: go on at the top."""
        self.place = top
        return self._go_on((), [Rupture(self.channel)])

    def _go_on(self, entries: Sequence[Message], events: list[Event]) -> Verdict:
        """Take what came meanwhile; `events` come before."""
        known = {one.place.offset: one.place for one in entries}
        here, doubtful = self.place, self._overflowed
        assert here is not None
        for place, event in self._kept:
            if event is not None and not place.offset:
                events.append(event)
            elif (
                event is not None
                and place.offset == here.offset + 1
                and here.epoch in (place.epoch, "")
            ):
                events.append(event)
                here = known[place.offset] = place
            elif place != here and known.get(place.offset) != place:
                # Others are missing before it, or it is old, or another one has its number: one
                # more look at the stream decides this for all that wait.
                doubtful = True
        self.place = here
        self._kept.clear()
        self._overflowed = False
        self.reading = doubtful
        return Verdict(events, again=doubtful)
