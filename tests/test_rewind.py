"""Beginning in the past: which part of a stream is given, and when something is said to be lost."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from repeater.clients.since import SinceError, parse_since
from repeater.fanout.recovery import Room
from repeater.fanout.rewind import Rewind, rewind
from repeater.protocol.sse.event_id import UNKNOWN, event_id
from repeater.publication import Publication, StreamPosition

NOW = 1_795_636_800.5  # 2026-11-25T20:00:00.5Z


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("start", Rewind()),
        ("last:1", Rewind(count=1)),
        ("last:1000000000000000000", Rewind(count=10**18)),
        ("last:0", {}),
        ("", {}),
        ("time:2026-11-25T20:00:00Z", Rewind(time=1_795_636_800_000)),
        ("time:2026-11-25t20:00:00z", Rewind(time=1_795_636_800_000)),
        ("time:2026-11-25 20:00:00.1Z", Rewind(time=1_795_636_800_100)),
        ("time:2026-11-25T21:00:00.123456789123+01:00", Rewind(time=1_795_636_800_123)),
        ("time:2026-11-25T21:00:00 01:00", Rewind(time=1_795_636_800_000)),
        ("time:2026-11-25T14:29:60-05:30", Rewind(time=1_795_636_800_000)),
        ("time:1969-01-01T00:00:00Z", Rewind(time=1)),
        ("time:0001-01-01T00:00:00+23:59", Rewind(time=1)),
        ("time:2026-11-25T20:00:01Z", {}),
        ("time:9999-12-31T23:59:59-23:59", {}),
    ],
)
def test_what_since_says(text: str, begin: object) -> None:
    """A time in the future asks for nothing, as does an empty text."""
    assert parse_since(text, ["a"], NOW) == begin


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "Start",
        "beginning",
        "last",
        "last:",
        "last:-1",
        "last:1.5",
        "last:\u0661",
        "last:" + "9" * 20,
        "last:" + "9" * 5_000,
        "time:9999999",
        "time:2026-11-25",
        "time:2026-11-25T20:00:00",
        "time:2026-11-25T20:00Z",
        "time:2026-02-30T20:00:00Z",
        "time:2026-11-25T24:00:00Z",
        "time:2026-11-25T20:00:61Z",
        "time:2026-11-25T20:00:00+24:00",
        "time:0000-11-25T20:00:00Z",
        "time:2026-W48-3T20:00:00Z",
        "a:1:e",
        "AAAAAAAA:e:",
        "AAAAAAAA:e",
    ],
)
def test_what_since_may_not_say(text: str) -> None:
    """The error names the forms."""
    with pytest.raises(SinceError, match=r"start, last:20, time:2026-11-25T20:00:00Z, or the id"):
        parse_since(text, ["a"], NOW)


def test_since_is_an_id() -> None:
    """Of these channels, or of others, which have lost everything."""
    found = {"a": StreamPosition(3, "e"), "b": StreamPosition(1, "an epoch: with, all")}
    text = event_id(found).decode()
    assert parse_since(text, ["b", "a"], NOW) == found
    assert parse_since(text, ["a", "c"], NOW) == {"a": UNKNOWN, "c": UNKNOWN}


@given(st.text(max_size=40) | st.text("lasttime:0123456789-TZ+ ", max_size=40))
@example("time:0001-01-01T00:00:00+00:01")
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text is an error of ours."""
    for prefix in ("", "last:", "time:", "time:2026-11-25T20:00:"):
        try:
            begin = parse_since(prefix + text, ["a"], NOW)
        except SinceError:
            continue
        assert not isinstance(begin, Rewind) or (begin.count > 0 <= begin.time)


def stream(first: int, top: int, times: list[int]) -> list[Publication]:
    """Publications of a history, oldest first."""
    return [
        Publication("c", b"x", offset=one, epoch="e", time=time)
        for one, time in zip(range(first, top + 1), times, strict=False)
    ]


