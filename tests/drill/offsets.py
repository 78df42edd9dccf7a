"""Which event is at which offset, by what publishers and subscribers were told; it does no I/O.

Each event has a number of its own. Whoever is told of an event's place, by an answer or by a
delivery, is told the same as everybody else, or the server has broken a promise: two events at one
offset, or one event at two. A subscriber must get each offset once and in order, or be told. What
one publisher has submitted one after the other is in the stream in this order.

An engine that has lost what it acknowledged numbers anew from there, in the same epoch, until its
nodes have noticed. Then two events may have one place. But nobody may follow the one numbering and
go on with the other: each event has one event before it, whoever sees the two.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.drill.ledger import BrokenPromise

Stream = tuple[str, str]
"""A channel and an epoch."""


_RECENT: Final = 1_000


@dataclass(frozen=True)
class Promise:
    """What somebody was told first of an offset: the event there has been published."""

    moment: int
    """Nanoseconds of the monotonic clock."""
    stream: Stream
    offset: int
    number: int


class Offsets:
    """What is known of all streams. Lives as long as a drill.

    Args:
        kept: So many publications back, a subscriber must be able to recover.
        forgets: Whether streams may begin anew, since the server keeps nothing.
        forks: Whether an engine may lose the end of a stream, and number anew from there.
        evicts: Whether a stream may lose any of its publications, or all.
    """

    def __init__(
        self, kept: int, *, forgets: bool = False, forks: bool = False, evicts: bool = False
    ) -> None:
        self.kept: Final = kept
        self.forgets = forgets or forks or evicts
        self.forks = forks
        self.evicts = evicts
        self.counts: Counter[str] = Counter()
        self.promises: list[Promise] = []
        """In the order of their moments."""
        self.accepted: dict[int, tuple[str, int]] = {}
        """Events that were acknowledged without their place: channel and moment, by number."""
        self.followers: list[Progress] = []
        self._begun: list[int] = []  # the moment of each attempt, by number from 1 on
        self._publishers = array("L", [0])  # of each attempt, by number
        self._before: dict[int, int] = {}  # the event before each event
        self._over = set[Stream]()
        self._streams: defaultdict[Stream, dict[int, int]] = defaultdict(dict)
        self._places: dict[int, tuple[Stream, int]] = {}

    def attempt(self, publisher: int = 0) -> int:
        """The number of one more event, which is about to be published.

        Args:
            publisher: Submits its events one after the other; 0 is nobody, who promises no order.
        """
        self._begun.append(time.monotonic_ns())
        self._publishers.append(publisher)
        self.counts["events"] += 1
        return len(self._begun)

    def accept(self, channel: str, number: int) -> None:
        """The event was acknowledged, without a word about its place."""
        self.accepted[number] = channel, time.monotonic_ns()

    def tell(self, channel: str, epoch: str, offset: int, number: int) -> None:
        """Somebody was told that an event is at an offset.

        Raises:
            BrokenPromise: somebody was told otherwise before.
        """
        stream = (channel, epoch)
        known = self._streams[stream].get(offset)
        if known == number:
            return
        if known is not None:
            if not self.forks:
                raise BrokenPromise(f"{stream} has {number} at {offset}, where {known} was")
            self.counts["renumbered"] += number not in self._places
        if (place := self._places.get(number)) and not self._is_same(place, channel, offset):
            raise BrokenPromise(f"{number} is at {(stream, offset)} and at {place}")
        if not 0 < number <= len(self._begun):
            raise BrokenPromise(f"{stream} has {number} at {offset}, which nobody has published")
        self._streams[stream][offset] = number
        self._places[number] = stream, offset
        self.promises.append(Promise(time.monotonic_ns(), stream, offset, number))

    def _is_same(self, place: tuple[Stream, int], channel: str, offset: int) -> bool:
        """Whether an event that is there can be at this offset too: in another epoch."""
        (known, _), before = place
        return (self.forks or self.evicts) and (known, before) == (channel, offset)

    def publisher_of(self, number: int) -> int:
        """Who has attempted this event."""
        return self._publishers[number]

    def follow(self, before: int, number: int) -> None:
        """Somebody has seen an event right behind another one.

        Raises:
            BrokenPromise: somebody has seen it behind a third one.
        """
        if (known := self._before.setdefault(number, before)) != before:
            raise BrokenPromise(f"{number} comes behind {before}, and behind {known} for others")

    def promised(self) -> list[Promise]:
        """All promises in the order of their moments, with those of acknowledgements alone."""
        more = [
            Promise(moment, *self._places[number], number)
            for number, (_, moment) in self.accepted.items()
            if number in self._places
        ]
        return sorted([*self.promises, *more], key=lambda one: one.moment)

    def numbers(self, stream: Stream) -> Mapping[int, int]:
        """The events of a stream by their offsets, as far as somebody was told of them."""
        return self._streams.get(stream, {})

    def tops(self) -> Mapping[Stream, int]:
        """The highest offset of each stream that somebody was told of, and that is not over."""
        return {
            stream: max(numbers)
            for stream, numbers in self._streams.items()
            if numbers and stream not in self._over
        }

    def unplaced(self) -> Mapping[str, set[int]]:
        """By channel, the acknowledged events whose place nobody was told of."""
        found = defaultdict[str, set[int]](set)
        for number, (channel, _) in self.accepted.items():
            if number not in self._places:
                found[channel].add(number)
        return found

    def since(self, stream: Stream, offset: int, numbers: set[int]) -> set[int]:
        """Those of these events of the stream that surely are at this offset or behind it.

        They were attempted when somebody had been told of such an offset already.
        """
        told = (one for one in self.promises if one.stream == stream and one.offset >= offset)
        first = min((one.moment for one in told), default=None)
        return {one for one in numbers if first is not None and self._begun[one - 1] > first}

    def forget_since(self, moment: int) -> None:
        """Everything that was told after this moment has never happened."""
        for promise in self.promises:
            if promise.moment > moment:
                del self._streams[promise.stream][promise.offset]
                del self._places[promise.number]
        self.promises = [one for one in self.promises if one.moment <= moment]
        self.accepted = {n: one for n, one in self.accepted.items() if one[1] <= moment}

    def begin_anew(self) -> None:
        """All streams are over: an older copy of the history takes its place, and it is told."""
        self.forgets = True
        self._over.update(self._streams)
        self.accepted.clear()

    def progress(self, channel: str) -> Progress:
        """The place of a new subscriber, who sees nothing before it begins."""
        made = Progress(f"follower {len(self.followers)} of {channel}", channel, self)
        self.followers.append(made)
        return made

    def behind(self) -> list[str]:
        """The subscribers that have not yet got what others know to be there."""
        tops = self.tops()
        return [one.name for one in self.followers if one.offset < tops.get(one.stream, 0)]


class Progress:
    """How far one subscriber has come in its channel. Made by `Offsets.progress`."""

    def __init__(self, name: str, channel: str, offsets: Offsets) -> None:
        self.name = name
        self.channel = channel
        self.offset = 0
        self.epoch = ""
        self.recent: deque[int] = deque(maxlen=_RECENT)
        """The last numbers since it began, the last one at its offset."""
        self._last: dict[int, int] = {}  # the last number of each publisher
        self._offsets = offsets

    @property
    def stream(self) -> Stream:
        """Where it is."""
        return self.channel, self.epoch

    def begin(self, epoch: str, offset: int) -> None:
        """The subscription starts at a stream's top; what was missed before is lost, and told.

        Raises:
            BrokenPromise: the server had everything that was missed.
        """
        if self.epoch:
            self._offsets.counts["told"] += 1
            missed = offset - self.offset
            lost = self._offsets.evicts or missed > self._offsets.kept
            if epoch == self.epoch and not lost:
                self._fail(f"was told of a loss, but {missed} publications can be recovered")
            if epoch != self.epoch and not self._offsets.forgets:
                self._fail(f"was in epoch {self.epoch}, and is told of {epoch}")
        self.epoch, self.offset = epoch, offset
        self.recent.clear()
        self._last.clear()

    def resume(self, epoch: str, offset: int) -> None:
        """The server says that it goes on where the subscriber was.

        Raises:
            BrokenPromise: it goes on elsewhere.
        """
        self._offsets.counts["recovered"] += 1
        if (epoch, offset) != (self.epoch, self.offset):
            self._fail(f"was at {self.epoch} {self.offset}, and goes on at {epoch} {offset}")

    def see(self, offset: int, number: int) -> None:
        """A publication has come.

        Raises:
            BrokenPromise: others are missing before it, or it comes twice or out of order.
        """
        if offset != self.offset + 1:
            self._fail(f"got offset {offset} behind {self.offset}")
        self._offsets.tell(self.channel, self.epoch, offset, number)
        if self.recent:
            self._offsets.follow(self.recent[-1], number)
        if publisher := self._offsets.publisher_of(number):
            if (before := self._last.get(publisher, 0)) > number:
                self._fail(f"got {number} behind {before}, which was submitted later")
            self._last[publisher] = number
        self.recent.append(number)
        self.offset = offset
        self._offsets.counts["deliveries"] += 1

    def _fail(self, what: str) -> None:
        raise BrokenPromise(f"{self.name} {what}")
