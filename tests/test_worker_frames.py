"""The frames of a worker's link: what is sent arrives as it was, however the bytes are split."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.access.grants import Caller
from repeater.errors import ApplicationError, BrokerError, ErrorCode, ReplyError
from repeater.json_text import JSONText
from repeater.publication import Announcement, ClientInfo, Event, Publication, Rupture
from repeater.workers import down, up
from repeater.workers.frames import FrameReader, frame
from repeater.workers.messages import encode
from repeater.workers.values import (
    MarkRow,
    answer_of,
    answer_row,
    caller_of,
    caller_row,
    event_of,
    row_of,
)

TEXTS = st.text(max_size=20)
BYTES = st.binary(max_size=20)
INFOS = st.builds(
    ClientInfo,
    TEXTS,
    TEXTS,
    st.none() | BYTES.map(msgspec.Raw),
    st.none() | BYTES.map(msgspec.Raw),
)
PUBLICATIONS = st.builds(
    Publication,
    TEXTS,
    BYTES.map(JSONText),
    st.integers(0, 2**63),
    TEXTS,
    st.none() | st.dictionaries(TEXTS, TEXTS, max_size=3),
    st.none() | INFOS,
    st.booleans(),
    st.integers(0, 2**64 - 1),
    TEXTS,
    st.integers(0, 2**50),
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    PUBLICATIONS,
    st.builds(Announcement, TEXTS, INFOS, st.booleans()),
    st.builds(Rupture, TEXTS),
)
FAILURES = st.builds(BrokerError, TEXTS) | st.sampled_from(ErrorCode).map(ReplyError)
REFUSALS = st.builds(
    ApplicationError, st.integers(1, 9_999), st.text(min_size=1), temporary=st.booleans()
)


@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_frames_are_found_in_any_split_of_the_bytes(
    bodies: list[bytes], data: st.DataObject
) -> None:
    """Frames that arrive in any pieces come out one by one, in order and unchanged."""
    sent = b"".join(len(body).to_bytes(4) + body for body in bodies)
    reader, found, start = FrameReader(), list[bytes](), 0
    while start < len(sent):
        end = data.draw(st.integers(start + 1, len(sent)))
        found += reader.feed(sent[start:end])
        start = end
    assert found == bodies


@given(st.lists(EVENTS, max_size=4), st.lists(st.integers(0, 2**40), max_size=4))
def test_events_and_messages_arrive_as_they_were(events: list[Event], serials: list[int]) -> None:
    """Every field of an event crosses the link; a publication's data is a JSONText again."""
    rows = [encode(row_of(one, 7)) for one in events]
    (body,) = FrameReader().feed(frame([encode(down.Done(one)) for one in serials], rows))
    read = down.read(body)
    assert read.messages == [down.Done(one) for one in serials]
    found = [event_of(row) for row in read.events if not isinstance(row, MarkRow)]
    assert found == events
    assert [row.weight for row in read.events] == [7] * len(events)
    datas = [one.data for one in found if isinstance(one, Publication)]
    assert all(type(one) is JSONText for one in datas)


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536])
def test_a_frame_may_have_any_number_of_messages(count: int) -> None:
    """The heads of short, long and very long arrays are msgpack's."""
    row = encode(up.Release("c"))
    (body,) = FrameReader().feed(frame([row] * count))
    assert up.read(body).messages == [up.Release("c")] * count


def test_fields_that_a_newer_release_adds_are_left_out() -> None:
    """Arrays grow at the end only: an older release reads what it knows."""
    newer = msgspec.msgpack.encode([4, "c", "added", [1]])
    (body,) = FrameReader().feed(frame([newer]))
    assert up.read(body).messages == [up.Release("c")]


@given(BYTES | FAILURES | REFUSALS)
def test_answers_of_the_control_plane_arrive_as_they_were(
    answer: bytes | ReplyError | BrokerError,
) -> None:
    """Bytes, a refusal of the protocol or of an application, a failure: each with its texts."""
    found = answer_of(
        msgspec.msgpack.decode(encode(answer_row(answer)), type=type(answer_row(b"")))
    )
    assert type(found) is type(answer)
    if isinstance(answer, Exception):
        assert isinstance(found, Exception)
        assert str(found) == str(answer)
        assert vars(found) == vars(answer)
    else:
        assert found == answer


@given(st.builds(Caller, TEXTS, TEXTS, TEXTS, BYTES, st.dictionaries(TEXTS, TEXTS), TEXTS))
def test_callers_arrive_as_they_were(caller: Caller) -> None:
    """The application is told of the same connection."""
    assert caller_of(caller_row(caller)) == caller
