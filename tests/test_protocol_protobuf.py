"""Protobuf says what JSON says: both formats' messages, judged by the public schema's classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

import msgspec
import pytest
from centrifuge.fossil import apply_delta
from hypothesis import example, given
from hypothesis import strategies as st

from repeater.errors import BAD_REQUEST, Disconnect, DisconnectError, Unsubscribed
from repeater.protocol.centrifugo import protobuf_codecs
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON, CENTRIFUGE_SSE, Codec
from repeater.protocol.centrifugo.commands import (
    PONG,
    ChannelRequest,
    Command,
    ConnectRequest,
    EmulationRequest,
    HistoryRequest,
    PublishRequest,
    RefreshRequest,
    RPCRequest,
    SendRequest,
    SincePosition,
    SubRefreshRequest,
    SubscribeRequest,
    SubscriptionPosition,
    UnsubscribeRequest,
)
from repeater.protocol.centrifugo.filters import NODE_LIMIT, TagsFilter, check_filter
from repeater.protocol.centrifugo.json_format import JSON
from repeater.protocol.centrifugo.protobuf_format import PROTOBUF
from repeater.protocol.centrifugo.protobuf_reader import read_emulation
from repeater.protocol.centrifugo.replies import (
    ConnectResult,
    Empty,
    Failure,
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    PublicationResult,
    Push,
    RefreshResult,
    Reply,
    RPCResult,
    SubscribeResult,
)
from repeater.protocol.centrifugo.varint import read_varint, varint
from repeater.publication import ClientInfo, Publication
from tests import official_protobuf as official

CODECS = [
    *(protobuf_codecs.CENTRIFUGE_PROTOBUF, protobuf_codecs.CENTRIFUGE_PROTOBUF_STREAM),
    *(CENTRIFUGE_JSON, CENTRIFUGE_SSE),
]
TEXT = st.text(st.characters(codec="utf-8"), max_size=9)
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
RAW = VALUE.map(lambda value: msgspec.Raw(json.dumps(value).encode()))
TAGS = st.none() | st.dictionaries(TEXT, TEXT, min_size=1, max_size=3)
INFO = st.builds(ClientInfo, TEXT, TEXT, conn_info=st.none() | RAW, chan_info=st.none() | RAW)
PUBLICATION = st.builds(PublicationResult, RAW, UINT64, tags=TAGS, info=st.none() | INFO)
SUBSCRIBED = st.builds(
    SubscribeResult,
    expires=st.booleans(),
    ttl=UINT32,
    recoverable=st.booleans(),
    epoch=TEXT,
    publications=st.none() | st.lists(PUBLICATION, min_size=1, max_size=3),
    recovered=st.booleans(),
    offset=UINT64,
    positioned=st.booleans(),
    data=st.none() | RAW,
    was_recovering=st.booleans(),
    delta=st.booleans(),
)
CONNECTED = st.builds(
    ConnectResult,
    TEXT,
    TEXT,
    expires=st.booleans(),
    ttl=UINT32,
    data=st.none() | RAW,
    subs=st.none() | st.dictionaries(TEXT, SUBSCRIBED, min_size=1, max_size=2),
    ping=UINT32,
    pong=st.booleans(),
    session=TEXT,
    node=TEXT,
)
REFRESHED = st.builds(RefreshResult, expires=st.booleans(), ttl=UINT32)
RESULTS = {
    "error": st.builds(Failure, UINT32, TEXT, temporary=st.booleans()),
    "connect": CONNECTED,
    "subscribe": SUBSCRIBED,
    "unsubscribe": st.just(Empty()),
    "publish": st.just(Empty()),
    "presence": st.builds(PresenceResult, st.dictionaries(TEXT, INFO, max_size=2)),
    "presence_stats": st.builds(PresenceStatsResult, UINT32, UINT32),
    "history": st.builds(HistoryResult, st.lists(PUBLICATION, max_size=3), TEXT, UINT64),
    "rpc": st.builds(RPCResult, st.none() | RAW),
    "refresh": REFRESHED,
    "sub_refresh": REFRESHED,
}
PUSHES = {
    "join": st.fixed_dictionaries({"info": INFO}),
    "leave": st.fixed_dictionaries({"info": INFO}),
    "unsubscribe": st.builds(Unsubscribed, UINT32, TEXT),
    "subscribe": st.builds(
        SubscribeResult,
        recoverable=st.booleans(),
        epoch=TEXT,
        offset=UINT64,
        positioned=st.booleans(),
        data=st.none() | RAW,
    ),
    "message": st.fixed_dictionaries({"data": RAW}),
    "disconnect": st.builds(Disconnect, UINT32, TEXT),
    "refresh": REFRESHED,
}
PUBLISHED = st.builds(
    Publication,
    TEXT,
    RAW.map(bytes),
    offset=st.integers(0, 2) | UINT64,
    epoch=TEXT,
    tags=TAGS,
    info=st.none() | INFO,
)

POSITION = st.builds(SubscriptionPosition, st.booleans(), UINT64, TEXT)
FILTER = st.recursive(
    st.builds(TagsFilter, cmp=TEXT, key=TEXT, val=TEXT, vals=st.lists(TEXT, max_size=2).map(tuple)),
    lambda inner: st.builds(TagsFilter, op=TEXT, nodes=st.lists(inner, max_size=2).map(tuple)),
    max_leaves=4,
)
INT32 = st.integers(-(2**31), 2**31 - 1)
METHODS = {
    "connect": st.builds(
        ConnectRequest,
        TEXT,
        RAW,
        st.dictionaries(TEXT, POSITION, max_size=2),
        TEXT,
        TEXT,
        st.dictionaries(TEXT, TEXT, max_size=2),
    ),
    "subscribe": st.builds(
        SubscribeRequest,
        TEXT,
        TEXT,
        RAW,
        *[st.booleans()] * 4,
        UINT64,
        TEXT,
        TEXT,
        st.none() | FILTER,
        st.integers(-(2**63), 2**63 - 1),
    ),
    "unsubscribe": st.builds(UnsubscribeRequest, TEXT),
    "publish": st.builds(PublishRequest, TEXT, RAW),
    "presence": st.builds(ChannelRequest, TEXT),
    "presence_stats": st.builds(ChannelRequest, TEXT),
    "history": st.builds(
        HistoryRequest,
        TEXT,
        INT32,
        st.none() | st.builds(SincePosition, UINT64, TEXT),
        st.booleans(),
    ),
    "rpc": st.builds(RPCRequest, TEXT, RAW),
    "send": st.builds(SendRequest, RAW),
    "refresh": st.builds(RefreshRequest, TEXT),
    "sub_refresh": st.builds(SubRefreshRequest, TEXT, TEXT),
}


BAD = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"\x05\x08\x01", id="cut off"),
    pytest.param(b"\x80", id="length cut off"),
    pytest.param(b"\xff\xff\xff\xff\xff\x01", id="length of six bytes"),
    pytest.param(b"\xff\xff\xff\xff\xff", id="length without end"),
    pytest.param(b"\x02\x08\x80", id="number cut off"),
    pytest.param(b"\x02\x22\x7f", id="field longer than the command"),
    pytest.param(b"\x02\x0f\x01", id="unknown wire type"),
    pytest.param(b"\x02\x00\x01", id="field number 0"),
    pytest.param(b"\x05\x6a\x03\x12\x01\xff", id="text that is not UTF-8"),
    pytest.param(b"\x01\x24", id="end of no group"),
]


def one_of(fields: Mapping[str, st.SearchStrategy[object]]) -> st.SearchStrategy[dict[str, object]]:
    """One of the fields, with a value."""
    return st.one_of([st.fixed_dictionaries({name: one}) for name, one in fields.items()])


COMMAND = st.builds(
    lambda number, method: Command(number, **method), UINT32.filter(bool), one_of(METHODS)
)


def protobuf(command: Command) -> bytes:
    """A command in the public schema's form, with its length."""
    return official.delimited(official.fill(official.Command(), command))


