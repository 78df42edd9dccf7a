"""Malformed input, thousands of it, from a seed: an answer of the protocol or its end, never more.

Every input meets a session of its own. Whatever it is, what comes back is documented, no exception
passes, and nothing of the client is left.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater import errors
from repeater.brokers.receipts import settled
from repeater.clients.session import Session
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import Disconnect, ErrorCode
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI, CENTRIFUGE_UNI_ASGI
from repeater.protocol.centrifugo.protobuf_codecs import CENTRIFUGE_PROTOBUF_ASGI
from repeater.protocol.websocket.frames import FrameReader
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.fuzz import protobuf
from tests.protobuf_peer import command, whole

SEEDS = range(16)
INPUTS = 1_000  # for each seed

CONNECT = '{"connect":{"name":"js"},"id":1}'
PROTOBUF_CONNECT = command(id=1, connect={"name": "test"})
EVERYTHING = NodeOptions(
    channel_limit=5,
    channel=ChannelOptions(
        presence=True,
        join_leave=True,
        force_push_join_leave=True,
        force_recovery=True,
        allowed_delta_types=frozenset({"fossil"}),
        allow_tags_filter=True,
    ),
    namespaces={
        "chat": ChannelOptions(history_size=0),
        "bin": ChannelOptions(publication_data_format="binary"),
    },
)
COMMANDS: tuple[dict[str, Any], ...] = (
    {"connect": {"token": "a.b.c", "data": {"x": 1}, "name": "js", "version": "1"}},
    {"connect": {"subs": {"a": {"recover": True, "offset": 3, "epoch": "e"}}}},
    {"subscribe": {"channel": "a", "recoverable": True, "positioned": True, "join_leave": True}},
    {"subscribe": {"channel": "a", "recover": True, "offset": 6, "epoch": "xyz", "flag": 1}},
    {"subscribe": {"channel": "b", "delta": "fossil", "token": "x.y.z", "data": [1]}},
    {"subscribe": {"channel": "c", "tf": {"key": "k", "cmp": "in", "vals": ["1", "2"]}}},
    {"subscribe": {"channel": "c", "tf": {"op": "and", "nodes": [{"key": "k", "cmp": "ex"}]}}},
    {"subscribe": {"channel": "chat:$#1,2", "type": 1, "limit": 10, "cursor": "q"}},
    {"unsubscribe": {"channel": "a"}},
    {"publish": {"channel": "a", "data": {"a": [1, 2.5, None, True, "é\n"]}}},
    {"presence": {"channel": "a"}},
    {"presence_stats": {"channel": "a"}},
    {"history": {"channel": "a", "limit": 10, "since": {"offset": 1, "epoch": "e"}}},
    {"history": {"channel": "a", "limit": -1, "reverse": True}},
    {"rpc": {"method": "m", "data": {"q": 1}}},
    {"send": {"data": {"hi": 1}}},
    {"refresh": {"token": "a.b.c"}},
    {"sub_refresh": {"channel": "a", "token": "a.b.c"}},
    {"ping": {}},
    {},
)
WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**400, -(10**30),
    "", "a", "\x00", "\ud800", "$", "#", ":", "chat:", "bin:a", "nowhere:a", "é", "x" * 300, [], {},
    [[]], {"a": {}}, [None], {"": None}, "1", "null",
)  # fmt: skip

ERRORS = {(int(code), code.message) for code in ErrorCode}
ERRORS |= {(108, "not offered here"), (108, "binary channel")}
DISCONNECTS = {one for one in vars(errors).values() if isinstance(one, Disconnect)}
RESULTS = {
    "connect", "subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history",
    "rpc", "refresh", "sub_refresh",
}  # fmt: skip


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def a_command(rng: random.Random) -> dict[str, Any]:
    command = dict(rng.choice(COMMANDS))
    if rng.random() < 0.9:
        command["id"] = rng.choice((1, 2, 3, 2**32 - 1))
    return command


def replace_a_value(rng: random.Random) -> bytes:
    """A correct command with one value of the wrong type or size, at any depth."""
    command = json.loads(dump(a_command(rng)))
    at: Any = command
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = rng.choice(keys)
        if not isinstance(at[key], dict | list) or rng.random() < 0.4:
            at[key] = rng.choice(WRONG)
            break
        at = at[key]
    return dump(command)


def several_methods(rng: random.Random) -> bytes:
    return dump({**a_command(rng), **a_command(rng), **a_command(rng)})


def duplicate_keys(rng: random.Random) -> bytes:
    one, other = dump(a_command(rng)), dump(a_command(rng))
    return one[:-1] + b"," + other[1:] if len(one) > 2 and len(other) > 2 else one + other


def truncate(rng: random.Random) -> bytes:
    line = dump(a_command(rng))
    return line[: rng.randrange(len(line))]


def flip_bytes(rng: random.Random) -> bytes:
    line = bytearray(dump(a_command(rng)))
    for _ in range(rng.randint(1, 4)):
        line[rng.randrange(len(line))] = rng.randrange(256)
    return bytes(line)


def insert_bytes(rng: random.Random) -> bytes:
    line = dump(a_command(rng))
    at = rng.randrange(len(line) + 1)
    return line[:at] + rng.randbytes(rng.randint(1, 6)) + line[at:]


def not_utf8(rng: random.Random) -> bytes:
    bad = rng.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"))
    return dump(a_command(rng)).replace(b'"a"', b'"' + bad + b'"')


def random_bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(200))


def deep_nesting(rng: random.Random) -> bytes:
    depth = rng.choice((10, 500, 1_000, 5_000, 30_000))
    deep = rng.choice((b"[" * depth + b"]" * depth, b"[" * depth, b'{"a":' * depth + b"1"))
    method = rng.choice((b"publish", b"subscribe", b"rpc", b"nothing"))
    field = rng.choice((b"data", b"tf", b"channel", b"other"))
    return b'{"id":2,"%s":{"channel":"a","%s":%s}}' % (method, field, deep)


def deep_filter(rng: random.Random) -> bytes:
    depth = rng.choice((5, 100, 1_000, 3_000))
    inner = b'{"key":"k","cmp":"eq","val":"v"}'
    tree = b'{"op":"not","nodes":[' * depth + inner + b"]}" * depth
    return b'{"id":2,"subscribe":{"channel":"a","tf":%s}}' % tree


def many_lines(rng: random.Random) -> bytes:
    size = rng.choice((2, 5, 50))
    separator = rng.choice((b"\n", b"\n", b"\n", b"\n\n", b"\r\n", b"\x00"))
    return separator.join(dump(a_command(rng)) for _ in range(size)) + rng.choice((b"", b"\n"))


def correct(rng: random.Random) -> bytes:
    return dump(a_command(rng))


MUTATIONS: tuple[Callable[[random.Random], bytes], ...] = (
    replace_a_value, replace_a_value, several_methods, duplicate_keys, truncate, flip_bytes,
    flip_bytes, insert_bytes, not_utf8, random_bytes, deep_nesting, deep_filter, many_lines,
    many_lines, correct,
)  # fmt: skip


def usual(text: str) -> str:
    """The protocol's own text. Development mode, in which these nodes are, goes on with why."""
    return text.partition(": ")[0]


