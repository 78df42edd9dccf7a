"""Server-Sent Events: their lines, and the ids that browsers come back with."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.errors import SHUTDOWN
from repeater.protocol.sse import event_stream
from repeater.protocol.sse.event_id import (
    EventIds,
    event_id,
    event_id_of_one,
    parse_event_id,
    room_of_event_id,
)
from repeater.protocol.sse.event_stream import (
    EVENT_STREAM,
    event,
    retry,
    silent_id,
)
from repeater.publication import Publication, StreamPosition
from tests.eventsource import EventSource

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
epochs = st.sampled_from(["e", "Xy12Ab9c", "an epoch: with, all", "\u00fc"])
offsets = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
positions = st.builds(StreamPosition, offsets, epochs)
sets = st.dictionaries(names, st.none() | positions, min_size=1, max_size=6)
"""The channels of a client, some of them without a position."""


def known(found: dict[str, StreamPosition | None]) -> dict[str, StreamPosition]:
    return {name: one for name, one in found.items() if one is not None}


@given(sets, st.randoms())
def test_an_id_comes_back_as_the_positions(
    found: dict[str, StreamPosition | None], chance: random.Random
) -> None:
    """Whatever the channels are called, in whatever order they are named: an id survives a browser
    and says where it was."""
    source = EventSource()
    source.feed(silent_id(event_id(known(found), found)))
    assert source.last_event_id.isascii()
    assert not set(source.last_event_id) & set(" \r\n\0")
    channels = [*found, *found]
    chance.shuffle(channels)
    assert parse_event_id(source.last_event_id, channels) == known(found)


@given(sets, st.lists(st.tuples(st.integers(0, 5), positions), max_size=8))
def test_an_id_moves_on(
    found: dict[str, StreamPosition | None], moves: list[tuple[int, StreamPosition]]
) -> None:
    """After any moves the id is the one of the positions that were reached."""
    ids, reached = EventIds(known(found), found), known(found)
    for number, position in moves if reached else ():
        name = list(reached)[number % len(reached)]
        reached[name] = position
        ids.move(name, position)
        assert parse_event_id(ids.text().decode(), found) == reached
    assert ids.positions == reached


@given(names, positions)
def test_the_id_of_one_channel(name: str, position: StreamPosition) -> None:
    """It is the same with and without state."""
    assert event_id_of_one(name, position) == event_id({name: position})


@pytest.mark.parametrize("name", ["n" * 255, "\u044f" * 127])
@pytest.mark.parametrize("epoch", ["one", "each"])
def test_an_id_is_short_whatever_the_names_are(name: str, epoch: str) -> None:
    """128 channels fit into a request head together with their URL; the epoch costs once."""
    found = {
        f"{name}{number}": StreamPosition(
            2**35 - 1 if epoch == "each" else 16_000, f"Ab{number:06}" if epoch == "each" else "one"
        )
        for number in range(128)
    }
    size = len(event_id(found))
    assert size <= (360 if epoch == "one" else room_of_event_id(128) - 20)


def test_a_changed_set_of_channels_is_noticed() -> None:
    """A channel more, less or another one: the id is of other channels."""
    position = StreamPosition(1, "e")
    text = event_id({"a": position, "bc": position}).decode()
    assert parse_event_id(text, ["bc", "a"]) is not None
    for others in (["a"], ["a", "bc", "d"], ["a", "bd"], ["ab", "c"], []):
        assert parse_event_id(text, others) is None


_ID = event_id({"a": StreamPosition(1, "e"), "b": StreamPosition(2, "f")}).decode()
_DIGEST = _ID.split(":")[0]


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "a:1:e",
        "a:1:e,b:2:e",
        "a:-1:e",
        ":::",
        _DIGEST,
        f"{_DIGEST}::",
        f"{_DIGEST}:e:",
        f"{_DIGEST}:e:AQ",  # one number
        f"{_DIGEST}:e:AQEB",  # three numbers
        f"{_DIGEST}::AQE",  # no epoch
        f"{_DIGEST}:e:AYE",  # a number that is cut off
        f"{_DIGEST}:e:A",  # no base64
        f"{_DIGEST}:e:\uff11\uff11",
        f"{_DIGEST}:e:" + "_" * 4_000,  # a number without end
        f"{_DIGEST}:e:AP______________Aw",  # an offset above 64 bits
        f"{_DIGEST}:e,f,g:AQE",  # more epochs than channels
        _ID[:-1],
    ],
)
def test_what_is_no_id(text: str) -> None:
    """A stranger's id, or one of an older form, is told from ours, and from none at all."""
    assert parse_event_id(text, ["a", "b"]) is None
    assert parse_event_id("", ["a", "b"]) == {}