class Past(msgspec.Struct, frozen=True):
    """A stream, what a subscriber asks of it, and how many events fit into its answer."""

    asked: Rewind
    all: list[Publication]
    """Everything that was ever published, oldest first."""
    kept: int
    """How many of these, the newest ones, are read."""
    gathered: list[Publication]
    fits: int


@st.composite
def pasts(draw: st.DrawFn) -> Past:
    """Clocks may step, the history may be short, and publications may gather meanwhile."""
    top = draw(st.integers(0, 12))
    times = draw(st.lists(st.integers(1, 20), min_size=top, max_size=top))
    if draw(st.booleans()):
        times.sort()
    asked = draw(
        st.just(Rewind())
        | st.integers(1, 14).map(lambda count: Rewind(count=count))
        | st.integers(1, 22).map(lambda time: Rewind(time=time))
    )
    known = draw(st.integers(max(0, top - 2), top))
    gathered = stream(known + 1, top + draw(st.integers(0, 3)), [30] * 8)
    kept = min(draw(st.integers(0, top)), asked.count)
    return Past(asked, stream(1, top, times), kept, gathered, draw(st.integers(0, 16)))


@given(pasts())
def test_the_newest_part_or_an_honest_word(past: Past) -> None:
    """All that was asked for is given up to the present, or its newest part, and it is said."""
    top = len(past.all)
    read = past.all[top - past.kept :]
    position = StreamPosition(top, "e")
    room = Room(past.fits)
    joined = rewind(past.asked, read[::-1], position, past.gathered, room, lambda _: 1)
    later = sum(one.offset > top for one in past.gathered)
    assert joined.position == StreamPosition(top + later, "e")
    if not joined.recovered:
        assert joined.publications == ()
        assert later > max(1, past.fits)
        return
    given_now = [one.offset for one in joined.publications]
    assert given_now == list(range(top + later - len(given_now) + 1, top + later + 1))
    assert joined.begin == StreamPosition(top + later - len(given_now), "e")
    assert len(given_now) <= max(1, past.fits)
    first = given_now[0] if given_now else top + 1
    # Where a clock stepped back, nothing tells when the events were that are not kept any more.
    steps = any(one.time > later.time for one, later in pairwise(past.all))
    known = read if steps else past.all[max(0, top - past.asked.count) :]
    if any(one.time >= past.asked.time and one.offset < first for one in known):
        assert joined.lost
    if past.kept == top and len(given_now) < past.fits:
        assert not joined.lost


def test_a_history_with_a_hole_is_read_up_to_it() -> None:
    """Nothing before a hole is given, and it is said."""
    history = [*stream(1, 2, [1, 1]), *stream(4, 5, [1, 1])]
    top = StreamPosition(5, "e")
    joined = rewind(Rewind(), history[::-1], top, [], Room(), lambda _: 1)
    assert [one.offset for one in joined.publications] == [4, 5]
    assert joined.lost


def test_what_gathered_in_another_epoch_is_not_recovered() -> None:
    """The stream began anew meanwhile: nothing is given, as for who comes back."""
    top = StreamPosition(2, "e")
    other = [Publication("c", b"1", offset=3, epoch="f")]
    joined = rewind(Rewind(), stream(1, 2, [1, 1])[::-1], top, other, Room(), lambda _: 1)
    assert not joined.recovered
    assert joined.publications == ()


def test_a_single_event_is_never_lost_for_its_size() -> None:
    """The newest one is given, however large it is, and what is before it is lost."""
    history = stream(1, 3, [1, 1, 1])
    top = StreamPosition(3, "e")
    joined = rewind(Rewind(), history[::-1], top, [], Room(5), lambda _: 50)
    assert [one.offset for one in joined.publications] == [3]
    assert joined.lost


def test_a_publication_without_a_time_may_be_wanted() -> None:
    """Nobody knows how old it is, so it is given rather than lost in silence."""
    history = stream(1, 3, [1, 0, 9])
    joined = rewind(Rewind(time=5), history[::-1], StreamPosition(3, "e"), [], Room(), lambda _: 1)
    assert [one.offset for one in joined.publications] == [2, 3]