def check_end(end: Disconnect | None) -> None:
    """It is one that the protocol knows, and fits into a close frame (RFC 6455, section 5.5)."""
    assert end is not None
    assert msgspec.structs.replace(end, reason=usual(end.reason)) in DISCONNECTS
    assert len(end.reason.encode()) <= 123


def check_reply(reply: Any, *, bare: bool) -> None:
    """It is something that the protocol knows, and complete."""
    assert isinstance(reply, dict)
    if reply == {}:
        return  # a ping
    if "error" in reply:
        error = reply["error"]
        assert (error["code"], usual(error["message"])) in ERRORS
    if bare or "push" in reply:
        assert (reply if bare else reply["push"]).keys() & {
            "pub", "join", "leave", "unsubscribe", "connect",
        }  # fmt: skip
        return
    assert 0 < reply["id"] < 2**32
    assert len(reply.keys() & (RESULTS | {"error"})) == 1


async def meet_protobuf(node: Node, message: bytes, *, connected: bool) -> None:
    """As `meet`, in Protobuf."""
    transport = MemoryTransport(CENTRIFUGE_PROTOBUF_ASGI)
    async with connect(node, transport, ready=False) as client:
        session = Session(node, client)
        if connected:
            await session.receive(PROTOBUF_CONNECT)
        await session.receive(message)
        await session.receive(message)
    check_end(client.end)
    assert not client.channels
    for sent in transport.sent:
        ((reply,), rest) = whole(sent)
        assert rest == b""
        check_reply(reply, bare=False)


