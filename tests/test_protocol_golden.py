"""Golden vectors: the public schema's bytes and ours are the same; see golden_protobuf.txt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from repeater.protocol.centrifugo.commands import parse_commands
from repeater.protocol.centrifugo.protobuf_format import PROTOBUF
from repeater.protocol.centrifugo.protobuf_reader import read_emulation
from repeater.protocol.centrifugo.protobuf_writer import write_publication
from repeater.protocol.centrifugo.replies import Push, Reply
from repeater.publication import Publication
from tests import official_protobuf as official

TEXT = (Path(__file__).parent / "golden_protobuf.txt").read_text()
LINES = TEXT[TEXT.index("\n#") :].split("\n")
VECTORS = [line.split(" ", 2) for line in LINES if line.startswith(("C ", "S ", "E "))]


def vectors(who: str) -> list[tuple[str, str]]:
    return [(digits, text) for speaker, digits, text in VECTORS if speaker == who]


def value(kind: inspect.Type, raw: msgspec.Raw) -> Any:
    """The value of this type that a JSON text says; msgspec does not read `Raw | None`."""
    match kind:
        case inspect.UnionType():
            return value(kind.types[0], raw)
        case inspect.RawType():
            return raw
        case inspect.StructType():
            kinds = {field.name: field.type for field in kind.fields}
            fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            return kind.cls(**{name: value(kinds[name], one) for name, one in fields.items()})
        case inspect.DictType():
            fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            return {name: value(kind.value_type, one) for name, one in fields.items()}
        case inspect.ListType():
            items = msgspec.json.decode(raw, type=list[msgspec.Raw])
            return [value(kind.item_type, one) for one in items]
        case _:
            return msgspec.json.decode(raw)


def written(text: str) -> bytes:
    """The bytes that Repeater writes for what this JSON text says."""
    if text == "{}":
        return PROTOBUF.ping
    fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    if "push" not in fields:
        return PROTOBUF.reply(value(inspect.type_info(Reply), msgspec.Raw(text.encode())))
    push = msgspec.json.decode(fields["push"], type=dict[str, msgspec.Raw])
    if "pub" not in push:
        return PROTOBUF.push(value(inspect.type_info(Push), fields["push"]))
    pub = msgspec.json.decode(push["pub"], type=dict[str, msgspec.Raw])
    delta = "delta" in pub
    data = json.loads(bytes(pub["data"])).encode() if delta else bytes(pub["data"])
    fields = {**pub, "channel": push["channel"], "data": msgspec.Raw(b'""')}
    publication = value(inspect.type_info(Publication), msgspec.Raw(msgspec.json.encode(fields)))
    return write_publication(publication, data, delta=delta)


@pytest.mark.parametrize(("digits", "text"), vectors("C"))
def test_commands(digits: str, text: str) -> None:
    """The bytes are read as the JSON text is."""
    assert list(PROTOBUF.commands(bytes.fromhex(digits))) == list(parse_commands(text))


@pytest.mark.parametrize(("digits", "text"), vectors("S"))
def test_replies_and_pushes(digits: str, text: str) -> None:
    """What the JSON text says is written as the bytes, each of them; a map has no order."""
    ours, theirs = written(text), bytes.fromhex(digits)
    if len(json.loads(text).get("presence", {}).get("presence", ())) > 1:
        assert len(ours) == len(theirs)
        assert official.replies(ours) == official.replies(theirs)
    else:
        assert ours.hex() == digits


def test_a_frame_of_all_commands() -> None:
    """The vectors behind each other are their commands in order."""
    commands = vectors("C")
    frame = b"".join(bytes.fromhex(digits) for digits, _ in commands)
    assert list(PROTOBUF.commands(frame)) == list(
        parse_commands("\n".join(text for _, text in commands))
    )


@pytest.mark.parametrize(("digits", "text"), vectors("E"))
def test_emulated_commands(digits: str, text: str) -> None:
    """The body of a request to /emulation names a node and a session, and has commands."""
    said = json.loads(text)
    request = read_emulation(bytes.fromhex(digits))
    assert (request.node, request.session) == (said["node"], said["session"])
    assert list(PROTOBUF.commands(request.data)) == list(parse_commands(said["data"]))


def test_every_method_and_push_has_a_vector() -> None:
    """Nothing that Repeater speaks is without one, but for a result of `rpc`."""
    seen = {name for _, text in vectors("C") for name in json.loads(text)}
    assert seen == {
        *("id", "connect", "subscribe", "unsubscribe", "publish", "presence", "presence_stats"),
        *("history", "rpc", "send", "refresh", "sub_refresh"),
    }
    said = [json.loads(text) for _, text in vectors("S")]
    assert {name for one in said for name in one} == (seen - {"send", "rpc"}) | {"push", "error"}
    assert {name for one in said for name in one.get("push", {})} == {
        *("channel", "pub", "join", "leave", "unsubscribe", "subscribe", "message"),
        *("disconnect", "refresh"),
    }
