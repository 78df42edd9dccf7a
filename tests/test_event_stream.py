"""Server-Sent Events: their lines, and the ids that browsers come back with."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.errors import SHUTDOWN
from repeater.protocol.sse import event_stream
from repeater.protocol.sse.event_id import UNKNOWN, event_id, parse_event_id
from repeater.protocol.sse.event_stream import (
    EVENT_STREAM,
    EVENT_STREAM_CHANNEL,
    SetCodec,
    event,
    retry,
    silent_id,
)
from repeater.publication import Publication, StreamPosition
from tests.eventsource import EventSource

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
epochs = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10)
positions = st.builds(StreamPosition, st.integers(0, 10**19 - 1), epochs)


@given(st.dictionaries(names, positions, min_size=1, max_size=5))
def test_an_id_comes_back_as_the_positions(found: dict[str, StreamPosition]) -> None:
    """Whatever the channels are called, an id survives a browser and says where it was."""
    source = EventSource()
    source.feed(silent_id(event_id(found)))
    assert source.last_event_id.isascii()
    assert not set(source.last_event_id) & set(" \r\n\0")
    assert parse_event_id(source.last_event_id) == found


@pytest.mark.parametrize(
    "text", ["x", "a:1", "a:-1:e", "a:1:e,", ":1:e", "a:1:", "a:\uff11:e", "a::e"]
)
def test_what_is_no_id(text: str) -> None:
    """A stranger's id is told from ours, and from none at all."""
    assert parse_event_id(text) is None
    assert parse_event_id("") == {}


@given(st.text())
def test_any_text_is_parsed(text: str) -> None:
    """No id that a client may send is an error."""
    parse_event_id(text)


def test_an_id_of_digits_without_end_is_none() -> None:
    """A number that no stream can reach is not even read."""
    assert parse_event_id(f"a:{'9' * 5000}:e") is None


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
    (chunk,) = EVENT_STREAM_CHANNEL.publications(batch)
    assert chunk == (
        b'id: a%20b:1:e\ndata: {"n":\ndata: 1}\n\ndata: 2\n\nid: a%20b:2:e\ndata: 3\n\n'
    )
    assert EVENT_STREAM.publications(batch[1:]) == [b"data: 2\n\ndata: 3\n\n"]
    assert EVENT_STREAM_CHANNEL.publications([]) == []


def test_the_id_of_several_channels_moves_on() -> None:
    """A set's codec says where its clients are in all of its channels."""
    codec = SetCodec({"a": StreamPosition(1, "e"), "b": StreamPosition(4, "f")})
    source = EventSource()
    for publication in (
        Publication("b", b"1", 5, "f"),
        Publication("a", b"2", 2, "e"),
        Publication("c", b"3"),
        Publication("b", b"4", 6, "f"),
    ):
        source.feed(b"".join(codec.publications([publication])))
    ids = [one.last_event_id for one in source.events]
    assert ids == ["a:1:e,b:5:f", "a:2:e,b:5:f", "a:2:e,b:5:f", "a:2:e,b:6:f"]
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
    assert parse_event_id(event_id({"a": UNKNOWN}).decode()) == {"a": UNKNOWN}
