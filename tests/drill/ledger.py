"""What was published, what each subscriber saw, and what it should have seen; it does no I/O.

The events of a channel are numbered from 1 in the order of their publishing: one at a time, so that
the next one is attempted when the fate of the one before is known. So their order is that of the
server. An event whose publishing failed is *doubtful*: it may have been published all the same. It
becomes certain when anybody sees it.

A subscriber's *track* in a channel must have each certain event once and in order. There is one
exception: whoever is told of a loss starts anew behind everything attempted by then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field


class BrokenPromise(Exception):  # noqa: N818  # what the program is made to find
    """The server did what it promises never to do."""


@dataclass
class _Channel:
    attempted: int = 0
    doubtful: set[int] = field(default_factory=set)
    tracks: list[Track] = field(default_factory=list)

    def certain(self, after: int, before: int) -> list[int]:
        """The numbers between these two that every subscriber should have seen."""
        return [n for n in range(after + 1, before) if n not in self.doubtful]


class Track:
    """One subscriber in one channel. Made by `Ledger.track`."""

    def __init__(self, name: str, channel: _Channel, ledger: Ledger) -> None:
        self.name = name
        self._channel = channel
        self._ledger = ledger
        self._seen = set[int]()
        self._skipped = set[int]()  # doubtful numbers that it did not see
        self._last = 0  # the highest number seen
        self._due = 0  # each certain number above this one is still to come
        self._offset: int | None = None
        self._begun = False

    def begin(self, offset: int | None = None, *, told: bool = True) -> None:
        """The subscription starts at the stream's top: what was missed before is lost, and told.

        Args:
            offset: The server's word on where that is, if it gave one.
            told: False for an end and a new start that the subscriber itself can see, as of a
                way in that has no recovery: it loses without being told in words.

        Raises:
            BrokenPromise: nothing forgets events at this moment, and the server has them all.
        """
        missed = len(self._channel.certain(self._due, self._channel.attempted + 1))
        if self._begun and told:
            self._ledger.counts["told"] += 1
            if not self._ledger.forgetting and missed <= self._ledger.kept:
                self._fail(f"was told of a loss, but {missed} events can be recovered")
        self._begun = True
        self._due = max(self._due, self._channel.attempted)
        self._offset = offset

    def resume(self, offset: int | None = None) -> None:
        """The server says that it goes on where the subscriber was.

        Raises:
            BrokenPromise: it goes on elsewhere.
        """
        self._ledger.counts["recovered"] += 1
        if not self._begun:
            self._fail("was told to go on without ever having begun")
        if None not in (offset, self._offset) and offset != self._offset:
            self._fail(f"was at offset {self._offset}, and is told to go on at {offset}")
        self._offset = offset

    def see(self, number: int, offset: int | None = None) -> None:
        """An event has come.

        Raises:
            BrokenPromise: events are missing before it, or it comes twice or out of order.
        """
        if not self._begun:
            self._fail(f"got {number} before it was subscribed")
        if number in self._seen:
            self._fail(f"got {number} twice")
        if number <= self._last:
            self._fail(f"got {number} behind {self._last}")
        if number > self._channel.attempted:
            self._fail(f"got {number}, which nobody has published")
        if lost := self._channel.certain(self._due, number):
            self._fail(f"got {number}, and never {lost}")
        if offset is not None and self._offset is not None and offset != self._offset + 1:
            self._fail(f"got {number} at offset {offset} behind offset {self._offset}")
        self._skipped.update(range(self._due + 1, number))
        self._seen.add(number)
        self._last = self._due = number
        self._offset = offset
        self._channel.doubtful.discard(number)
        self._ledger.counts["deliveries"] += 1

    def missing(self) -> list[int]:
        """The numbers that it should see, and has not seen yet."""
        return self._channel.certain(self._due, self._channel.attempted + 1)

    def check_skipped(self) -> None:
        """Look whether a doubtful event that others saw was lost here.

        Raises:
            BrokenPromise: one was.
        """
        if lost := sorted(self._skipped - self._channel.doubtful):
            self._fail(f"never got {lost}, which were accepted or seen by others")

    def _fail(self, what: str) -> None:
        raise BrokenPromise(f"{self.name} {what}")


class Ledger:
    """All events and all tracks.

    Args:
        kept: So many events back, a subscriber must be able to recover.
    """

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.forgetting = False
        """Whether the server may have lost events now, or not have kept them. It must tell it."""
        self.counts: Counter[str] = Counter()
        self._channels: defaultdict[str, _Channel] = defaultdict(_Channel)

    def attempt(self, channel: str) -> int:
        """The number of the next event, which is about to be published."""
        found = self._channels[channel]
        found.attempted += 1
        found.doubtful.add(found.attempted)
        self.counts["events"] += 1
        return found.attempted

    def accept(self, channel: str, number: int) -> None:
        """The server has acknowledged this event."""
        self._channels[channel].doubtful.discard(number)

    def track(self, subscriber: str, channel: str) -> Track:
        """A new subscriber's track; it sees nothing before it begins."""
        found = self._channels[channel]
        track = Track(f"{subscriber} in {channel}", found, self)
        found.tracks.append(track)
        return track

    def behind(self) -> dict[str, list[int]]:
        """What subscribers still miss, by track."""
        tracks = [track for channel in self._channels.values() for track in channel.tracks]
        return {track.name: missing for track in tracks if (missing := track.missing())}

    def check(self) -> None:
        """The last word, when all have gone on for long enough.

        Raises:
            BrokenPromise: a subscriber still misses events.
        """
        for name, missing in self.behind().items():
            raise BrokenPromise(f"{name} never got {missing}")
        for channel in self._channels.values():
            for track in channel.tracks:
                track.check_skipped()