async def meet(node: Node, message: bytes, *, connected: bool, bare: bool = False) -> None:
    """One client that says this, from its first byte to its last."""
    transport = MemoryTransport(CENTRIFUGE_UNI_ASGI if bare else CENTRIFUGE_JSON_ASGI)
    async with connect(node, transport, ready=False) as client:
        session = UnidirectionalSession(node, client) if bare else Session(node, client)
        if connected:
            await session.receive(CONNECT)
        # What is not UTF-8 becomes lone surrogates, which no parser may trip over either.
        text = message.decode(errors="surrogateescape")
        await session.receive(text)
        await session.receive(text)  # Whatever it did, the next message finds a state for it.
    check_end(client.end)
    assert not client.channels
    for sent in transport.sent:
        assert b"\n" not in sent
        check_reply(json.loads(sent), bare=bare)


async def meet_each(
    seed: int,
    messages: Iterable[bytes],
    meet_one: Callable[[Node, bytes, int], Awaitable[None]],
) -> None:
    """Have one node meet all these, each with its number; nothing of any is left behind."""
    async with open_test_node(EVERYTHING) as node:
        for number, message in enumerate(messages):
            try:
                await meet_one(node, message, number)
            except BaseException as error:
                error.add_note(f"seed {seed}, input {number}: {message[:2_000]!r}")
                raise
            assert not node.registry.clients
            assert not node.hub.channels
        await wait_all_tasks_blocked()
        assert await settled(node.presence_store.count("a")) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
async def test_malformed_commands(seed: int, autojump_clock: MockClock) -> None:
    """Documented replies and disconnects only, and nothing is left of anybody."""
    rng = random.Random(seed)

    async def meet_both(node: Node, message: bytes, number: int) -> None:
        await meet(node, message, connected=number % 4 != 0)
        await meet(node, message, connected=False, bare=True)

    await meet_each(seed, (rng.choice(MUTATIONS)(rng) for _ in range(INPUTS)), meet_both)


@pytest.mark.parametrize("seed", SEEDS)
async def test_malformed_protobuf(seed: int, autojump_clock: MockClock) -> None:
    """The same in Protobuf: commands by their bytes, with and without damage."""
    rng = random.Random(seed)

    async def meet_one(node: Node, message: bytes, number: int) -> None:
        await meet_protobuf(node, message, connected=number % 4 != 0)

    await meet_each(seed, (protobuf.message(rng) for _ in range(INPUTS // 2)), meet_one)


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"publish":{"channel":"a","data":1},"id":3}',
        b'{"subscribe":{"channel":"a"},"id":3}',
        b'{"unsubscribe":{"channel":"a"},"id":3}\n{"subscribe":{"channel":"a"},"id":4}',
        b'{"presence":{"channel":"a"},"id":3}',
        b'{"rpc":{},"id":3}',
    ],
)
async def test_thousands_of_commands_in_one_message(line: bytes, autojump_clock: MockClock) -> None:
    """Five thousand commands at once are carried out one by one, each with its reply."""
    async with open_test_node(EVERYTHING) as node:
        await meet(node, b"\n".join([line] * 5_000), connected=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_malformed_frames(seed: int) -> None:
    """The frame reader takes any bytes, however cut: messages, or a close code of the RFC."""
    rng = random.Random(seed)
    for _ in range(INPUTS):
        reader = FrameReader(10_000, inflates=rng.random() < 0.7)
        data = some_frames(rng)
        while data and not reader.closed:
            cut = rng.randint(1, len(data))
            for message in reader.feed(data[:cut]):
                assert len(message) <= 10_000
                if isinstance(message, str):
                    message.encode()
            data = data[cut:]
        if reader.closed:
            assert reader.close is not None
            assert reader.close.code != 1011  # an error of ours


def deflated(text: bytes) -> bytes:
    """As a client sends it: flushed, without the flush's last four bytes."""
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def some_frames(rng: random.Random) -> bytes:
    """Frames with correct headers mostly, and some bytes of them changed."""
    data = bytearray()
    for _ in range(rng.randint(1, 6)):
        payload = rng.choice((correct, random_bytes, many_lines))(rng)[:5_000]
        opcode = rng.choice((0, 1, 1, 1, 2, 8, 9, 10, rng.randrange(16)))
        first = opcode | rng.choice((0x80, 0x80, 0x80, 0, rng.randrange(256) & 0xF0))
        if rng.random() < 0.3:
            first |= 0x40  # RSV1: compressed, or said to be
            text = payload * rng.choice((1, 1, 1, 20))
            payload = rng.choice((payload, zlib.compress(text, wbits=-15), deflated(text)))
        mask = rng.randbytes(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        if len(payload) < 126:
            size = bytes([0x80 | len(payload)])
        else:
            size = b"\xfe" + len(payload).to_bytes(2)
        data += bytes([first]) + size + mask + masked
    for _ in range(rng.choice((0, 0, 1, 3))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)
