"""Joins history and live publications without a gap (protocol, sections 9.2 to 9.5).

Pure functions: lists in, a result out. The result has all publications that were missed, or says
that they were not recovered; it never has a part of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from repeater.publication import Publication, StreamPosition


class Joined(msgspec.Struct, frozen=True):
    """What a subscriber gets, and from which position it goes on."""

    publications: Sequence[Publication]
    """The publications that it missed, oldest first; empty unless recovered."""
    position: StreamPosition
    """How far the subscriber is served; fan-out goes on after this position."""
    recovered: bool = False


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
) -> Joined:
    """Start a subscriber that comes back: with everything after `since`, or not recovered.

    Args:
        since: The subscriber's position; an empty epoch matches any epoch.
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
        # If `since` is above the top, the stream lost publications that this subscriber has seen.
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
    """Both lists after `offset`, in order and without doubles; only publications with offsets."""
    last = history[-1].offset if history else offset
    later = {one.offset: one for one in gathered if one.offset > last}
    return [*history, *(later[offset] for offset in sorted(later))]


def _follows(offset: int, publications: Sequence[Publication], epoch: str) -> bool:
    """Whether these publications come right after `offset`, without a gap, all of this epoch."""
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
