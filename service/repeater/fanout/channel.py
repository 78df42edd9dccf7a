"""The listeners of one channel, and how far fan-out has come in its stream. All sync.

Listeners are kept by codec, because a publication is encoded once for each codec that has a
listener. Three kinds of listener are kept apart, so that the loop over the live ones has no test
for the others: *joining* (its history is being read, and new publications gather meanwhile),
*ahead* (its history reaches further than fan-out has come), and live.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from repeater.fanout.groups import Group
from repeater.publication import Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.fanout.gathered import Gathered
    from repeater.fanout.listener import Listener
    from repeater.protocol.centrifugo.codecs import Codec


class Run(msgspec.Struct, frozen=True):
    """Publications of one channel without a gap between them; a gap may be before the first."""

    publications: list[Publication]
    gap_before: bool


class Channel:
    """The listeners of one channel. Lives inside the hub from its first listener to its last."""

    __slots__ = ("ahead", "base", "epoch", "joining", "listeners", "name", "offset", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: dict[Codec, Group] = {}
        self.joining: dict[Listener, Gathered] = {}
        self.ahead: dict[Listener, StreamPosition] = {}
        self.offset, self.epoch = 0, ""
        """How far fan-out has come; offset 0 while it has not begun."""
        self.base: Publication | None = None
        """The publication that was distributed last; a delta is made against it."""
        self.version = 0
        """Changes when a listener leaves: fan-out looks again after it let other tasks run."""

    @property
    def empty(self) -> bool:
        """Whether the channel has no listeners any more."""
        return not (self.listeners or self.joining or self.ahead)

    @property
    def size(self) -> int:
        """The number of listeners: joining, ahead and live."""
        return len(self.joining) + len(self.ahead) + sum(map(len, self.listeners.values()))

    def live(self) -> Iterator[Listener]:
        """The listeners that fan-out reaches."""
        for group in self.listeners.values():
            yield from group

    def add(self, listener: Listener) -> None:
        """Let a listener hear this channel from now on."""
        group = self.listeners.get(listener.codec)
        if group is None:
            group = self.listeners[listener.codec] = Group()
        group.add(listener)

    def remove(self, listener: Listener) -> None:
        """Let a listener hear nothing of this channel any more."""
        self.version += 1
        gathered = self.joining.pop(listener, None)
        if gathered is not None:
            gathered.release()
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
        """End a listener's joining: it has everything up to `position`; None without a stream."""
        self.joining.pop(listener).release()
        if position is None or (position.offset, position.epoch) == (self.offset, self.epoch):
            self.add(listener)
        else:
            self.ahead[listener] = position

    def advance(self, publications: Sequence[Publication]) -> Iterator[Run]:
        """Move fan-out's position over these; split at gaps, drop publications that are old.

        One comparison for each publication, whatever the number of listeners. Publications without
        an offset are not in the stream and are always in order.

        Position and joining listeners move run by run. So a listener that goes live while a run is
        given out is *ahead* of the runs behind that one, and hears nothing of them twice.
        """
        run: list[Publication] = []
        gap_before, begin = False, 0
        for number, publication in enumerate(publications):
            if publication.offset == 0:
                run.append(publication)
                continue
            following = publication.offset == self.offset + 1 and publication.epoch == self.epoch
            if not following and self.offset:
                if publication.epoch == self.epoch and publication.offset <= self.offset:
                    continue
                if run:
                    if self.joining:
                        self._gather(publications[begin:number])
                    begin = number
                    yield Run(run, gap_before)
                run, gap_before = [], True
            run.append(publication)
            self.offset, self.epoch = publication.offset, publication.epoch
        if self.joining:
            self._gather(publications[begin:])
        if run:
            yield Run(run, gap_before)

    def _gather(self, publications: Sequence[Publication]) -> None:
        """Add publications to the lists of the joining listeners, counted once for each codec."""
        sizes: dict[Codec, int] = {}
        for listener, gathered in self.joining.items():
            # A publication that a filter leaves out takes memory all the same.
            codec = listener.codec.unfiltered
            size = sizes.get(codec)
            if size is None:
                size = sizes[codec] = sum(map(codec.size, publications))
            gathered.gather(publications, size)

    def break_off(self) -> Sequence[Listener]:
        """Forget fan-out's position, since publications may be missing; return who must be told.

        A joining listener is told as soon as it goes live, since its history may be older than the
        rupture. Whoever goes live later begins anew.
        """
        self.offset, self.epoch, self.base = 0, "", None
        for gathered in self.joining.values():
            gathered.broken = True
        positioned = [one for one in self.live() if one.positioned]
        return [*positioned, *self.ahead]

    def catch_up(self, run: Sequence[Publication]) -> CaughtUp:
        """Take the listeners that this run reaches out of `ahead`; other listeners stay there.

        If the run begins exactly after a listener's position, the listener is live from here on
        and hears the whole run. The others get a part of the run: those that need the same part,
        by the same codec, are one group.
        """
        caught_up = CaughtUp()
        groups: dict[tuple[Codec, int], Group] = {}
        numbered = [publication for publication in run if publication.offset]
        for listener, position in tuple(self.ahead.items()):
            if numbered:
                first, last = numbered[0], numbered[-1]
                if position.epoch != first.epoch or position.offset + 1 < first.offset:
                    # Not taken out here: the end of the listener does that, and removes the
                    # channel with its last listener.
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
    """What a run of publications means for the listeners that were ahead of fan-out."""

    lost: list[Listener] = []
    """Publications are missing between their position and the run: they must be ended."""
    reached: list[Listener] = []
    """They become live listeners after the run."""
    pieces: list[tuple[Codec, Group, Sequence[Publication]]] = []
    """The groups that get only a part of the run, with that part; it may be empty."""
