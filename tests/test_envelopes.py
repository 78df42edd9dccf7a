"""The envelope of a plain subscriber's event, and the codecs that write it."""

from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.errors import SHUTDOWN
from repeater.protocol.envelope import envelope
from repeater.protocol.event_codec import EventCodec
from repeater.protocol.event_messages import EVENT_MESSAGES, EVENT_MESSAGES_ASGI
from repeater.protocol.sse.event_stream import ENVELOPE_STREAM
from repeater.protocol.websocket.frames import text_frame
from repeater.publication import Publication, StreamPosition, checked
from tests.eventsource import EventSource

CODECS = [ENVELOPE_STREAM, EVENT_MESSAGES, EVENT_MESSAGES_ASGI]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=repr)

_texts = st.text(st.characters(codec="utf-8"), max_size=30)
_numbers = st.tuples(st.integers(1, 2**64 - 1), st.text("ab,%: ", min_size=1, max_size=32))


@st.composite
def publications(draw: st.DrawFn) -> Publication:
    offset, epoch = draw(st.none() | _numbers) or (0, "")
    binary = draw(st.booleans())
    return Publication(
        draw(_texts.filter(bool)),
        draw(st.binary(max_size=30)) if binary else json.dumps(draw(_texts)).encode(),
        offset,
        epoch,
        draw(st.none() | st.dictionaries(_texts, _texts, max_size=3)),
        time=draw(st.integers(0, 2**43)),
        binary=binary,
    )


def test_all_of_an_event() -> None:
    """The members in their order; the data is the text that was published."""
    publication = Publication("a", b'{"n": 1.0}', 3, "e", {"k": "v"}, time=5)
    assert envelope(publication, b"an:id") == (
        b'{"id":"an:id","channel":"a","offset":3,"epoch":"e","time":5,"tags":{"k":"v"},'
        b'"data":{"n": 1.0}}'
    )


def test_what_an_event_does_not_have_is_left_out() -> None:
    """No number, no tags, no id; bytes have a member of their own."""
    assert envelope(Publication("a", b"1"), b"") == b'{"channel":"a","data":1}'
    assert envelope(Publication("a", b"\0\xff", binary=True), b"") == (
        b'{"channel":"a","b64data":"AP8="}'
    )


@given(publications())
def test_an_envelope_is_json_that_says_all(publication: Publication) -> None:
    """Whatever the texts and bytes are."""
    found = json.loads(envelope(publication, b""))
    assert found.pop("channel") == publication.channel
    if publication.binary:
        assert b64decode(found.pop("b64data"), validate=True) == publication.data
    else:
        assert found.pop("data") == json.loads(publication.data)
    assert found.pop("tags", None) == (publication.tags or None)
    if publication.offset:
        assert found.pop("epoch") == publication.epoch
        assert (found.pop("offset"), found.pop("time")) == (publication.offset, publication.time)
    assert found == {}


@every_codec
@given(publication=publications(), length=st.integers(1, 300))
def test_a_size_is_what_is_written_at_most(
    codec: EventCodec, publication: Publication, length: int
) -> None:
    """No event is longer than it was counted, with its id."""
    publication = checked(publication)
    written = codec.event(publication, b"x" * length)
    assert len(written) <= codec.size_with_id(publication, length)
    assert len(codec.event(publication, b"")) <= codec.size(publication)


@pytest.mark.parametrize("codec", CODECS[1:], ids=repr)
def test_messages_of_a_websocket(codec: EventCodec) -> None:
    """Each is told from the others by its members; framed, a batch is one chunk."""
    one = Publication("a", b"1", 2, "e", time=7)
    other = Publication("a", b"\1", binary=True)
    found = codec.of_channel.publications([one, other])
    if codec.framed:
        assert len(found) == 1
    message = codec.message(envelope(one, codec.of_channel.ids(one)))
    assert b"".join(found) == message + codec.message(b'{"channel":"a","b64data":"AQ=="}')
    assert codec.publications([]) == []
    assert codec.silent_id(b"") == b""
    assert codec.silent_id(b"i") == codec.message(b'{"id":"i"}')
    assert codec.reset(["a"], b"") == codec.message(b'{"reset":{"channels":["a"]}}')
    assert codec.reset(["a"], b"i") == codec.message(b'{"id":"i","reset":{"channels":["a"]}}')
    farewell = b'{"disconnect":{"code":3001,"reason":"shutdown"}}'
    assert codec.farewell(SHUTDOWN) == codec.message(farewell)
    assert EVENT_MESSAGES.message(b"x") == text_frame(b"x")


def test_events_of_a_stream() -> None:
    """The id is in the envelope and beside it; other kinds of event stay as they are."""
    codec = ENVELOPE_STREAM.of_set({"a": StreamPosition(1, "e"), "b": StreamPosition(4, "e")})
    source = EventSource()
    batch = [Publication("b", b"1", 5, "e"), Publication("a", b"\0", 2, "e", binary=True)]
    (chunk,) = codec.publications(batch)
    source.feed(chunk)
    source.feed(codec.reset(["a"], b"i") + codec.farewell(SHUTDOWN))
    first, second, *others = source.events
    assert json.loads(first.data)["id"] == first.last_event_id
    assert json.loads(second.data)["b64data"] == "AA=="
    assert second.last_event_id != first.last_event_id
    assert [(one.kind, one.last_event_id) for one in others] == [
        ("reset", "i"),
        ("disconnect", "i"),
    ]
    assert json.loads(others[0].data) == {"channels": ["a"]}
