"""JSON text: what is accepted, how deep, and that it is passed on as it was written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.access.grants import ConnectionGrant, Renewal, SubscriptionGrant
from repeater.errors import ErrorCode, ReplyError
from repeater.json_text import DEPTH_LIMIT, JSONText, accepted, deeper, json_text
from repeater.protocol.centrifugo.commands import (
    BadCommand,
    Command,
    ConnectRequest,
    PublishRequest,
    parse_commands,
)
from repeater.protocol.centrifugo.filters import check_filter
from repeater.protocol.json_reader import STRANGERS_VALUES, reader
from repeater.publication import ClientInfo, Publication, checked

# Text of every kind: quotes, brackets, backslashes, halves of pairs, line breaks.
TEXTS = st.text(
    st.characters() | st.sampled_from('"\\[]{}\n\r\u2028\ud83d\ude00\udc00'), max_size=12
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
INDENTS = st.sampled_from([None, 0, 1, "\t"])
read_command = reader(Command, around=2)


def nested(levels: int, inside: bytes = b"") -> bytes:
    """Arrays and objects in turn, so many levels deep."""
    opened = [b"[" if level % 2 else b'{"a":' for level in range(levels)]
    if levels and levels % 2 and not inside:
        inside = b"1"
    closed = [b"]" if level % 2 else b"}" for level in reversed(range(levels))]
    return b"".join((*opened, inside, *closed))


@given(VALUES, INDENTS)
def test_text_in_is_text_out(value: Any, indent: Any) -> None:
    """A JSON text stays byte for byte what it was, but for line breaks between its tokens."""
    text = json.dumps(value, indent=indent).encode()
    taken = json_text(text)
    assert type(taken) is JSONText
    assert taken == text.replace(b"\n", b"")
    assert json.loads(taken) == value


@given(VALUES, INDENTS)
def test_parts_of_a_command_are_text_out(value: Any, indent: Any) -> None:
    """The same holds for the data of a command that is read, whatever is beside it."""
    text = json.dumps(value, indent=indent).replace("\n", "\r")
    line = f'{{"id":7,"publish":{{"channel":"c","type":null,"data":{text}}},"x":{text}}}'
    command = read_command(line)
    assert command.id == 7
    assert command.publish is not None
    assert accepted(command.publish.data) == text.strip().replace("\r", "").encode()


@given(st.binary(max_size=40) | st.text('"\\[]{}:,1eu09dD8\n ', max_size=40).map(str.encode))
def test_only_json_is_json_text(data: bytes) -> None:
    """Exactly the texts that the standard library reads are accepted, except for NaN and so on."""
    try:
        text = data.decode()
        json.loads(text, parse_constant=pytest.fail)
        good = not text.startswith("\ufeff")
    except (ValueError, pytest.fail.Exception):
        good = False
    with nullcontext() if good else pytest.raises(ValueError, match=r"."):
        json_text(data)


@given(st.recursive(st.just([]) | st.text('[{"\\', max_size=5), lambda one: st.lists(one)))
def test_depth_is_counted_outside_of_strings(value: Any) -> None:
    """Brackets and quotes inside of strings do not count."""

    def depth(one: Any) -> int:
        return 1 + max(map(depth, one), default=0) if isinstance(one, list) else 0

    text = json.dumps(value)
    for limit in range(depth(value) + 2):
        assert deeper(text, limit) is deeper(text.encode(), limit) is (depth(value) > limit)


@pytest.mark.parametrize("levels", [0, 1, 127, 128, 129, 975, 60_000])
def test_the_depth_of_a_value(levels: int) -> None:
    """128 levels are accepted and one more is refused, from every depth of the stack."""

    def attempt(frames: int) -> bool:
        if frames:
            return attempt(frames - 1)
        try:
            json_text(nested(levels, b'"\n"'.replace(b"\n", b"")))
        except ValueError:
            return False
        return True

    for frames in (0, sys.getrecursionlimit() // 2):
        assert attempt(frames) is (levels <= DEPTH_LIMIT)


def test_strings_full_of_brackets_are_not_deep() -> None:
    """A long flat text with thousands of brackets is accepted."""
    for text in (b'"%s"' % (b"[{" * 5_000), b"[%s[]]" % (b'[],{"a":"["},' * 5_000)):
        assert json_text(text) == text


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (r'"\ud83d"', True),
        (r'"\uD83D\ud83d\ude00\udE00"', True),
        (r'"\\ud83d"', True),
        (r'"\\\ud83d \uE000 \ue000d83d"', True),
        (r'{"\udc00":["\ud800"]}', True),
        (r'"\ud83"', False),
        (r'"\ud83g"', False),
        (r"\ud83d", False),
        (r'["\ud83d]', False),
        (r'"\ud83d\x"', False),
    ],
)
def test_lone_surrogates_pass(text: str, whole: bool) -> None:
    """Half a pair, written as an escape, is as good as any; what else is wrong stays wrong."""
    line = f'{{"publish":{{"channel":"c","data":{text}}}}}'
    if whole:
        assert json_text(text.encode()) == text.encode()
        publish = read_command(line).publish
        assert publish is not None
        assert bytes(publish.data) == text.encode()
    else:
        with pytest.raises(ValueError, match=r"."):
            json_text(text.encode())
        with pytest.raises(msgspec.DecodeError):
            read_command(line)


def test_lone_surrogates_in_texts_that_are_read() -> None:
    """They become U+FFFD, in values and in names."""
    line = (
        r'{"connect":{"name":"a\ud83d","headers":{"\ude00\ud83d\ude00":"\\ud83d"},"data":"\ud83d"}}'
    )
    assert read_command(line).connect == ConnectRequest(
        name="a\ufffd", headers={"\ufffd\U0001f600": r"\ud83d"}, data=msgspec.Raw(rb'"\ud83d"')
    )


@pytest.mark.parametrize("kind", [Command, ConnectRequest])
def test_null_is_left_out(kind: type[msgspec.Struct]) -> None:
    """At every depth, except in `data`, where it is a value."""
    for field in msgspec.structs.fields(kind):
        found = reader(kind, around=2)(b'{"%s":null}' % field.encode_name.encode())
        null = {field.name: msgspec.Raw(b"null")} if field.name == "data" else {}
        assert found == kind(**null)
    line = (
        '{"id":1,"subscribe":{"channel":"c","delta":null,"offset":null,"tf":{"op":null,"key":"k",'
        '"cmp":"in","vals":["a"],"nodes":null}},"connect":{"subs":{"c":null,"d":{"epoch":null}},'
        '"headers":{"a":null}},"history":{"since":{"offset":null}}}'
    )
    assert read_command(line) == read_command(
        '{"id":1,"subscribe":{"channel":"c","tf":{"key":"k","cmp":"in","vals":["a"]}},'
        '"connect":{"subs":{"c":{},"d":{}}},"history":{"since":{}}}'
    )


@pytest.mark.parametrize(
    "line",
    ['{"id":"1","x":null}', '{"publish":[null]}', "null", "[null]", '{"connect":{"subs":[null]}}',
     '{"subscribe":{"tf":{"nodes":[null]}}}', '{"publish":{"channel":7,"data":null}}'],
)  # fmt: skip
def test_null_does_not_excuse_other_mistakes(line: str) -> None:
    """A wrong type beside a null, and a null in the place of a list's item, are refused."""
    with pytest.raises(msgspec.ValidationError):
        read_command(line)


