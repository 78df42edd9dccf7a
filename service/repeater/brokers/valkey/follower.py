"""How far a node has come in a channel's stream, and what a message of the bus means for that.

A bus loses messages when a connection ends, when the server cuts a slow reader, or in a failover.
So no message is trusted: what is not the next one has the stream read, from the place on that was
reached, once for the node and not once for each client. All here decides, and nothing waits.

A failover may lose the end of a stream and number it again, in the same epoch. Then offsets look
right and are wrong. So each publication has a uid, and the place has the uid of its publication: if
the stream has another one there, it has forked, and gets a new epoch. The next failover may lose
that too: an epoch that has ended and is there again is ended once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from repeater.brokers.valkey.values import NO_STREAM, Message, Place, Read
from repeater.publication import Event, Rupture, weight_of

KEPT: Final = 1_000
"""Most messages of one channel that wait while its stream is read; beyond, it is read again."""
ENDED: Final = 4
"""Epochs of a channel that are remembered after their end."""
KEPT_BYTES: Final = 8_388_608
"""The weight of all messages of a node that wait for reads; beyond, streams are read again."""


class Verdict(NamedTuple):
    """What was found."""

    events: Sequence[Event] = ()
    """To be handed on, in this order."""
    forked: str = ""
    """The epoch that must be ended before the stream is read again: it was numbered twice."""


_NOTHING: Final = Verdict()


class Room:
    """The bytes that messages of all channels may take while they wait for reads."""

    __slots__ = ("bytes", "limit")

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self.bytes = 0
        """The weight of the messages that wait."""


class Followed:
    """One channel that a node follows. Lives inside `Holds`, from `hold` until after `release`."""

    __slots__ = (
        *("_kept", "_overflowed", "_room", "_weight"),
        *("channel", "doubts", "ended", "place", "reading"),
    )

    def __init__(self, channel: str, room: Room) -> None:
        self.channel = channel
        self.place: Place | None = None
        """What was handed on last; None until the top was read for the first time."""
        self.reading = True
        """Whether the stream is to be looked at, or is being read: messages wait."""
        self.doubts = 0
        """Changes whenever what was asked for earlier says nothing any more."""
        self.ended: tuple[str, ...] = ()
        """The epochs that were seen to end last: clients may have been told more of them."""
        self._kept: deque[Message] = deque()
        self._overflowed = False
        self._room = room
        self._weight = 0  # of what is kept

    @property
    def kept(self) -> int:
        """The number of messages that wait."""
        return len(self._kept)

    def doubt(self) -> None:
        """Have the stream looked at: messages may have been lost."""
        self.reading = True
        self.doubts += 1

    def cut_off(self) -> None:
        """Have the stream looked at, since the connection has ended.

        Messages that wait may be of publications that a failover has lost. The stream has the
        others.
        """
        self.doubt()
        unnumbered = [one for one in self._kept if one.event and not one.place.offset]
        self.forget()
        for one in unnumbered:
            self._keep(one)

    def miss(self) -> None:
        """Note that a message could not be read: it may have been any."""
        self._overflowed = True
        if not self.reading:
            self.doubt()

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
            if self._follows(place, here):
                self.place = place
                return True
            if not place.offset:
                return True
        if place != here:
            self.doubt()
        return False

    def _follows(self, place: Place, here: Place) -> bool:
        if place.offset != here.offset + 1:
            return False
        return place.epoch == here.epoch or (not here.epoch and place.epoch not in self.ended)

    def _keep(self, message: Message) -> None:
        room, event = self._room, message.event
        weight = 0 if event is None else weight_of(event)
        if len(self._kept) < KEPT and room.bytes + weight <= room.limit:
            self._kept.append(message)
            self._weight += weight
            room.bytes += weight
        else:
            self._overflowed = True

    def forget(self) -> None:
        """Forget what waits: the channel is followed no more."""
        self._kept.clear()
        self._overflowed = False
        self._room.bytes -= self._weight
        self._weight = 0

    def head(self, top: Place) -> Verdict:
        """Take the stream's top, told by the bus in its turn among the messages.

        If that is where the messages have led, all is well. Else the stream is to be read.
        """
        if not self.reading:
            if top != self.place and not self._learn(top):
                self.doubt()
            return _NOTHING
        if self.place is None:
            # All that waits came before the top, and whoever asks for history will find it there.
            self.place = top
            events = [one.event for one in self._kept if one.event and not one.place.offset]
            return self._settled(events)
        if top != self.place and not self._is_younger(top):
            return _NOTHING
        # Messages that follow the place do not prove that the stream has the place's publication:
        # their connection may have begun after a failover.
        if self._overflowed or any(one.place.offset or not one.event for one in self._kept):
            return _NOTHING
        self.place = top
        return self._settled([one.event for one in self._kept if one.event])

    def _settled(self, events: Sequence[Event]) -> Verdict:
        self.forget()
        self.reading = False
        self.doubts += 1
        return Verdict(events)

    def _learn(self, top: Place) -> bool:
        """Note the epoch that a stream without publications has got."""
        is_younger = self._is_younger(top)
        if is_younger:
            self.place = top
        return is_younger

    def _is_younger(self, top: Place) -> bool:
        """Whether a stream has begun where none was, without publications, in a new epoch."""
        return self.place == NO_STREAM and not top.offset and top.epoch not in self.ended

    def read(self, found: Read, doubts: int) -> Verdict:
        """Take what was read from `place` on, when `doubts` was this.

        If `reading` is still set then, the stream must be read again, from the place that is
        reached now. The caller first hands on the events, and ends the epoch that has forked.
        """
        if doubts != self.doubts or not self.reading:
            return _NOTHING
        here, top, entries = self.place, found.top, found.entries
        if here is None:
            self.place = top
            return self._go_on(())
        if top.epoch in self.ended:
            return Verdict(forked=top.epoch)
        if here.epoch not in (top.epoch, ""):
            return self._break_off(top)
        if top.offset < here.offset or (top.offset == here.offset and top.uid != here.uid):
            return Verdict(forked=here.epoch)
        if top.offset == here.offset:
            self.place = top
            return self._go_on(entries)
        if here.offset:
            if not entries or entries[0].place.offset != here.offset:
                return self._break_off(top)  # The place is not kept any more.
            if entries[0].place != here:
                return Verdict(forked=here.epoch)
        following = entries[1:] if here.offset else entries
        if not _is_whole(here.offset, following):
            return self._break_off(top)
        reached = following[-1].place
        if reached.offset < top.offset:  # There is more than is read at a time.
            self.place = reached
            return Verdict([one.event for one in following if one.event is not None])
        self.place = top
        return self._go_on(entries, following)

    def _break_off(self, top: Place) -> Verdict:
        """Publications are missing: go on at the top."""
        if self.place is not None and self.place.epoch not in ("", top.epoch):
            self.ended = (*self.ended, self.place.epoch)[-ENDED:]
        self.place = top
        after = self._go_on(())
        return Verdict([Rupture(self.channel), *after.events])

    def _go_on(self, known: Sequence[Message], following: Sequence[Message] = ()) -> Verdict:
        """Hand on what was read, `following`, and what waited, in the order of their offsets.

        What has no offset stands where it came: right before the next message with one.
        """
        here, doubtful = self.place, self._overflowed
        assert here is not None
        read = deque(following)
        places = {one.place.offset: one.place for one in known}
        events: list[Event] = []
        unnumbered: list[Event] = []

        def give_out_read(below: int) -> None:
            while read and read[0].place.offset < below:
                event = read.popleft().event
                assert event is not None
                events.append(event)

        for place, event in self._kept:
            if event is not None and not place.offset:
                unnumbered.append(event)
                continue
            give_out_read(place.offset)
            events += unnumbered
            unnumbered.clear()
            if event is not None and self._follows(place, here):
                events.append(event)
                here = places[place.offset] = place
            elif place != here and places.get(place.offset) != place:
                # Others are missing before it, or it is old, or another one has its number: one
                # more look at the stream decides this.
                doubtful = True
        give_out_read(here.offset + 1)
        self.place = here
        verdict = self._settled([*events, *unnumbered])
        self.reading = doubtful
        return verdict


def _is_whole(offset: int, following: Sequence[Message]) -> bool:
    """Whether publications follow this offset, and none is missing between them."""
    if not following:
        return False
    return all(one.place.offset == number for number, one in enumerate(following, offset + 1))
