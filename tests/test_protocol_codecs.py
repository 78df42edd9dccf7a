"""Codecs: what each kind of client is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from centrifuge.fossil import apply_delta
from hypothesis import given
from hypothesis import strategies as st

from repeater.errors import POSITION_LOST
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_JSON,
    CENTRIFUGE_JSON_ASGI,
    CENTRIFUGE_UNI,
    CENTRIFUGE_UNI_ASGI,
    PLAIN,
    PLAIN_ASGI,
    Codec,
)
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.protocol.centrifugo.json_format import JSON
from repeater.protocol.centrifugo.replies import Push
from repeater.protocol.websocket.frames import text_frame
from repeater.publication import Announcement, ClientInfo, Publication, checked

DOCUMENTS = st.recursive(
    st.none() | st.integers() | st.text('ab\u00e9\n"', max_size=60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def test_plain_data_is_verbatim() -> None:
    """A plain subscriber gets the published bytes."""
    data = b'{ "a": 1.0 }'
    assert PLAIN_ASGI.publications([Publication("c", data)]) == [data]


def test_framed_batch_is_one_chunk() -> None:
    """With frames a batch is one chunk, in order; without, one chunk a message."""
    batch = [Publication("c", b"1"), Publication("c", b"2")]
    assert PLAIN.publications(batch) == [text_frame(b"1") + text_frame(b"2")]
    assert PLAIN_ASGI.publications(batch) == [b"1", b"2"]
    assert PLAIN.message(b"x") == text_frame(b"x")
    assert PLAIN_ASGI.message(b"x") == b"x"


def test_push_of_the_golden_transcript() -> None:
    """A push is appendix A's line, byte for byte."""
    publication = Publication(
        "news", b'{"n":6}', offset=6, epoch="xyz", tags={"k": "v"}, info=ClientInfo("7", "c7")
    )
    assert JSON.publication(publication) == (
        b'{"push":{"channel":"news","pub":{"data":{"n":6},"offset":6,"tags":{"k":"v"},'
        b'"info":{"user":"7","client":"c7"}}}}'
    )


@pytest.mark.parametrize(("offset", "expected"), [(0, None), (1, "e"), (2, None)])
def test_epoch_goes_with_the_first_offset(offset: int, expected: str | None) -> None:
    """The epoch stands beside offset 1 and nowhere else; offset 0 is left out."""
    pub = json.loads(JSON.publication(Publication("c", b"1", offset=offset, epoch="e")))["push"][
        "pub"
    ]
    assert pub.get("epoch") == expected
    assert ("offset" in pub) is (offset > 0)


@pytest.mark.parametrize("data", [b'{\r\n "a":\n[1, 2]}', b'"a"\n', b"\n1"])
def test_push_is_one_line(data: bytes) -> None:
    """Pretty-printed data is pushed without raw line breaks and means the same."""
    push = JSON.publication(checked(Publication("c", data)))
    assert b"\n" not in push
    assert b"\r" not in push
    assert json.loads(push)["push"]["pub"]["data"] == json.loads(data)


def test_channel_is_escaped() -> None:
    """A quote in a channel's name does not break the push."""
    assert json.loads(JSON.publication(Publication('a"b\\', b"1")))["push"]["channel"] == 'a"b\\'


def test_pings() -> None:
    """Native clients and Centrifugo clients are pinged; a plain one behind ASGI can't be."""
    assert PLAIN.ping == b"\x89\x00"
    assert CENTRIFUGE_JSON.ping == text_frame(b"{}")
    assert CENTRIFUGE_JSON_ASGI.ping == b"{}"
    assert PLAIN_ASGI.ping is None


TAGGED = [
    Publication("c", b"1", tags={"k": "a"}),
    Publication("c", b"2", tags={"k": "b"}),
    Publication("c", b"3"),
]
ONLY_A = TagsFilter(key="k", cmp="eq", val="a")