@pytest.mark.parametrize(("levels", "good"), [(128, True), (129, False), (975, False)])
def test_the_depth_of_a_message(levels: int, good: bool) -> None:
    """The data in a message may have its 128 levels, whatever is around it."""
    line = b'{"id":1,"publish":{"data":%s}}' % nested(levels, b"1")
    if good:
        publish = PublishRequest(data=msgspec.Raw(nested(levels, b"1")))
        assert read_command(line).publish == publish
    else:
        with pytest.raises(msgspec.DecodeError):
            read_command(line)


def test_a_field_that_is_ignored_has_a_depth_too() -> None:
    """No field is so deep that a parser's own limit counts."""
    with pytest.raises(msgspec.DecodeError):
        read_command('{"id":1,"x":' + "[" * 60_000)


DEEP = [nested(129, b"1"), b"[" * 60_000]
BAD = [b"hello", b"hello\nworld", b"\xff", b"[", b"NaN", *DEEP]


@pytest.mark.parametrize("data", BAD, ids=lambda data: str(data[:8]))
@pytest.mark.parametrize(
    "make",
    [
        lambda data: ConnectionGrant(info=data),
        lambda data: ConnectionGrant(data=data),
        lambda data: ConnectionGrant(meta=data),
        lambda data: SubscriptionGrant(info=data),
        lambda data: SubscriptionGrant(data=data),
        lambda data: Renewal(info=data),
        lambda data: Renewal(meta=data),
    ],
)
def test_a_grant_is_made_of_json(data: bytes, make: Callable[[bytes], object]) -> None:
    """Whoever makes a grant of other bytes gets the error; with JSON it is one line."""
    with pytest.raises(ValueError, match=r"."):
        make(data)
    assert make(b'{\n"a": 1}') == make(b'{"a": 1}')


