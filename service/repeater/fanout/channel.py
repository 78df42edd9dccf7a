"""The listeners of one channel, and how far fan-out has come in its stream. All sync.

Listeners are kept by codec, because a publication is encoded once for each codec that has a
listener. Three kinds of listener are kept apart, so that the loop over the live ones has no test
for the others: *joining* (its history is being read; what happens meanwhile gathers), *ahead* (its
history reaches further than fan-out has come), and live.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from repeater.fanout.groups import Group
from repeater.publication import Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.fanout.listener import Listener
    from repeater.protocol.centrifugo.codecs import Codec


class Run(msgspec.Struct, frozen=True):
    """Publications of one channel without a gap between them, and whether one is before them."""

    publications: list[Publication]
    gap_before: bool


class Channel:
    """The listeners of one channel. Lives inside the hub from its first listener to its last."""

    __slots__ = ("ahead", "base", "epoch", "joining", "listeners", "name", "offset", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: dict[Codec, Group] = {}
        self.joining: dict[Listener, list[Publication]] = {}
        self.ahead: dict[Listener, StreamPosition] = {}
        self.offset, self.epoch = 0, ""
        """How far fan-out has come; offset 0 while it has not begun."""
        self.base: Publication | None = None
        """What was distributed last: what a difference is made against."""
        self.version = 0
        """Changes when a listener leaves: a fan-out that let others run looks again."""

    @property
    def empty(self) -> bool:
        """Whether nobody listens any more."""
        return not (self.listeners or self.joining or self.ahead)

    @property
    def size(self) -> int:
        """How many listen, in whatever state."""
        return len(self.joining) + len(self.ahead) + sum(map(len, self.listeners.values()))

    def live(self) -> Iterator[Listener]:
        """The listeners that fan-out reaches."""
        for group in self.listeners.values():
            yield from group

    def hears(self, listener: Listener) -> bool:
        """Whether it may be told something now: it has been answered, and has not ended."""
        return not listener.ended and listener not in self.joining

    def everybody(self) -> Iterator[Listener]:
        """Everybody who listens, in whatever state."""
        yield from self.live()
        yield from self.joining
        yield from self.ahead

    def add(self, listener: Listener) -> None:
        """Let a client hear this channel from now on."""
        group = self.listeners.get(listener.codec)
        if group is None:
            group = self.listeners[listener.codec] = Group()
        group.add(listener)

    def remove(self, listener: Listener) -> None:
        """Nothing of this channel goes to this client any more."""
        self.version += 1
        self.joining.pop(listener, None)
        self.ahead.pop(listener, None)
        group = self.listeners.get(listener.codec)
        if group is None or not group.discard(listener):
            return
        if not len(group):
            del self.listeners[listener.codec]

    def recode(self, listener: Listener, codec: Codec) -> None:
        """Move a live listener to another codec's group, for the next publication on."""
        self.remove(listener)
        listener.codec = codec
        self.add(listener)

    def go_live(self, listener: Listener, position: StreamPosition | None) -> None:
        """End the joining: it has everything up to `position`; None where there is no stream."""
        del self.joining[listener]
        if position is None or (position.offset, position.epoch) == (self.offset, self.epoch):
            self.add(listener)
        else:
            self.ahead[listener] = position

    def advance(self, publications: Sequence[Publication]) -> list[Run]:
        """Move fan-out's position over these; split where there is a gap, drop what is old.

        One comparison for each publication, whatever the number of listeners. Those without an
        offset are in no stream and are always in order.
        """
        for gathered in self.joining.values():
            gathered.extend(publications)
        runs, run = [], list[Publication]()
        gap_before = False
        for publication in publications:
            if publication.offset == 0:
                run.append(publication)
                continue
            following = publication.offset == self.offset + 1 and publication.epoch == self.epoch
            if not following and self.offset:
                if publication.epoch == self.epoch and publication.offset <= self.offset:
                    continue
                if run:
                    runs.append(Run(run, gap_before))
                run, gap_before = [], True
            run.append(publication)
            self.offset, self.epoch = publication.offset, publication.epoch
        if run:
            runs.append(Run(run, gap_before))
        return runs

    def catch_up(self, run: Sequence[Publication]) -> CaughtUp:
        """Take out of `ahead` whom this run of publications reaches; others stay there.

        Whoever it follows exactly is a live listener from here on, and hears the whole run. Of
        the others those who need the same part of it, by the same codec, are one group.
        """
        caught_up = CaughtUp()
        groups: dict[tuple[Codec, int], Group] = {}
        numbered = [publication for publication in run if publication.offset]
        for listener, position in tuple(self.ahead.items()):
            if numbered:
                first, last = numbered[0], numbered[-1]
                if position.epoch != first.epoch or position.offset + 1 < first.offset:
                    # Not taken out: ending it does that, and the channel goes with its last.
                    caught_up.lost.append(listener)
                    continue
                if position.offset + 1 == first.offset:
                    del self.ahead[listener]
                    self.add(listener)
                    continue
                if position.offset <= last.offset:
                    del self.ahead[listener]
                    caught_up.reached.append(listener)
            key = (listener.codec, position.offset)
            group = groups.get(key)
            if group is None:
                group = groups[key] = Group()
                rest = [one for one in run if not one.offset or one.offset > position.offset]
                caught_up.pieces.append((listener.codec, group, rest))
            group.add(listener)
        return caught_up


class CaughtUp(msgspec.Struct):
    """What a run of publications means for those who were ahead of it."""

    lost: list[Listener] = []
    """Something is missing between their position and the run: to be ended."""
    reached: list[Listener] = []
    """To become live listeners after the run."""
    pieces: list[tuple[Codec, Group, Sequence[Publication]]] = []
    """Who gets only a part of the run, and which; it may be empty."""