def agree(json_text: bytes, protobuf_bytes: bytes) -> None:
    """Both messages say the same."""
    (reply,) = official.replies(protobuf_bytes)
    assert official.told(reply) == official.said(official.Reply, json.loads(json_text))


@given(UINT32.filter(bool), one_of(RESULTS))
def test_replies_say_what_json_says(number: int, result: dict[str, object]) -> None:
    """Every result, with every field that it may have."""
    reply = msgspec.structs.replace(Reply(number), **result)
    agree(JSON.reply(reply), PROTOBUF.reply(reply))


@given(TEXT, one_of(PUSHES))
def test_pushes_say_what_json_says(channel: str, what: dict[str, object]) -> None:
    """Every push to a client that has a conversation."""
    push = msgspec.structs.replace(Push(channel), **what)
    agree(JSON.push(push), PROTOBUF.push(push))


@given(PUBLISHED)
def test_publications_say_what_json_says(publication: Publication) -> None:
    """A live publication: its data as it is, the epoch beside offset 1 only."""
    agree(JSON.publication(publication), PROTOBUF.publication(publication))


@given(st.lists(COMMAND, min_size=1, max_size=3))
def test_commands_are_read_as_from_json(commands: list[Command]) -> None:
    """Pipelined commands of the public schema become the values that JSON text becomes."""
    text = "\n".join(msgspec.json.encode(command).decode() for command in commands)
    assert list(JSON.commands(text)) == commands
    assert list(PROTOBUF.commands(b"".join(map(protobuf, commands)))) == commands


