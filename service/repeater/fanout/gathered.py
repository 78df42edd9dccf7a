"""What fan-out distributes to a listener while the listener joins, bounded in bytes.

A joining listener waits for history, presence or a back end, so it may gather for long. Rule: if
the room is full, everything that gathered is dropped, and the list knows how far it went. So the
listener's answer can say `recovered: false` at that position, and nothing is lost in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repeater.publication import Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.fanout.recovery import Room


class Gathered(list[Publication]):
    """The gathered publications of one listener, in order. Lives as long as the listener joins.

    Listeners that get one answer share a room. A single publication fits into an empty room,
    whatever its size, as for `Room`.
    """

    __slots__ = ("_room", "_size", "broken", "dropped")

    def __init__(self, room: Room) -> None:
        super().__init__()
        self._room = room
        self._size = 0
        self.dropped: StreamPosition | None = None
        """The last position that was dropped; None if nothing with a position was."""
        self.broken = False
        """Whether publications may be missing since the listener joined (`Rupture`)."""

    def gather(self, publications: Sequence[Publication], size: int) -> None:
        """Add publications that take `size` bytes together, or drop these and all before them."""
        if self._room.take(size, len(publications)):
            self._size += size
            self.extend(publications)
        else:
            self.extend(publications)
            self._drop()

    def _drop(self) -> None:
        for publication in reversed(self):
            if publication.offset:
                self.dropped = publication.position
                break
        self.release()
        self.clear()

    def take(self) -> list[Publication]:
        """Take the publications that have an offset; those without one stay for later."""
        taken = [publication for publication in self if publication.offset]
        if taken:
            self[:] = [publication for publication in self if not publication.offset]
            if not self:
                self.release()
        return taken

    def release(self) -> None:
        """Give the room back, because the list was emptied, or its listener has ended."""
        self._room.give_back(self._size)
        self._size = 0
