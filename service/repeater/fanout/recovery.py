"""Joins history and live publications without a gap (protocol, sections 9.2 to 9.5).

Pure functions: lists in, a result out. The result has all publications that were missed, or says
that they were not recovered; it never has a part of them.

Rule: what was missed and does not fit into the room of the answer, half an outbox, is not
recovered. A client would be cut as slow for more, come back, and be cut again, for ever. A single
publication is always recovered, since it was accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final

import msgspec

from repeater.causes import Cause, Why
from repeater.errors import ErrorCode, ReplyError
from repeater.publication import Publication, StreamPosition

_UINT64: Final = 2**64 - 1
_NO_OFFSET: Final = Why(Cause.REQUEST, "offset: must be a whole number from 0 to 2^64 - 1")

Size = Callable[[Publication], int]
"""At most the bytes that a publication takes in the answer; 0 if it is left out."""


class Room:
    """The bytes of publications that one answer may have, see `Rooms`."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int = sys.maxsize) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int, count: int) -> bool:
        """Take `count` publications of `size` bytes together into the answer, or none of them."""
        alone = count == 1 and not self.used
        if size and self.used + size > self.limit and not alone:
            return False
        self.used += size
        return True

    def take_all(self, sizes: Iterable[int]) -> bool:
        """Take publications of these sizes, or none; stops counting where it is too much."""
        total, count = 0, 0
        for size in sizes:
            if not size:
                continue
            total += size
            count += 1
            if self.used + total > self.limit and (count > 1 or self.used):
                return False
        return self.take(total, count)

    def give_back(self, size: int) -> None:
        """Take out what has left the answer again."""
        self.used -= size


