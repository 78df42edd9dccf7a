"""What is known of offsets notices each loss, double, disorder and contradiction."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drill.history_file import StoredStream, check_history, check_once
from tests.drill.ledger import BrokenPromise
from tests.drill.offsets import Offsets, Progress

CHANNEL, EPOCH = "news", "e"


def follower(count: int, **options: bool) -> tuple[Offsets, Progress]:
    """A follower from a stream's begin, and so many events that are attempted."""
    offsets = Offsets(kept=10, **options)
    progress = offsets.progress(CHANNEL)
    progress.begin(EPOCH, 0)
    for _ in range(count):
        offsets.attempt()
    return offsets, progress


@given(st.integers(0, 20), st.sets(st.integers(1, 20)))
def test_each_offset_once_and_in_order_is_right(count: int, reconnects: set[int]) -> None:
    """However often the follower comes back where it was."""
    offsets, progress = follower(count)
    for offset in range(1, count + 1):
        progress.see(offset, offset)
        if offset in reconnects:
            progress.resume(EPOCH, offset)
    assert offsets.counts["deliveries"] == count
    assert not offsets.behind()


@given(st.lists(st.integers(1, 5), max_size=6))
def test_any_other_order_is_noticed(seen: list[int]) -> None:
    """By a loss before, a double, or by what is missing at the end."""
    offsets, progress = follower(5)
    for offset in range(1, 6):
        offsets.tell(CHANNEL, EPOCH, offset, offset)
    if seen == [1, 2, 3, 4, 5]:
        return
    try:
        for offset in seen:
            progress.see(offset, offset)
    except BrokenPromise:
        return
    assert offsets.behind() == [progress.name]


def test_two_events_at_one_offset_are_noticed() -> None:
    """So is one event at two offsets, and an event that nobody published."""
    offsets, progress = follower(3)
    progress.see(1, 1)
    with pytest.raises(BrokenPromise, match="has 2 at 1, where 1 was"):
        offsets.tell(CHANNEL, EPOCH, 1, 2)
    with pytest.raises(BrokenPromise, match="1 is at "):
        progress.see(2, 1)
    with pytest.raises(BrokenPromise, match="nobody has published"):
        offsets.tell(CHANNEL, EPOCH, 2, 4)


def test_a_needless_loss_is_noticed() -> None:
    """A server that keeps ten publications may not say that ten are lost, nor change the epoch."""
    _, progress = follower(0)
    with pytest.raises(BrokenPromise, match="10 publications can be recovered"):
        progress.begin(EPOCH, 10)
    with pytest.raises(BrokenPromise, match="is told of other"):
        progress.begin("other", 0)
    progress.begin(EPOCH, 11)


def test_a_server_that_keeps_nothing_may_begin_anew() -> None:
    """The follower is told so by another epoch."""
    offsets, progress = follower(1, forgets=True)
    progress.begin("other", 0)
    progress.see(1, 1)
    assert offsets.counts["told"] == 1


def test_a_publisher_whose_events_change_places_is_noticed() -> None:
    """What it submitted first must come first; another publisher's events may come between."""
    offsets, progress = follower(0)
    first, second, other = (offsets.attempt(publisher) for publisher in (1, 1, 2))
    progress.see(1, other)
    progress.see(2, second)
    with pytest.raises(BrokenPromise, match="got 1 behind 2, which was submitted later"):
        progress.see(3, first)


def test_an_engine_may_number_anew_what_it_has_lost() -> None:
    """Followers of either numbering are right, until each is told of a new epoch."""
    offsets, progress = follower(4, forks=True)
    other = offsets.progress(CHANNEL)
    other.begin(EPOCH, 0)
    for one in (progress, other):
        one.see(1, 1)
    progress.see(2, 2)
    other.see(2, 3)
    for one in (progress, other):
        one.begin("fork", 2)
        one.see(3, 4)
    assert offsets.counts["renumbered"] == 1


