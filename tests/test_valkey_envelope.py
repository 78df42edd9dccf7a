"""What travels between nodes: as it was published, and nobody else's bytes."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.brokers.valkey.engine import ForeignError
from repeater.brokers.valkey.envelope import (
    Uids,
    behind,
    entry_of,
    head_of,
    opened,
    received,
    sealed,
)
from repeater.brokers.valkey.values import NO_STREAM, Message, Place
from repeater.json_text import JSONText, json_text
from repeater.publication import Announcement, ClientInfo, Publication
from tests.foreign_rows import deepened

pytestmark = pytest.mark.timeout(60)

UID = b"\n 012345"  # a uid may have any bytes
INFO = ClientInfo("ann", "1", msgspec.Raw(b"{}"), msgspec.Raw(b"[1]"))
EVENTS = (
    Publication("c", json_text(b'{"a": 1}')),
    Publication("c", json_text(b"1"), tags={"k": "v"}),
    Publication("c", json_text(b"1"), info=INFO),
    Publication("c", json_text(b"1"), info=ClientInfo("", "1"), delta=True),
    Publication("c", json_text(b"1"), version=2**64 - 1, version_epoch="e"),
    Publication("c", json_text(rb'"\ud800"')),
    Publication("c", b"\xff\n", binary=True),
    Publication("c", b"", binary=True),
    Publication("c", b"1", tags={"k": "v"}, info=INFO, delta=True, version=3, binary=True),
    Announcement("c", INFO, joined=True),
    Announcement("c", ClientInfo("", "2"), joined=False),
)


def named(event: object) -> str:
    return type(event).__name__


@pytest.mark.parametrize("event", EVENTS, ids=named)
def test_an_event_arrives_as_it_was(event: Publication | Announcement) -> None:
    """By the bus with its number, epoch and time, or without; from a stream the same."""
    envelope = sealed(event, UID)
    place = Place(7, "Ep_-1", UID)
    assert received("c", b"0\n" + envelope) == Message(NO_STREAM, event)
    if isinstance(event, Publication):
        event = msgspec.structs.replace(event, offset=7, epoch="Ep_-1", time=99)
    assert received("c", b"7 Ep_-1 99\n" + envelope) == Message(place, event)
    assert entry_of("c", [b"7-99", [b"d", envelope]], "Ep_-1") == Message(place, event)


def test_data_is_json_text() -> None:
    """Fan-out parses nothing again: the type says that the text was checked."""
    for event in EVENTS[:2]:
        found = opened("c", sealed(event, UID), NO_STREAM, 0)
        assert type(found.data) is JSONText


def test_binary_data_is_of_a_kind_of_its_own() -> None:
    """A node that does not know it refuses it, and never takes the bytes for JSON text.

    What has no such data is sealed as it was before, so that older nodes read it.
    """
    binary = msgspec.structs.replace(EVENTS[1], binary=True)
    assert sealed(binary, UID)[len(UID) :][:1] == b"b"
    assert sealed(EVENTS[0], UID) == UID + b'd{"a": 1}'
    row = [b"1", {"k": "v"}, None, False, 0, ""]
    assert sealed(EVENTS[1], UID) == UID + b"p" + msgspec.msgpack.encode(row)


def test_a_stream_that_has_changed() -> None:
    """A place without an envelope says that the stream must be looked at."""
    assert received("c", b"3 e 0\n") == Message(Place(3, "e", b""), None)
    assert received("c", b"0 e 0\n") == Message(Place(0, "e", b""), None)


_DATA = b"d1"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"0",
        b"hello",
        b"7 e 9" + UID + _DATA,
        b"-7 e 9\n" + UID + _DATA,
        b"0 e 9\n" + UID + _DATA,
        b"7 " + 33 * b"e" + b" 9\n" + UID + _DATA,
        b"7 \xff 9\n" + UID + _DATA,
        b"7  9\n" + UID + _DATA,
        b"7777777777777777 e 9\n" + UID + _DATA,
        b"7 e 9\n" + UID,
        b"7 e 9\n" + UID + b"x1",
        b"7 e 9\n" + UID + b"d{",
        b"7 e 9\n" + UID + b"d\xff",
        b"7 e 9\n" + UID + b"d" + 200 * b"[" + 200 * b"]",
        b"7 e 9\n" + UID + b"p\xc1",
        b"7 e 9\n" + UID + b"p" + msgspec.msgpack.encode([b"{"]),
        b"7 e 9\n" + UID + b"p" + msgspec.msgpack.encode([b"1", None, None, False, -1]),
        b"7 e 9\n" + UID + b"p" + msgspec.msgpack.encode([b"1", {"k": 1}]),
        b"0\n" + UID + b"j" + msgspec.msgpack.encode(["u", "c", b"{"]),
        b"0\n" + UID + b"j" + msgspec.msgpack.encode(["u"]),
        b"7 e 9\n" + UID + b"p" + deepened(msgspec.msgpack.encode([b"1"])),
        b"0\n" + UID + b"j" + deepened(msgspec.msgpack.encode(["u", "c"])),
    ],
    ids=map(str, count()),
)
def test_what_is_not_ours_is_refused(payload: bytes) -> None:
    """A message that no node has written raises a ForeignError which repeats nothing of it."""
    with pytest.raises(ForeignError) as caught:
        received("c", payload)
    assert str(caught.value).isascii()


BEGINNINGS = [b"", b"7 e 9\n", b"0\n", b"7 e 9\n" + UID + b"p", b"7 e 9\n" + UID + b"b"]


@given(st.binary(max_size=40), st.sampled_from(BEGINNINGS))
def test_any_bytes_are_an_event_or_refused(payload: bytes, head: bytes) -> None:
    """No bytes of the bus raise anything but a ForeignError."""
    try:
        found = received("c", head + payload)
    except ForeignError:
        return
    assert found.place.offset >= 0


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        [b"7-9"],
        [b"7-9", None],
        [b"7-9", [b"x", UID + _DATA]],
        [b"7-9", [b"d", UID + _DATA, b"x", b"y"]],
        [b"7", [b"d", UID + _DATA]],
        [b"7777777777777777-9", [b"d", UID + _DATA]],
        [b"7-9", [b"d", UID + b"x"]],
    ],
)
def test_an_entry_that_is_not_ours_is_refused(entry: object) -> None:
    """Whoever writes into a stream by another way is not taken for a node."""
    with pytest.raises(ForeignError):
        entry_of("c", entry, "e")


def test_the_meta_of_a_stream() -> None:
    """A meta is the top; one that was only read of has the number 0; without one, no stream."""
    assert head_of(b"e", b"7", UID) == Place(7, "e", UID)
    assert head_of(b"e", None, None) == Place(0, "e", b"")
    assert head_of(None, None, None) == NO_STREAM
    assert head_of(b"", b"0", b"") == NO_STREAM
    for meta in (
        (b"e e", b"7", b""),
        (b"e", b"x", b""),
        (b"e", b"-1", b""),
        (33 * b"e", b"1", b""),
    ):
        with pytest.raises(ForeignError):
            head_of(*meta)


def test_uids_differ() -> None:
    """Two processes, and two publications of one, have different names."""
    mine, others = Uids(), Uids()
    found = [*(mine.next() for _ in range(1_000)), *(others.next() for _ in range(1_000))]
    assert len(set(found)) == 2_000
    assert {len(one) for one in found} == {8}


HEADS = (b"5 e 1", b"5 e 1700000000000", b"6 e 1", b"5 f 1", b"5 e +1", b"5 e 1_0", b"5 e", b"0")


@given(
    st.sampled_from(HEADS) | st.binary(max_size=20),
    st.sampled_from([b"\n", b"", b"\n\n"]),
    st.sampled_from([sealed(event, UID) for event in EVENTS]) | st.binary(max_size=20),
)
def test_the_short_way_reads_as_the_long_one(head: bytes, line: bytes, envelope: bytes) -> None:
    """The publication behind a place is read quickly as it is read slowly, or not at all."""
    payload = head + line + envelope
    found = behind(Place(4, "e", b"uid-0004"), "c", payload)
    if found is not None:
        publication, place = found
        assert received("c", payload) == Message(place, publication)
        assert place.offset == 5


def test_a_line_that_does_not_end() -> None:
    """A message of one line has no envelope, whatever its epoch looks like."""
    assert behind(Place(0, "abcdefd", b""), "c", b"1 abcdefd 55") is None


def test_plain_data_takes_the_short_way() -> None:
    """A publication with nothing but data is read quickly, if it is right behind the place."""
    payload = b"5 e 17\n" + sealed(Publication("c", json_text(b"[1]")), UID)
    found = behind(Place(4, "e", b"uid-0004"), "c", payload)
    assert found is not None
    assert found[1] == Place(5, "e", UID)
    assert behind(Place(5, "e", UID), "c", payload) is None
    assert behind(Place(4, "f", b"uid-0004"), "c", payload) is None
