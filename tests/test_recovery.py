"""Joining history and live publications, against a plain model of one stream."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.fanout.recovery import Joined, Loss, join, recover, recover_newest
from repeater.publication import START, Publication, StreamPosition

EPOCH = "now"


def numbered(*offsets: int, epoch: str = EPOCH) -> list[Publication]:
    return [Publication("c", b"%d" % one, offset=one, epoch=epoch) for one in offsets]


class Case(msgspec.Struct, frozen=True):
    """What a subscriber at `since` finds: a history cut by a limit, and what gathered."""

    since: StreamPosition
    history: list[Publication]
    top: StreamPosition
    gathered: list[Publication]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A stream of 1..top of which the oldest are gone, and a fan-out that may be anywhere."""
    top = draw(st.integers(0, 12))
    since = draw(st.integers(0, 14))
    oldest = draw(st.integers(1, top + 1))
    limit = draw(st.integers(0, 12))
    kept = [one for one in range(oldest, top + 1) if one > since]
    asked = draw(st.sampled_from([EPOCH, EPOCH, "", "before"]))
    history = numbered(*kept[:limit]) if asked in ("", EPOCH) else []
    offsets = st.lists(st.integers(0, 18), max_size=8)
    following = st.tuples(st.integers(1, top + 2), st.integers(0, 6)).map(
        lambda run: list(range(run[0], run[0] + run[1]))
    )
    gathered = []
    for offset in draw(st.one_of(following, offsets)):
        epoch = draw(st.sampled_from([EPOCH] * 9 + ["before", "after"])) if offset else ""
        gathered.append(Publication("c", b"%d" % offset, offset=offset, epoch=epoch))
    return Case(StreamPosition(since, asked), history, StreamPosition(top, EPOCH), gathered)


def model(case: Case) -> list[int] | None:
    """The offsets that a recovery has to bring, or None where it can't be whole.

    What is known is what was read and what gathered; whole is from the subscriber's position to
    the last of either, in one epoch.
    """
    since = case.since.offset
    if case.since.epoch not in ("", EPOCH) or since > case.top.offset:
        return None
    new = [one for one in case.gathered if one.offset > max([since, *offsets(case.history)])]
    if any(one.epoch != EPOCH for one in new):
        return None
    known = {*offsets(case.history), *offsets(new)}
    wanted = list(range(since + 1, max([case.top.offset, *known]) + 1))
    return wanted if set(wanted) <= known else None


def offsets(publications: list[Publication]) -> list[int]:
    return [one.offset for one in publications]


@given(cases())
def test_recovery_is_whole_or_not_at_all(case: Case) -> None:
    """Recovered: every offset after `since`, once and in order. Else: not one of them."""
    joined = recover(case.since, case.history, case.top, case.gathered)
    wanted = model(case)
    assert joined.recovered is (wanted is not None)
    assert offsets(list(joined.publications)) == (wanted or [])
    assert all(one.epoch == EPOCH for one in joined.publications)


@given(cases())
def test_position_is_what_fan_out_goes_on_after(case: Case) -> None:
    """Recovered: the last that was brought. Else: as for one that recovers nothing."""
    joined = recover(case.since, case.history, case.top, case.gathered)
    if joined.recovered:
        last = joined.publications[-1].offset if joined.publications else case.since.offset
        assert joined.position == StreamPosition(last, EPOCH)
    else:
        assert joined.loss is not None
        assert msgspec.structs.replace(joined, loss=None) == join(case.top, case.gathered)


@given(cases())
def test_joining_is_at_the_top_or_past_it(case: Case) -> None:
    """Without recovery the position is the top, or a later one that gathered meanwhile."""
    joined = join(case.top, case.gathered)
    assert not joined.publications
    assert not joined.recovered
    positions = {case.top, *(one.position for one in case.gathered if one.offset)}
    assert joined.position in positions
    if joined.position.epoch == EPOCH:
        assert joined.position.offset >= case.top.offset


def test_what_gathered_continues_the_history() -> None:
    """The overlap is told once, and what is in no stream is not told here."""
    gathered = [*numbered(3, 4), Publication("c", b"x"), *numbered(5)]
    joined = recover(StreamPosition(1, EPOCH), numbered(2, 3), StreamPosition(3, EPOCH), gathered)
    assert offsets(list(joined.publications)) == [2, 3, 4, 5]
    assert joined.position == StreamPosition(5, EPOCH)


def test_first_gathered_must_follow_the_top() -> None:
    """With an empty history too, what gathered has to begin right after the position."""
    joined = recover(StreamPosition(3, EPOCH), [], StreamPosition(3, EPOCH), numbered(5))
    assert not joined.recovered
    assert joined.position == StreamPosition(5, EPOCH)


def test_an_offset_in_two_epochs_is_not_recovered() -> None:
    """The stream began anew meanwhile, whatever of it comes last."""
    top = StreamPosition(3, EPOCH)
    gathered = [*numbered(4, epoch="before"), *numbered(4)]
    assert not recover(StreamPosition(2, EPOCH), numbered(3), top, gathered).recovered
    assert not recover(StreamPosition(2, EPOCH), numbered(3), top, gathered[::-1]).recovered


def test_ahead_of_the_top_is_not_recovered() -> None:
    """A stream that lost what the subscriber has seen can't be gone on with."""
    joined = recover(StreamPosition(7, EPOCH), [], StreamPosition(3, EPOCH), [])
    assert joined == Joined((), StreamPosition(3, EPOCH), loss=Loss.END)


@pytest.mark.parametrize(
    ("since", "newest", "recovered", "brought"),
    [
        (START, 5, True, 1),
        (StreamPosition(3, EPOCH), 5, True, 1),
        (StreamPosition(5, EPOCH), 5, True, 0),
        (StreamPosition(5, "before"), 5, True, 1),
        (StreamPosition(5, ""), 5, True, 1),
        (StreamPosition(5, EPOCH), None, False, 0),
        (START, 4, False, 0),
    ],
)
def test_cache_recovery(
    since: StreamPosition, newest: int | None, recovered: bool, brought: int
) -> None:
    """The newest if it is the top, and nothing for who has it; expired is not recovered."""
    found = None if newest is None else numbered(newest)[0]
    joined = recover_newest(since, found, StreamPosition(5, EPOCH))
    assert joined.recovered is recovered
    assert len(joined.publications) == brought
    assert joined.position == StreamPosition(5, EPOCH)


def test_cache_of_an_empty_stream() -> None:
    """A stream without publications has nothing to recover."""
    joined = recover_newest(START, None, StreamPosition(0, EPOCH))
    assert joined == Joined((), StreamPosition(0, EPOCH))