def test_a_follower_of_two_numberings_is_noticed() -> None:
    """It has seen an event that was lost, and goes on behind the one that has its place."""
    offsets, progress = follower(4, forks=True)
    other = offsets.progress(CHANNEL)
    other.begin(EPOCH, 0)
    progress.see(1, 1)
    other.see(1, 2)
    other.see(2, 3)
    with pytest.raises(BrokenPromise, match="3 comes behind 1, and behind 2 for others"):
        progress.see(2, 3)


def test_an_event_of_two_offsets_is_noticed_after_a_fork() -> None:
    """It may be there in the old epoch and in the new one, at one offset."""
    offsets, _ = follower(1, forks=True)
    offsets.tell(CHANNEL, EPOCH, 1, 1)
    offsets.tell(CHANNEL, "fork", 1, 1)
    with pytest.raises(BrokenPromise, match="1 is at "):
        offsets.tell(CHANNEL, "fork", 2, 1)


def test_an_engine_that_evicts_may_say_of_anything_that_it_is_lost() -> None:
    """Also in the same epoch, since it may have lost the publications and kept the position."""
    offsets, progress = follower(0, evicts=True)
    progress.begin(EPOCH, 1)
    assert offsets.counts["told"] == 1


def test_what_was_told_after_a_moment_can_be_forgotten() -> None:
    """A loss of power at that moment: the number and the offset are free again."""
    offsets, progress = follower(2)
    progress.see(1, 1)
    progress.see(2, 2)
    offsets.forget_since(offsets.promises[0].moment)
    assert offsets.tops() == {(CHANNEL, EPOCH): 1}
    offsets.tell(CHANNEL, EPOCH, 2, offsets.attempt())


def stored(*numbers: int, first: int = 1, epoch: str = EPOCH) -> dict[str, StoredStream]:
    """A file with one channel."""
    top = first + len(numbers) - 1
    return {CHANNEL: StoredStream(epoch, top, first, array("q", numbers))}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({}, "is not in the file"),
        (stored(1, 2), "2 publications, 3 were promised"),
        (stored(1, 2, 3, epoch="other"), "has the epoch other"),
        (stored(1, 3, 2), "has 3 at 2, not 2"),
        (stored(3, first=3), "1 of 2 kept publications"),
        (stored(1, 2, 3), r"acknowledged: \{4\}"),
    ],
)
def test_a_file_that_lacks_something_is_noticed(file: dict[str, StoredStream], said: str) -> None:
    """Whatever was promised must be there, at its place."""
    offsets, _ = follower(4)
    for offset in (1, 2, 3):
        offsets.tell(CHANNEL, EPOCH, offset, offset)
    offsets.accept(CHANNEL, 4)
    with pytest.raises(BrokenPromise, match=said):
        check_history(file, offsets, size=2)


def test_an_event_may_be_pushed_out_before_anybody_was_told_its_place() -> None:
    """Only an event that began behind the oldest one in the file must be there."""
    offsets, _ = follower(4)
    offsets.accept(CHANNEL, 1)
    for offset in (2, 3):
        offsets.tell(CHANNEL, EPOCH, offset, offset)
    check_history({CHANNEL: stored(2, 3, first=2)[CHANNEL]}, offsets, size=2)
    late = offsets.attempt()
    offsets.accept(CHANNEL, late)
    with pytest.raises(BrokenPromise, match=rf"acknowledged: \{{{late}\}}"):
        check_history({CHANNEL: stored(2, 3, first=2)[CHANNEL]}, offsets, size=2)


def test_a_file_may_have_more_than_was_promised() -> None:
    """An event whose answer got lost may have been kept."""
    offsets, _ = follower(2)
    offsets.tell(CHANNEL, EPOCH, 1, 1)
    check_history(stored(1, 2), offsets, size=2)
    with pytest.raises(BrokenPromise, match="twice"):
        check_once(stored(1, 1))