@given(st.text(), st.text())
def test_any_text_is_parsed(text: str, more: str) -> None:
    """No id that a client may send is an error."""
    parse_event_id(text, ["a", "b"])
    parse_event_id(f"{_DIGEST}:{text}", ["a", "b"])
    found = parse_event_id(f"{_DIGEST}:e,{text}:{more}", ["a", "b"])
    assert all(0 <= one.offset < 2**64 and one.epoch for one in (found or {}).values())


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.integers(0, 50))
def test_data_arrives_with_its_lines(text: str, cut: int) -> None:
    """Every line break arrives as one, in whatever pieces the bytes come."""
    source = EventSource()
    sent = event(text.encode())
    source.feed(sent[:cut])
    source.feed(sent[cut:])
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    # The standard drops an event without data.
    assert source.data() == ([lines] if lines or sent.count(b"data") > 1 else [""])


def test_a_batch_is_one_chunk_of_events() -> None:
    """Each event has the id of the moment after it; what is in no stream has none."""
    batch = [
        Publication("a b", b'{"n":\n1}', 1, "e"),
        Publication("a b", b"2"),
        Publication("a b", b"3", 2, "e"),
    ]
    (chunk,) = EVENT_STREAM.of_channel.publications(batch)
    first, second = (event_id({"a b": StreamPosition(offset, "e")}) for offset in (1, 2))
    assert chunk == (
        b'id: %b\ndata: {"n":\ndata: 1}\n\ndata: 2\n\nid: %b\ndata: 3\n\n' % (first, second)
    )
    assert EVENT_STREAM.publications(batch[1:]) == [b"data: 2\n\ndata: 3\n\n"]
    assert EVENT_STREAM.of_channel.publications([]) == []


def test_the_id_of_several_channels_moves_on() -> None:
    """A set's codec says where its clients are in all of its channels."""
    codec = EVENT_STREAM.of_set({"a": StreamPosition(1, "e"), "b": StreamPosition(4, "f")})
    source = EventSource()
    for publication in (
        Publication("b", b"1", 5, "f"),
        Publication("a", b"2", 2, "e"),
        Publication("c", b"3"),
        Publication("b", b"4", 6, "f"),
    ):
        source.feed(b"".join(codec.publications([publication])))
    ids = [parse_event_id(one.last_event_id, "ab") or {} for one in source.events]
    assert [(one["a"].offset, one["b"].offset) for one in ids] == [(1, 5), (2, 5), (2, 5), (2, 6)]
    assert codec.positions == {"a": StreamPosition(2, "e"), "b": StreamPosition(6, "f")}


def test_what_is_no_message() -> None:
    """Comments and hints are not events; a reset and a farewell are events of their own kinds."""
    source = EventSource()
    source.feed(event_stream.COMMENT + retry(1_500) + silent_id(b"a:1:e"))
    assert (source.events, source.retry, source.last_event_id) == ([], 1_500, "a:1:e")
    source.feed(event_stream.reset(["a"], b"a:3:f") + EVENT_STREAM.farewell(SHUTDOWN))
    assert source.last_event_id == "a:3:f"
    assert json.loads(source.data("reset")[0]) == {"channels": ["a"]}
    assert json.loads(source.data("disconnect")[0]) == {"code": 3001, "reason": "shutdown"}
    assert silent_id(b"") == b""
