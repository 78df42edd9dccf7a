"""The drill's ledger notices each loss, double and disorder, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drill.ledger import BrokenPromise, Ledger, Track

CHANNEL = "news"


def published(count: int, *, doubtful: frozenset[int] = frozenset()) -> tuple[Ledger, Track]:
    """A ledger with a subscriber that was there before these events were published."""
    ledger = Ledger(kept=100)
    track = ledger.track("one", CHANNEL)
    track.begin(0)
    publish(ledger, count, doubtful)
    return ledger, track


def publish(ledger: Ledger, count: int, doubtful: frozenset[int] = frozenset()) -> None:
    for _ in range(count):
        number = ledger.attempt(CHANNEL)
        if number not in doubtful:
            ledger.accept(CHANNEL, number)


def see(ledger: Ledger, track: Track, numbers: list[int], *, reconnects: bool = False) -> None:
    """All that the subscriber sees, and the verdict."""
    for number in numbers:
        if reconnects:
            track.resume()
        track.see(number)
    ledger.check()


@given(st.integers(1, 30), st.lists(st.booleans(), max_size=30))
def test_all_in_order_is_right(count: int, reconnects: list[bool]) -> None:
    """Whoever sees each event once and in order keeps all promises, over any reconnects."""
    ledger, track = published(count)
    for number in range(1, count + 1):
        if number < len(reconnects) and reconnects[number]:
            track.resume(number - 1)
        track.see(number, number)
    ledger.check()
    assert ledger.counts["deliveries"] == ledger.counts["events"] == count


@given(st.data(), st.integers(1, 20), st.booleans())
def test_any_other_order_is_noticed(data: st.DataObject, count: int, reconnects: bool) -> None:
    """Each list of deliveries but the right one breaks a promise: by loss, double or disorder."""
    numbers = st.lists(st.integers(1, count), max_size=2 * count)
    seen = data.draw(numbers.filter(lambda drawn: drawn != list(range(1, count + 1))))
    ledger, track = published(count)
    with pytest.raises(BrokenPromise):
        see(ledger, track, seen, reconnects=reconnects)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ([1, 3], "one in news got 3, and never [2]"),
        ([1, 2, 2], "one in news got 2 twice"),
        ([1, 2], "one in news never got [3]"),
        ([1, 2, 3, 4], "one in news got 4, which nobody has published"),
    ],
)
def test_the_promise_is_named(seen: list[int], said: str) -> None:
    """The error says who lost what."""
    ledger, track = published(3)
    with pytest.raises(BrokenPromise) as broken:
        see(ledger, track, seen)
    assert str(broken.value) == said


def test_disorder_is_told_from_a_double() -> None:
    """An old event that the subscriber had not seen is disorder: here it was told of a loss."""
    ledger, track = published(3)
    ledger.forgetting = True
    track.see(1)
    track.begin()
    track.see(3)
    with pytest.raises(BrokenPromise, match="got 2 behind 3"):
        track.see(2)


@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10))
def test_a_told_loss_is_none(before: int, away: int, after: int) -> None:
    """Whoever was told of a loss must get what follows, and nothing of what was before."""
    ledger, track = published(before)
    ledger.forgetting = True
    for number in range(1, before + 1):
        track.see(number)
    publish(ledger, away)
    track.begin()
    publish(ledger, after)
    for number in range(before + away + 1, before + away + after + 1):
        track.see(number)
    ledger.check()
    assert ledger.counts["told"] == 1


def test_a_loss_right_behind_a_told_one_is_noticed() -> None:
    """A subscription that starts anew must get the next event."""
    ledger, track = published(5)
    ledger.forgetting = True
    track.begin()
    publish(ledger, 2)
    with pytest.raises(BrokenPromise, match=r"got 7, and never \[6\]"):
        track.see(7)


def test_a_needless_loss_is_noticed() -> None:
    """A server that has all events may not say that they are lost."""
    ledger, track = published(ledger_kept := 100)
    assert ledger.kept == ledger_kept
    with pytest.raises(BrokenPromise, match="told of a loss, but 100 events can be recovered"):
        track.begin()
    publish(ledger, 1)
    track.begin()


def test_offsets_have_no_gap() -> None:
    """A gap in offsets is a loss, even if no number is missing, as behind a position of a reply."""
    _, track = published(2)
    track.see(1, 1)
    with pytest.raises(BrokenPromise, match="got 2 at offset 3 behind offset 1"):
        track.see(2, 3)


def test_a_recovery_begins_where_the_subscriber_was() -> None:
    """A server that goes on at another offset is noticed."""
    _, track = published(2)
    track.see(1, 1)
    with pytest.raises(BrokenPromise, match="was at offset 1, and is told to go on at 2"):
        track.resume(2)


def test_nobody_goes_on_without_having_begun() -> None:
    """A recovery or an event before any subscription is noticed."""
    ledger = Ledger(kept=10)
    publish(ledger, 1)
    for broken in (Track.resume, lambda track: Track.see(track, 1)):
        with pytest.raises(BrokenPromise):
            broken(ledger.track("one", CHANNEL))


@given(st.frozensets(st.integers(1, 10)))
def test_doubtful_events_may_come_or_not(doubtful: frozenset[int]) -> None:
    """An event whose publishing failed may be missing, but for all: else somebody has lost it."""
    ledger, track = published(10, doubtful=doubtful)
    for number in range(1, 11):
        if number not in doubtful:
            track.see(number)
    ledger.check()


def test_a_doubtful_event_that_others_saw_is_no_longer_doubtful() -> None:
    """Whoever went past it has lost it."""
    ledger = Ledger(kept=10)
    first, second = (ledger.track(name, CHANNEL) for name in ("first", "second"))
    first.begin()
    second.begin()
    publish(ledger, 2, frozenset({1}))
    second.see(2)
    first.see(1)
    first.see(2)
    with pytest.raises(BrokenPromise, match=r"second in news never got \[1\]"):
        ledger.check()
