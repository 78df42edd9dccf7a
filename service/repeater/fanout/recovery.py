"""Joining history and live publications without a hole (protocol, sections 9.2 to 9.5).

Pure: lists in, an outcome out. All that was missed, or the honest word that it was not recovered;
never a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from repeater.publication import Publication, StreamPosition


class Joined(msgspec.Struct, frozen=True):
    """What a subscriber is given, and from which position it goes on."""

    publications: Sequence[Publication]
    """What it missed, oldest first; empty unless recovered."""
    position: StreamPosition
    """How far it is served by this; fan-out goes on after it."""
    recovered: bool = False


def join(top: StreamPosition, gathered: Sequence[Publication]) -> Joined:
    """A subscriber that recovers nothing: from the top, or from what gathered meanwhile.

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
) -> Joined:
    """A subscriber that comes back: everything after `since`, or not recovered.

    Args:
        since: Where it was; an empty epoch is any.
        history: Publications after `since`, oldest first; a limit may have cut them short.
        top: The stream's position when that history was read.
        gathered: What fan-out distributed since the subscriber joined.
    """
    missed = _merge(since.offset, history, gathered)
    reached = _last(missed) or top
    complete = (
        since.epoch in ("", top.epoch)
        and _follows(since.offset, missed, top.epoch)
        and (missed[-1].offset if missed else since.offset) >= top.offset
        # Ahead of the top: the stream lost what this subscriber has seen.
        and since.offset <= top.offset
    )
    if complete:
        return Joined(missed, StreamPosition(reached.offset, top.epoch), recovered=True)
    return join(top, gathered)


def recover_newest(
    since: StreamPosition, newest: Publication | None, top: StreamPosition
) -> Joined:
    """Cache recovery: the newest publication only, unless the subscriber has it (section 9.5)."""
    if newest is None or newest.offset != top.offset:
        return Joined((), top)
    has_it = 0 < since.offset == top.offset and since.epoch == top.epoch
    return Joined(() if has_it else (newest,), top, recovered=True)


class GoneOn(msgspec.Struct, frozen=True):
    """What is told right after the answer, and how far it reaches."""

    publications: Sequence[Publication]
    position: StreamPosition
    gap: bool
    """Whether something that gathered does not follow."""


def go_on(position: StreamPosition, gathered: Sequence[Publication]) -> GoneOn:
    """From a position over what gathered after it was decided, as far as nothing is missing."""
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
    """Both after `offset`, in order and without doubles; what is in no stream is left out."""
    last = history[-1].offset if history else offset
    later = {one.offset: one for one in gathered if one.offset > last}
    return [*history, *(later[offset] for offset in sorted(later))]


def _follows(offset: int, publications: Sequence[Publication], epoch: str) -> bool:
    """Whether these are the ones right after `offset`, without a hole, all of one epoch."""
    for publication in publications:
        offset += 1
        if publication.offset != offset or publication.epoch != epoch:
            return False
    return True


def _last(publications: Sequence[Publication]) -> StreamPosition | None:
    for publication in reversed(publications):
        if publication.offset:
            return publication.position
    return None