def test_an_empty_message_is_a_pong() -> None:
    """A length of 0; and a command that says nothing that is known."""
    assert list(PROTOBUF.commands(b"\0\0")) == [PONG, PONG]
    (command,) = PROTOBUF.commands(official.delimited(b"\xf8\x07\x01"))
    assert command is PONG


def test_fields_that_the_sdk_does_not_know_yet() -> None:
    """`type` of subscribe and publish, and a publication's epoch, by their bytes."""
    subscribe, publish = PROTOBUF.commands(
        b"\x06\x08\x01\x2a\x02\x78\x01" + b"\x06\x08\x02\x3a\x02\x18\x01"
    )
    assert subscribe.subscribe == SubscribeRequest(type=1)
    assert publish.publish == PublishRequest(type=1)
    first = PROTOBUF.publication(Publication("c", b"1", 1, "abc"))
    assert first == b"\x11\x22\x0f\x12\x01c\x22\x0a\x22\x011\x30\x01\x72\x03abc"
    assert b"abc" not in PROTOBUF.publication(Publication("c", b"1", 2, "abc"))


@pytest.mark.parametrize("message", BAD)
def test_bad_messages_are_a_disconnect(message: bytes) -> None:
    """3501 for what is not a message; commands before it have come out."""
    commands = PROTOBUF.commands(b"\x02\x08\x07" + message if message else message)
    if message:
        assert next(commands).id == 7
    with pytest.raises(DisconnectError) as caught:
        list(commands)
    assert caught.value.disconnect == BAD_REQUEST


def test_text_is_a_disconnect() -> None:
    """A text frame on a binary connection."""
    with pytest.raises(DisconnectError) as caught:
        PROTOBUF.commands("{}")
    assert caught.value.disconnect == BAD_REQUEST


@given(st.binary(max_size=60))
def test_any_bytes_are_commands_or_a_disconnect(message: bytes) -> None:
    """No input raises anything but DisconnectError."""
    with suppress(DisconnectError):
        list(PROTOBUF.commands(message))
    with suppress(DisconnectError):
        read_emulation(message)


@given(st.lists(COMMAND, min_size=1, max_size=2), st.data())
def test_a_damaged_message_is_commands_or_a_disconnect(
    commands: list[Command], data: st.DataObject
) -> None:
    """The same for messages of which a few bytes are others, or missing, or there twice."""
    message = bytearray(b"".join(map(protobuf, commands)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(message)))
        end = data.draw(st.integers(start, min(start + 3, len(message))))
        message[start:end] = data.draw(st.binary(max_size=3))
    with suppress(DisconnectError):
        list(PROTOBUF.commands(bytes(message)))


@given(TEXT, TEXT, st.lists(COMMAND, max_size=2))
def test_an_emulated_message_is_read(node: str, session: str, commands: list[Command]) -> None:
    """The body of a request to /emulation has commands as a frame has them."""
    body = official.EmulationRequest(
        node=node, session=session, data=b"".join(map(protobuf, commands))
    ).SerializeToString()
    found = read_emulation(body)
    assert (found.node, found.session) == (node, session)
    assert not commands or list(PROTOBUF.commands(found.data)) == commands
    assert isinstance(found, EmulationRequest)


def test_of_several_methods_the_last_one_counts() -> None:
    """No SDK writes such a command. JSON takes the first one in the protocol's order."""
    both = official.Command(id=1, rpc={"method": "m"}, presence={"channel": "c"})
    (command,) = PROTOBUF.commands(official.delimited(both))
    assert command == Command(1, rpc=RPCRequest("m", msgspec.Raw(b"")))


def test_another_wire_type_is_an_unknown_field() -> None:
    """A number where a text belongs, and the reverse, are ignored."""
    presence = b"\x08\x05" + b"\x0a\x01c"  # field 1 as a number, and then as a text
    command = b"\x0a\x01x" + b"\x08\x02" + b"\x42" + official.varint(len(presence)) + presence
    (read,) = PROTOBUF.commands(official.delimited(command))
    assert read == Command(2, presence=ChannelRequest("c"))


