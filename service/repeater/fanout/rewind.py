"""Starts a subscriber in the past without a position: at the start, N events back, or at a time.

Pure functions, as in `recovery`. Rule: a subscriber gets the newest part of what it asked for,
whole up to the present, and is told (`Joined.lost`) if anything before this part is missing: it is
not kept any more, or was too much for the answer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from repeater.fanout.recovery import Joined, Loss, Room, Size, recover
from repeater.publication import Publication, StreamPosition


class Rewind(msgspec.Struct, frozen=True):
    """What of a stream's past a subscriber asks for. By default all of it."""

    count: int = sys.maxsize
    """The most publications, the newest ones."""
    time: int = 0
    """Unix milliseconds: those that were numbered at this time or later."""

    def limit(self, most: int) -> int:
        """How many of the newest publications to read, where at most so many may be read."""
        return min(self.count, most)

    def wanted(self, publications: Sequence[Publication]) -> Sequence[Publication]:
        """The part of a stream's newest publications that is asked for, oldest first.

        Clocks step: what came after a wanted publication is wanted, whatever its time. A
        publication without a time may be wanted, so it is.
        """
        for number, publication in enumerate(publications):
            if publication.time >= self.time or not publication.time:
                return publications[number:]
        return ()


def rewind(
    asked: Rewind,
    newest: Sequence[Publication],
    top: StreamPosition,
    gathered: Sequence[Publication],
    room: Room,
    size: Size,
) -> Joined:
    """Start a subscriber in the past; not recovered if what gathered does not follow the history.

    Args:
        asked: What the subscriber asks for.
        newest: The stream's newest publications, newest first, as many as `asked.limit` says.
        top: The stream's position when these were read.
        gathered: What fan-out distributed since the subscriber joined.
        room: The room of the answer; what the subscriber gets is taken from it.
        size: The size of each publication in the answer.
    """
    kept = _following(newest, top)
    wanted = asked.wanted(kept)
    later = [one for one in gathered if one.offset > top.offset]
    given = _fitting(wanted, later, room, size)
    begin = given[0].offset - 1 if given else top.offset
    joined = recover(StreamPosition(begin, top.epoch), given, top, gathered, room, size)
    older = len(wanted) == len(kept) < asked.count and (top.offset > len(kept))
    lost = older or len(given) < len(wanted)
    if not (lost and joined.recovered):
        return joined
    loss = Loss.HISTORY if older else Loss.ROOM
    return msgspec.structs.replace(joined, lost=True, loss=loss)


def _following(newest: Sequence[Publication], top: StreamPosition) -> Sequence[Publication]:
    """The publications up to the stream's top, oldest first, as far back as none is missing."""
    kept: list[Publication] = []
    for publication in newest:
        if publication.offset != top.offset - len(kept) or publication.epoch != top.epoch:
            break
        kept.append(publication)
    kept.reverse()
    return kept


def _fitting(
    wanted: Sequence[Publication], later: Sequence[Publication], room: Room, size: Size
) -> Sequence[Publication]:
    """The newest of the wanted publications that fit into the room, before those that came later.

    A single publication fits into an empty room, whatever its size, as for `Room`.
    """
    free = room.limit - room.used - sum(map(size, later))
    alone = not later and not room.used
    for number, publication in enumerate(reversed(wanted)):
        free -= size(publication)
        if free < 0 and (number or not alone):
            return wanted[len(wanted) - number :]
    return wanted