@pytest.mark.parametrize(
    "publication",
    [
        *(Publication("c", data) for data in BAD),
        Publication("c", b"1", tags={"a": "\ud800"}),
        Publication("c", b"1", tags={"a": 1}),  # type: ignore[dict-item]
        Publication("c", b"1", info=ClientInfo("\ud800", "c")),
        Publication("c", b"1", info=ClientInfo("u", "c", msgspec.Raw(b"{"))),
        Publication("c", "1"),  # type: ignore[arg-type]
    ],
)
def test_a_publication_is_checked(publication: Publication) -> None:
    """A publication of a library user that no frame can carry is the caller's error 107."""
    with pytest.raises(ReplyError) as caught:
        checked(publication)
    assert caught.value.code is ErrorCode.BAD_REQUEST


MANY = {
    "filter nodes": '{"id":7,"subscribe":{"channel":"c","tf":{"op":"and","nodes":[%s]}}}',
    "filter texts": '{"id":7,"subscribe":{"channel":"c","tf":{"key":"k","vals":[%s]}}}',
    "headers": '{"id":7,"connect":{"headers":{%s}}}',
    "positions": '{"id":7,"connect":{"subs":{%s}}}',
}
ITEM = {
    "filter nodes": "{{}}",
    "filter texts": '"{}"',
    "headers": '"{}":""',
    "positions": '"{}":{{}}',
}


@pytest.mark.parametrize("mark", ['"id":null,', '"x":"\\ud800",'])
@pytest.mark.parametrize("kind", MANY)
def test_values_that_a_stranger_has_read_one_by_one_are_limited(kind: str, mark: str) -> None:
    """A message with a null or half a pair costs its reader more for each value; so few may be."""

    def message(count: int, begin: str = "") -> str:
        text = MANY[kind] % ",".join(ITEM[kind].format(number) for number in range(count))
        return text.replace("{", "{" + begin, 1)

    limited = reader(Command, around=2, values=STRANGERS_VALUES)
    assert limited(message(STRANGERS_VALUES - 100, mark)) == read_command(
        message(STRANGERS_VALUES - 100)
    )
    with pytest.raises(msgspec.ValidationError, match="too many values"):
        limited(message(STRANGERS_VALUES, mark))
    assert limited(message(STRANGERS_VALUES)) == read_command(message(STRANGERS_VALUES, mark))


def test_a_command_with_too_many_values_costs_that_command() -> None:
    """It is answered with an error, as a command of another shape is."""
    line = MANY["filter nodes"] % ",".join(["{}"] * 20_000)
    found, after = parse_commands(line.replace('"op":"and"', '"op":null') + '\n{"id":8,"rpc":{}}')
    assert type(found) is BadCommand
    assert (found.id, after.id) == (7, 8)


def test_the_largest_filter_may_have_nulls() -> None:
    """Also an SDK that writes null for each field that it leaves out gets its largest filter."""
    node = '{"op":null,"key":"k","cmp":"eq","val":"v","vals":null,"nodes":null}'
    line = MANY["filter nodes"] % ",".join([node] * 255)
    (command,) = parse_commands(line)
    assert command.subscribe is not None
    assert command.subscribe.tf is not None
    check_filter(command.subscribe.tf)
