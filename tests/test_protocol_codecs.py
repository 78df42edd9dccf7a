"""Codecs: what each kind of client is sent."""

from __future__ import annotations

import json

import pytest

from service.protocol.codecs import (
    CENTRIFUGE_JSON,
    CENTRIFUGE_JSON_ASGI,
    PLAIN,
    PLAIN_ASGI,
    say_push,
)
from service.protocol.frames import text_frame
from service.publication import ClientInfo, Publication


def test_plain_data_is_verbatim() -> None:
    """A plain subscriber gets the published bytes, line breaks and all."""
    data = b'{\n "a": 1.0\n}'
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
    assert say_push(publication) == (
        b'{"push":{"channel":"news","pub":{"data":{"n":6},"offset":6,"tags":{"k":"v"},'
        b'"info":{"user":"7","client":"c7"}}}}'
    )


@pytest.mark.parametrize(("offset", "expected"), [(0, None), (1, "e"), (2, None)])
def test_epoch_goes_with_the_first_offset(offset: int, expected: str | None) -> None:
    """The epoch stands beside offset 1 and nowhere else; offset 0 is left out."""
    pub = json.loads(say_push(Publication("c", b"1", offset=offset, epoch="e")))["push"]["pub"]
    assert pub.get("epoch") == expected
    assert ("offset" in pub) is (offset > 0)


@pytest.mark.parametrize("data", [b'{\r\n "a":\n[1, 2]}', b'"a"\n', b"\n1"])
def test_push_is_one_line(data: bytes) -> None:
    """Pretty-printed data is pushed without raw line breaks and means the same."""
    push = say_push(Publication("c", data))
    assert b"\n" not in push
    assert b"\r" not in push
    assert json.loads(push)["push"]["pub"]["data"] == json.loads(data)


def test_channel_is_escaped() -> None:
    """A quote in a channel's name does not break the push."""
    assert json.loads(say_push(Publication('a"b\\', b"1")))["push"]["channel"] == 'a"b\\'


def test_pings() -> None:
    """Native clients and Centrifugo clients are pinged; a plain one behind ASGI can't be."""
    assert PLAIN.ping == b"\x89\x00"
    assert CENTRIFUGE_JSON.ping == text_frame(b"{}")
    assert CENTRIFUGE_JSON_ASGI.ping == b"{}"
    assert PLAIN_ASGI.ping is None