def nested(levels: int) -> bytes:
    """A subscribe with a filter of so many levels."""
    node = b""
    for _ in range(levels - 1):
        node = b"\x0a\x03not\x32" + official.varint(len(node)) + node
    subscribe = b"\x0a\x01c\x6a" + official.varint(len(node)) + node
    return official.delimited(b"\x08\x01\x2a" + official.varint(len(subscribe)) + subscribe)


def test_levels_are_limited() -> None:
    """A filter above 16 levels is refused as in JSON; above the runtime's 100, the client is."""
    for levels in (17, 90):
        (command,) = PROTOBUF.commands(nested(levels))
        assert command.subscribe is not None
        assert command.subscribe.tf is not None
        with pytest.raises(ValueError, match="deeper than 16"):
            check_filter(command.subscribe.tf)
    for levels in (101, 10_000):
        with pytest.raises(DisconnectError) as caught:
            list(PROTOBUF.commands(nested(levels)))
        assert caught.value.disconnect == BAD_REQUEST


def test_a_filter_is_read_no_further_than_its_limit() -> None:
    """Of thousands of nodes in a message, so many are read that the filter is refused."""
    command = official.Command(id=1, subscribe={"channel": "c", "tf": {"op": "or"}})
    for _ in range(9_000):
        command.subscribe.tf.nodes.add(key="k", cmp="eq", val="v")
    (read,) = PROTOBUF.commands(official.delimited(command))
    assert read.subscribe is not None
    assert read.subscribe.tf is not None
    assert len(read.subscribe.tf.nodes) == NODE_LIMIT
    with pytest.raises(ValueError, match="more than 256 nodes"):
        check_filter(read.subscribe.tf)
    del command.subscribe.tf.nodes[NODE_LIMIT - 1 :]
    (read,) = PROTOBUF.commands(official.delimited(command))
    assert read.subscribe is not None
    assert read.subscribe.tf is not None
    check_filter(read.subscribe.tf)


def test_positions_are_read_when_they_are_asked_for() -> None:
    """They are a mapping like JSON's; asking for a channel that is not there adds nothing."""
    message = official.Command(id=1, connect={"subs": {"a": {"recover": True, "offset": 3}}})
    (command,) = PROTOBUF.commands(official.delimited(message))
    assert command.connect is not None
    subs = command.connect.subs
    assert subs.get("b") is None
    assert "b" not in subs
    assert list(subs) == ["a"]
    assert subs == {"a": SubscriptionPosition(recover=True, offset=3)}


@given(st.integers(0, 2**32 - 1), st.binary(max_size=3))
def test_varints(number: int, more: bytes) -> None:
    """What is written is read, whatever comes behind it."""
    assert varint(number) == official.varint(number)
    assert read_varint(b"\x80" + varint(number) + more, 1) == (number, 1 + len(varint(number)))


def test_a_push_of_a_subscription_says_what_upstream_says() -> None:
    """Flags of an answer to a `subscribe` are not in it, though JSON may have them."""
    push = Push("c", subscribe=SubscribeResult(was_recovering=True, delta=True, offset=3))
    (reply,) = official.replies(PROTOBUF.push(push))
    assert official.told(reply) == {"push": {"channel": "c", "subscribe": {"offset": 3}}}


def test_a_delta_is_bytes() -> None:
    """Where JSON has a string, Protobuf has the Fossil delta itself, or the whole data."""
    base = Publication("c", b'{"title":"hello world","count":1}', 6, delta=True)
    target = msgspec.structs.replace(base, data=b'{"title":"hello world","count":2}', offset=7)
    (whole,) = official.replies(PROTOBUF.delta(base, None))
    assert (whole.push.pub.data, whole.push.pub.delta) == (base.data, False)
    (delta,) = official.replies(PROTOBUF.delta(target, base))
    assert delta.push.pub.delta
    assert bytes(apply_delta(base.data, delta.push.pub.data)) == target.data


LONG = st.builds(lambda text, times: text * times, TEXT.filter(bool), st.integers(1, 3_000))


@given(PUBLISHED, st.dictionaries(LONG, LONG, max_size=3), st.sampled_from(CODECS))
@example(Publication("c", b"1"), {f"{n:0200}": "v" * 200 for n in range(99)}, CODECS[0])
def test_a_publication_is_not_larger_than_its_codec_says(
    publication: Publication, tags: dict[str, str], codec: Codec
) -> None:
    """The bytes that are reserved for it are enough, whatever its tags are."""
    tagged = msgspec.structs.replace(publication, tags=tags)
    assert len(codec.publications([tagged])[0]) <= codec.size(tagged)