class Rooms:
    """The rooms of one answer. All subscriptions that are answered together share them.

    Made with the answer, and forgotten with it.
    """

    __slots__ = ("gathered", "missed")

    def __init__(self, outbox_limit: int, waiting: int = 0) -> None:
        """Half an outbox for what was missed, and half for what gathers until the answer.

        Args:
            outbox_limit: The bytes that an outbox holds.
            waiting: The bytes that wait in the outbox already.
        """
        self.missed = Room(max(0, outbox_limit // 2 - waiting))
        self.gathered = Room(outbox_limit // 2)


def fitting(publications: Sequence[Publication], size: Size, limit: int) -> Sequence[Publication]:
    """As many publications as fit into `limit` bytes, from the first one on; always the first."""
    total = 0
    for number, publication in enumerate(publications):
        total += size(publication)
        if number and total > limit:
            return publications[:number]
    return publications


def named_position(offset: int, epoch: str) -> StreamPosition:
    """A position as a client or a back end names it.

    Raises:
        ReplyError: the offset is not an unsigned number of 64 bits (107).
    """
    if not 0 <= offset <= _UINT64:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_NO_OFFSET)
    return StreamPosition(offset, epoch)


class Loss(Enum):
    """Why what a subscriber missed cannot be given."""

    EPOCH = "epoch"
    """The stream has begun anew."""
    END = "end"
    """The stream has lost its end: the subscriber is ahead of it."""
    HISTORY = "history"
    """The publications are not kept any more."""
    LIMIT = "limit"
    """There are more of them than one answer may have."""
    ROOM = "room"
    """They are too large for one answer."""
    MEANWHILE = "meanwhile"
    """Too much was published while the subscriber came back."""
    WAY = "way"
    """Some did not come from the engine."""


class Joined(msgspec.Struct, frozen=True):
    """What a subscriber gets, and from which position it goes on."""

    publications: Sequence[Publication]
    """The publications that it missed, oldest first; empty unless recovered."""
    position: StreamPosition
    """How far the subscriber is served; fan-out goes on after this position."""
    recovered: bool = False
    lost: bool = False
    """Whether something is missing before the publications, of what a `Rewind` asked for."""
    loss: Loss | None = None
    """Why it is not recovered, or what is `lost`."""

    @property
    def begin(self) -> StreamPosition:
        """The position before the publications."""
        if not self.publications:
            return self.position
        return StreamPosition(self.publications[0].offset - 1, self.position.epoch)


def join(top: StreamPosition, gathered: Sequence[Publication]) -> Joined:
    """Start a subscriber that recovers nothing: at the top, or after what gathered meanwhile.

    Args:
        top: The stream's position when its history was read.
        gathered: What fan-out distributed since the subscriber joined.
    """
    last = _last(gathered)
    if last is None or (last.epoch == top.epoch and last.offset <= top.offset):
        return Joined((), top)
    return Joined((), last)


def recover(
    since: StreamPosition,
    history: Sequence[Publication],
    top: StreamPosition,
    gathered: Sequence[Publication],
    room: Room | None = None,
    size: Size = lambda publication: len(publication.data),
) -> Joined:
    """Start a subscriber that comes back: with everything after `since`, or not recovered.

    Args:
        since: The subscriber's position; an empty epoch matches any epoch.
        history: Publications after `since`, oldest first; a limit may have cut them short.
        top: The stream's position when that history was read.
        gathered: What fan-out distributed since the subscriber joined.
        room: The room of the answer; what is recovered is taken from it. None for no bound.
        size: The size of each publication in the answer.
    """
    missed = _merge(since.offset, history, gathered)
    reached = _last(missed) or top
    complete = (
        since.epoch in ("", top.epoch)
        and _follows(since.offset, missed, top.epoch)
        and (missed[-1].offset if missed else since.offset) >= top.offset
        # If `since` is above the top, the stream lost publications that this subscriber has seen.
        and since.offset <= top.offset
    )
    if complete and (room is None or room.take_all(map(size, missed))):
        return Joined(missed, StreamPosition(reached.offset, top.epoch), recovered=True)
    loss = Loss.ROOM if complete else _loss(since, history, top)
    return msgspec.structs.replace(join(top, gathered), loss=loss)


def recover_newest(
    since: StreamPosition,
    newest: Publication | None,
    top: StreamPosition,
    room: Room | None = None,
    size: Size = lambda publication: len(publication.data),
) -> Joined:
    """Cache recovery: the newest publication only, unless the subscriber has it (section 9.5).

    `room` and `size` are as for `recover`.
    """
    if newest is None or newest.offset != top.offset:
        # An empty stream, or one whose newest publication the subscriber has, has lost it nothing.
        loss = Loss.HISTORY if since.offset != top.offset else None
        return Joined((), top, loss=loss)
    has_it = 0 < since.offset == top.offset and since.epoch == top.epoch
    missed = () if has_it else (newest,)
    if room is not None and not room.take_all(map(size, missed)):
        return Joined((), top, loss=Loss.ROOM)
    return Joined(missed, top, recovered=True)


def after_drop(joined: Joined, dropped: StreamPosition | None) -> Joined:
    """Start a subscriber of which gathered publications up to `dropped` were dropped.

    If the subscriber's position does not reach so far, it has lost them: it goes on after them,
    not recovered.
    """
    if dropped is None:
        return joined
    reached = joined.position
    if reached.epoch == dropped.epoch and reached.offset >= dropped.offset:
        return joined
    return Joined((), dropped, loss=Loss.MEANWHILE)


class GoneOn(msgspec.Struct, frozen=True):
    """The publications that are sent right after the answer, and how far they reach."""

    publications: Sequence[Publication]
    position: StreamPosition
    gap: bool
    """Whether a gathered publication does not follow the one before it."""


def go_on(position: StreamPosition, gathered: Sequence[Publication]) -> GoneOn:
    """The publications that gathered after `position` was decided, up to the first gap."""
    publications, gap = [], False
    for publication in gathered:
        if publication.offset:
            if publication.epoch == position.epoch and publication.offset <= position.offset:
                continue
            gap = gap or publication.position != StreamPosition(position.offset + 1, position.epoch)
            if gap:
                continue
            position = StreamPosition(publication.offset, publication.epoch)
        publications.append(publication)
    return GoneOn(publications, position, gap)


def _merge(
    offset: int, history: Sequence[Publication], gathered: Sequence[Publication]
) -> Sequence[Publication]:
    """Both lists after `offset`, in order and without doubles; only publications with offsets.

    Publications of two epochs may have one offset: both stay, so that neither hides the other.
    """
    last = history[-1].offset if history else offset
    later = {(one.offset, one.epoch): one for one in gathered if one.offset > last}
    return [*history, *(later[place] for place in sorted(later))]


def _follows(offset: int, publications: Sequence[Publication], epoch: str) -> bool:
    """Whether these publications come right after `offset`, without a gap, all of this epoch."""
    for publication in publications:
        offset += 1
        if publication.offset != offset or publication.epoch != epoch:
            return False
    return True


def _loss(since: StreamPosition, history: Sequence[Publication], top: StreamPosition) -> Loss:
    """Why the publications after `since`, up to the stream's top, are not all there."""
    if since.epoch not in ("", top.epoch):
        return Loss.EPOCH
    if since.offset > top.offset:
        return Loss.END
    if not history:
        return Loss.HISTORY if since.offset < top.offset else Loss.WAY
    if not _follows(since.offset, history, top.epoch):
        return Loss.HISTORY
    return Loss.LIMIT if history[-1].offset < top.offset else Loss.WAY


def _last(publications: Sequence[Publication]) -> StreamPosition | None:
    for publication in reversed(publications):
        if publication.offset:
            return publication.position
    return None
