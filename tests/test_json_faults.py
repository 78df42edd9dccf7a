"""The faults of JSON documents in words that name the field."""

from __future__ import annotations

import msgspec
import pytest

from repeater.protocol.json_faults import fault_of


class Inner(msgspec.Struct):
    code: int
    names: list[str] | None = None
    ratio: float = 0.5
    flag: bool = False


class Outer(msgspec.Struct):
    text: str | list[str] | None = None
    inner: Inner | None = None
    parts: dict[str, Inner] = {}
    small: msgspec.Raw = msgspec.Raw()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"text":1}', "the field text must be text or a list, not a number"),
        (b'{"inner":{"code":"1"}}', "the field inner.code must be a whole number, not text"),
        (
            b'{"inner":{"code":1.5}}',
            "the field inner.code must be a whole number, not a number with a fraction or an "
            "exponent",
        ),
        (b'{"inner":{}}', "the field inner.code is missing"),
        (
            b'{"inner":{"code":1,"names":[2]}}',
            "the field inner.names[0] must be text, not a number",
        ),
        (b'{"inner":{"code":1,"ratio":"x"}}', "the field inner.ratio must be a number, not text"),
        (
            b'{"inner":{"code":1,"flag":null}}',
            "the field inner.flag must be true or false, not null",
        ),
        (b'{"parts":{"a":5}}', "the field parts[...] must be an object, not a number"),
        (b'{"inner":[]}', "the field inner must be an object, not a list"),
        (b"[]", "it must be an object, not a list"),
        (b"", "it is not JSON"),
        (b"<html>", "it is not JSON"),
    ],
)
def test_words(text: bytes, said: str) -> None:
    """The parser's words become words for who wrote the document."""
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text, type=Outer)
    assert str(fault_of(caught.value)) == said


def test_a_fault_without_words() -> None:
    """What has no words of its own is told as the parser tells it, with its place."""
    fault = fault_of(msgspec.ValidationError("Odd thing - at `$.a.b`"))
    assert (fault.place, fault.text) == ("a.b", "is wrong: Odd thing")
    assert fault.about("claim") == "the claim a.b is wrong: Odd thing"