@pytest.mark.parametrize(
    "codec", [CENTRIFUGE_JSON, CENTRIFUGE_JSON_ASGI, CENTRIFUGE_UNI, CENTRIFUGE_UNI_ASGI]
)
def test_filtered(codec: Codec) -> None:
    """A filtered codec says what its filter lets through as its codec does, and nothing else."""
    filtered = codec.filtered(ONLY_A)
    assert filtered.publications(TAGGED) == codec.publications(TAGGED[:1])
    assert filtered.publications(TAGGED[1:]) == []
    assert filtered.message(b"x") == codec.message(b"x")
    assert filtered.ping == codec.ping


def test_equal_filters_are_equal_codecs() -> None:
    """So that subscriptions with the same filter are one group of listeners."""
    same = TagsFilter(key="k", cmp="eq", val="a")
    other = TagsFilter(key="k", cmp="eq", val="b")
    filtered = CENTRIFUGE_JSON.filtered(ONLY_A)
    assert filtered == CENTRIFUGE_JSON.filtered(same)
    assert len({filtered, CENTRIFUGE_JSON.filtered(same)}) == 1
    assert filtered != CENTRIFUGE_JSON.filtered(other)
    assert filtered != CENTRIFUGE_JSON_ASGI.filtered(ONLY_A)
    assert filtered != CENTRIFUGE_JSON


def test_bare_pushes_are_those_within_the_envelope() -> None:
    """A unidirectional client gets what is inside `push`."""
    for publication in TAGGED:
        (bare,) = CENTRIFUGE_UNI_ASGI.publications([publication])
        (enveloped,) = CENTRIFUGE_JSON_ASGI.publications([publication])
        assert enveloped == b'{"push":%b}' % bare


def test_announcements_of_the_golden_transcript() -> None:
    """Joins and leaves are appendix A's lines, byte for byte."""
    for joined, kind in ((True, b"join"), (False, b"leave")):
        announcement = Announcement("news", ClientInfo("42", "c1"), joined)
        assert CENTRIFUGE_JSON_ASGI.announcement(announcement) == (
            b'{"push":{"channel":"news","%b":{"info":{"user":"42","client":"c1"}}}}' % kind
        )


def test_plain_clients_hear_no_pushes() -> None:
    """Nothing but publications can be said to a plain subscriber."""
    push = Push("c", unsubscribe=POSITION_LOST)
    assert not PLAIN.pushes
    assert PLAIN.push(push) == PLAIN_ASGI.push(push) == b""
    assert json.loads(CENTRIFUGE_JSON_ASGI.push(push)) == {
        "push": {"channel": "c", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}
    }


def test_delta_codecs() -> None:
    """Only bidirectional clients have one, and its second is the one that relies on a base."""
    for codec in (CENTRIFUGE_JSON, CENTRIFUGE_JSON_ASGI):
        assert codec.delta is not None
        assert codec.delta.following is not codec.delta
        assert codec.delta.following.following is codec.delta.following
    for codec in (PLAIN, PLAIN_ASGI, CENTRIFUGE_UNI, CENTRIFUGE_UNI_ASGI):
        assert codec.delta is None


@given(st.lists(st.tuples(DOCUMENTS, st.booleans()), min_size=1, max_size=5), st.booleans())
def test_differences_are_understood(said: list[tuple[Any, bool]], relies: bool) -> None:
    """Whatever is published, as a difference or not, the SDK's reading gives it back."""
    first = CENTRIFUGE_JSON_ASGI.delta
    assert first is not None
    texts = [json.dumps(one, ensure_ascii=False, indent=1).encode() for one, _ in said]
    batch = [
        checked(Publication("c", text, delta=delta))
        for text, (_, delta) in zip(texts, said, strict=True)
    ]
    base, codec = None, first
    held = b""
    if relies:
        base, batch, codec = batch[0], batch[1:], first.following
        held = base.data
    for chunk, publication in zip(codec.publications(batch, base), batch, strict=True):
        assert b"\n" not in chunk
        pub = json.loads(chunk)["push"]["pub"]
        text = pub["data"].encode()
        if pub.get("delta"):
            assert publication.delta
            assert len(text) < len(publication.data)
            text = bytes(apply_delta(held, text))
        held = text
        assert json.loads(text) == json.loads(publication.data)
