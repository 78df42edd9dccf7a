"""Every method of the server API: what it answers, and what it refuses, whatever the bytes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant
from repeater.api.budget import Budget
from repeater.api.methods import COMMANDS, METHODS, call
from repeater.api.overview import ChannelsBody, channels
from repeater.brokers.receipts import settled
from repeater.clients.client import Client
from repeater.errors import EXPIRED, FORCE_DISCONNECT, Disconnect
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import Publication
from repeater.testing import MemoryTransport, connect, open_test_node

BARE = ChannelOptions(history_size=0)
OPTIONS = NodeOptions(channel=ChannelOptions(presence=True), namespaces={"bare": BARE})
NOT_JSON = 400
ONE, NOBODY = {"num_clients": 1}, {"num_clients": 0}


@asynccontextmanager
async def alice_on(node: Node) -> AsyncIterator[tuple[Client, MemoryTransport]]:
    """A connection of the user `alice`, as a Centrifugo client after its `connect`."""
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with connect(node, transport, ready=False) as client:
        client.identify(ConnectionGrant(user="alice", info=b'{"n":1}'))
        client.became_ready()
        yield client, transport


async def ask(node: Node, method: str, /, **body: Any) -> Any:
    """The result, or the error's code."""
    answer = await call(node, method, json.dumps(body).encode())
    assert answer.status == 200
    decoded = json.loads(answer.body)
    if "error" in decoded:
        assert set(decoded["error"]) == {"code", "message"}
        return decoded["error"]["code"]
    return decoded.get("result", decoded)


def end_of(client: Client) -> Disconnect | None:
    """Why it ended, if it has; a function, because what it says changes."""
    return client.end


def picture(node: Node) -> object:
    """All that a refused call must not change."""
    return (
        node.statistics().repeater.publications,
        {name: channel.size for name, channel in node.hub.channels.items()},
        [(client.end, client.grant) for client in node.registry.clients],
    )


# For every method a body that works, and the fields that it has, with values of a wrong type.
GOOD: dict[str, dict[str, Any]] = {
    "publish": {"channel": "news", "data": 1},
    "broadcast": {"channels": ["news"], "data": 1},
    "subscribe": {"channel": "news", "user": "alice"},
    "unsubscribe": {"channel": "news", "user": "alice"},
    "disconnect": {"user": "alice"},
    "refresh": {"user": "alice"},
    "presence": {"channel": "news"},
    "presence_stats": {"channel": "news"},
    "history": {"channel": "news"},
    "history_remove": {"channel": "news"},
    "channels": {},
    "channel_info": {"channel": "news"},
    "info": {},
    "rpc": {"method": "m"},
    "block_user": {"user": "bob"},
    "unblock_user": {"user": "bob"},
    "revoke_token": {"jti": "t"},
    "batch": {"commands": []},
}
NO_TEXT: list[Any] = [1, True, [], {}]
NO_TIME: list[Any] = ["1", True, 1.5, [], -1, 2**53 + 1, 10**30]
TARGET: dict[str, list[Any]] = {"user": NO_TEXT, "client": NO_TEXT, "session": NO_TEXT}
NO_POSITION: list[Any] = [
    1,
    "1",
    [],
    {"offset": "1"},
    {"offset": -1},
    {"offset": 2**64},
    {"epoch": 1},
]
EVENT: dict[str, list[Any]] = {
    "b64data": [*NO_TEXT, "%", "/w==", "eyI="],
    "skip_history": [1, "true"],
    "tags": [1, [], {"a": 1}],
    "idempotency_key": NO_TEXT,
    "delta": [1, "true"],
    "version": ["1", -1, 1.5, True],
    "version_epoch": NO_TEXT,
}
WRONG: dict[str, dict[str, list[Any]]] = {
    "publish": {"channel": [*NO_TEXT, "", "a" * 256, "\n", "é"], **EVENT},
    "broadcast": {
        "channels": [1, "news", {}, [1], [None], []],
        **EVENT,
        "b64data": NO_TEXT,  # invalid base64 fails channel by channel
    },
    "subscribe": {
        "channel": [*NO_TEXT, "", "a" * 256],
        "b64info": [*NO_TEXT, "%", "/w==", "eyI="],
        "b64data": [*NO_TEXT, "%", "/w==", "eyI="],
        "expire_at": [*NO_TIME, 1],
        "recover_since": NO_POSITION,
        "override": [1, [], {"presence": True}, {"presence": {"value": 1}}],
        **TARGET,
    },
    "unsubscribe": {"channel": [*NO_TEXT, "a" * 256], **TARGET},
    "disconnect": {
        "disconnect": [
            1, [], "3500", {"code": "3500"}, {"code": 1}, {"code": 2_999}, {"code": 5_000},
            {"code": -1}, {"code": 10**30}, {"code": 4_000, "reason": 1},
            {"reason": "é" * 62}, {"reason": '{"reconnect":false}'}, {"reason": "0"},
        ],
        "whitelist": [1, "id", {}, [1]],
        **TARGET,
    },
    "refresh": {"expired": [1, "true"], "expire_at": NO_TIME, **TARGET},
    "presence": {"channel": [*NO_TEXT, "", "a" * 256]},
    "presence_stats": {"channel": [*NO_TEXT, "", "a" * 256]},
    "history": {
        "channel": [*NO_TEXT, "", "a" * 256],
        "limit": ["1", 1.5, True],
        "since": NO_POSITION,
        "reverse": [1, "true"],
    },
    "history_remove": {"channel": [*NO_TEXT, "", "a" * 256]},
    "channel_info": {"channel": [*NO_TEXT, "", "a" * 256], "user": NO_TEXT},
    "channels": {"pattern": [*NO_TEXT, "a" * 1_025]},
    "info": {},
    "rpc": {"method": [*NO_TEXT, ""]},
    "block_user": {"user": [*NO_TEXT, ""], "expire_at": [*NO_TIME, 1], "ttl": NO_TIME},
    "unblock_user": {"user": [*NO_TEXT, ""]},
    "revoke_token": {
        "jti": [*NO_TEXT, ""],
        "uid": NO_TEXT,
        "user": NO_TEXT,
        "issued_before": [*NO_TIME, 5],
        "expire_at": [*NO_TIME, 1],
        "ttl": NO_TIME,
    },
    "batch": {"commands": [1, {}, "[]"], "parallel": [1, "true"]},
}  # fmt: skip


def test_the_tables_are_complete() -> None:
    """Every method is in them, and in a batch every other."""
    assert METHODS.keys() == GOOD.keys() == WRONG.keys()
    assert COMMANDS.keys() == METHODS.keys() - {"batch"}


@pytest.mark.parametrize("method", METHODS)
async def test_a_wrong_field(method: str) -> None:
    """107 for each, alone and as a batch's item, and nothing is done."""
    async with open_test_node(OPTIONS) as node, alice_on(node) as (client, _):
        client.subscribe("news")
        for field, values in WRONG[method].items():
            for value in values:
                body = {**GOOD[method], field: value}
                before = picture(node)
                assert await ask(node, method, **body) == 107, (field, value)
                if method in COMMANDS:
                    replies = await ask(node, "batch", commands=[{method: body}])
                    (reply,) = replies["replies"]
                    assert reply["error"]["code"] == 107, (field, value)
                await wait_all_tasks_blocked()
                assert picture(node) == before, (field, value)


@pytest.mark.parametrize("method", METHODS)
async def test_null_leaves_a_field_out(method: str) -> None:
    """A body with null in a field is answered as without the field, alone and in a batch."""

    async def outcomes(body: dict[str, Any]) -> list[object]:
        async with open_test_node(OPTIONS) as node:
            found = [await ask(node, method, **body)]
            if method in COMMANDS:
                (reply,) = (await ask(node, "batch", commands=[{method: body}]))["replies"]
                found.append(reply.get("error", {}).get("code") or reply[method])
            return [one if isinstance(one, int) else sorted(one) for one in found]

    good = GOOD[method]
    for field in METHODS[method].fields - {"data"}:
        without = {name: good[name] for name in good.keys() - {field}}
        assert await outcomes({**good, field: None}) == await outcomes(without), field


@pytest.mark.parametrize("method", METHODS)
async def test_what_is_no_object(method: str) -> None:
    """107 for JSON of another kind, 400 for what is not JSON, and nothing is done."""
    deep = b"[" * 100_000 + b"]" * 100_000
    digits = b"9" * 10_000
    answers = {
        b"": NOT_JSON,
        b"{": NOT_JSON,
        b"{}x": NOT_JSON,
        b"\xff": NOT_JSON,
        b'{"unknown":"\xff"}': NOT_JSON,
        b'{"unknown":%s}' % deep: NOT_JSON,
        b'{"info":%s}' % deep: NOT_JSON,
        deep: NOT_JSON,
        b"null": 107,
        b"[]": 107,
        b"1": 107,
        b'"{}"': 107,
        digits: 107,
    }
    async with open_test_node(OPTIONS) as node, alice_on(node) as (client, _):
        client.subscribe("news")
        before = picture(node)
        for body, expected in answers.items():
            answer = await call(node, method, body)
            got = (
                json.loads(answer.body)["error"]["code"] if answer.status == 200 else answer.status
            )
            assert got == expected, body[:40]
        await wait_all_tasks_blocked()
        assert picture(node) == before


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("subscribe", b'{"channel":"a","info":{"a":%s}}'),
        ("subscribe", b'{"channel":"a","data":%s}'),
        ("refresh", b'{"info":%s}'),
        ("rpc", b'{"method":"m","params":%s}'),
        ("publish", b'{"channel":"a","data":%s}'),
    ],
)
async def test_json_that_passes_through(method: str, body: bytes) -> None:
    """Numbers are not looked at; what is not JSON, or is too deep, is refused."""
    good = 104 if method == "rpc" else None
    async with open_test_node(OPTIONS) as node:
        for value in (b"1e999999", b"9" * 10_000, b'"\\u0000"', b"null"):
            answer = await call(node, method, body % value)
            assert answer.status == 200
            assert json.loads(answer.body).get("error", {}).get("code") == good
        for value in (b"NaN", b"01", b"'a'", b"[" * 100_000 + b"]" * 100_000):
            assert (await call(node, method, body % value)).status == NOT_JSON


@pytest.mark.parametrize("method", METHODS)
async def test_the_last_of_equal_keys_counts(method: str) -> None:
    """As most JSON parsers have it."""
    good = json.dumps(GOOD[method]).encode()
    fields = {**dict.fromkeys(WRONG[method], "x"), "unknown": [1]}
    async with open_test_node(OPTIONS) as node:
        for field in fields.keys() & GOOD[method].keys() | {"unknown"}:
            text = b'{"%s":"x",%s' % (field.encode(), good[1:]) if GOOD[method] else good
            answer = await call(node, method, text)
            assert answer.status == 200
            # Even a wrong type that is overwritten is a wrong type.
            refused = isinstance(GOOD[method].get(field, ""), str) is False
            code = json.loads(answer.body).get("error", {}).get("code")
            assert code == (107 if refused else 104 if method == "rpc" else None), field


@pytest.mark.parametrize(
    "method", ["publish", "subscribe", "unsubscribe", "presence", "presence_stats", "history",
               "history_remove"]
)  # fmt: skip
async def test_an_unknown_namespace(method: str) -> None:
    """102 wherever a channel is named."""
    async with open_test_node(OPTIONS) as node:
        assert await ask(node, method, **{**GOOD[method], "channel": "unknown:a"}) == 102


@pytest.mark.parametrize("method", ["presence", "presence_stats", "history", "history_remove"])
async def test_what_a_channel_does_not_keep(method: str) -> None:
    """108."""
    async with open_test_node(OPTIONS) as node:
        assert await ask(node, method, channel="bare:a") == 108


async def test_presence() -> None:
    """Who is there, with the infos; nobody is an empty map and two zeros."""
    async with open_test_node(OPTIONS) as node:
        assert await ask(node, "presence", channel="news") == {"presence": {}}
        empty = {"num_clients": 0, "num_users": 0}
        assert await ask(node, "presence_stats", channel="news") == empty
        async with alice_on(node) as (client, _):
            await ask(node, "subscribe", channel="news", user="alice", info=[1])
            member = {"user": "alice", "client": client.id, "conn_info": {"n": 1}, "chan_info": [1]}
            assert await ask(node, "presence", channel="news") == {"presence": {client.id: member}}
            stats = await ask(node, "presence_stats", channel="news")
            assert stats == {"num_clients": 1, "num_users": 1}


async def test_history() -> None:
    """A position alone, all, some, backwards, from a place; and another epoch's place is 112."""
    async with open_test_node(OPTIONS) as node:
        assert (await ask(node, "history", channel="news"))["offset"] == 0
        for number in range(1, 6):
            await node.publish(Publication("news", b"%d" % number, tags={"n": str(number)}))

        async def offsets(**fields: Any) -> list[int]:
            result = await ask(node, "history", channel="news", **fields)
            assert set(result) == {"publications", "epoch", "offset"}
            assert result["offset"] == 5
            return [one["offset"] for one in result["publications"]]

        assert await offsets() == []
        assert await offsets(limit=-1) == [1, 2, 3, 4, 5]
        assert await offsets(limit=-(10**30)) == [1, 2, 3, 4, 5]
        assert await offsets(limit=10**30) == [1, 2, 3, 4, 5]
        assert await offsets(limit=2) == [1, 2]
        assert await offsets(limit=2, reverse=True) == [5, 4]
        epoch = (await ask(node, "history", channel="news"))["epoch"]
        here = {"offset": 3, "epoch": epoch}
        assert await offsets(limit=-1, since=here) == [4, 5]
        assert await offsets(limit=-1, since={"offset": 3}, reverse=True) == [2, 1]
        assert await offsets(limit=-1, since={"offset": 2**64 - 1}) == []
        assert await offsets(limit=-1, since={"offset": 2**64 - 1}, reverse=True) == [5, 4, 3, 2, 1]
        lost = {"offset": 3, "epoch": "other"}
        assert await ask(node, "history", channel="news", limit=-1, since=lost) == 112
        assert await ask(node, "history", channel="news", since={"offset": 0}, reverse=True) == 107
        last = await ask(node, "history", channel="news", limit=1, reverse=True)
        assert last["publications"] == [{"data": 5, "offset": 5, "tags": {"n": "5"}}]
        assert await ask(node, "history_remove", channel="news") == {}
        assert await offsets(limit=-1) == []


async def test_the_server_reads_more_than_a_client() -> None:
    """The limit for clients is not the server's."""
    options = NodeOptions(history_limit=2, channel=ChannelOptions(history_size=10))
    async with open_test_node(options) as node:
        for _ in range(5):
            await node.publish(Publication("news", b"1"))
        assert len((await ask(node, "history", channel="news", limit=4))["publications"]) == 4


async def test_a_version_that_is_not_newer_is_skipped() -> None:
    """In its own `version_epoch`; it gets the top's position and nobody hears it."""
    transport = MemoryTransport()
    async with open_test_node(OPTIONS) as node, connect(node, transport, ["news", "bare:a"]):

        async def publish(data: int, channel: str = "news", **fields: Any) -> Any:
            result = await ask(node, "publish", channel=channel, data=data, **fields)
            await wait_all_tasks_blocked()
            return result.get("offset")

        assert await publish(1, version=5) == 1
        assert await publish(2, version=5) == 1
        assert await publish(3, version=4) == 1
        assert await publish(4) == 2
        assert await publish(5, version=4) == 2
        assert await publish(6, version=1, version_epoch="b") == 3
        assert await publish(7, version=1, version_epoch="b") == 3
        assert await publish(8, version=6, skip_history=True) is None
        assert await publish(9, version=2**64 - 1, version_epoch="b") == 4
        assert await publish(10, "bare:a", version=2) is None
        assert await publish(11, "bare:a", version=1) is None
        assert transport.sent == [b"1", b"4", b"6", b"8", b"9", b"10", b"11"]


async def test_delta() -> None:
    """The publication asks for it, channel option or not."""
    async with open_test_node(OPTIONS) as node:
        await ask(node, "publish", channel="news", data=1, delta=True)
        await ask(node, "publish", channel="news", data=1)
        kept, _ = await settled(node.broker.history("news", OPTIONS.channel))
        assert [one.delta for one in kept] == [True, False]


async def test_channels() -> None:
    """Those with a listener, in whatever state, by pattern; none is an empty map."""
    async with open_test_node(OPTIONS) as node:
        assert await ask(node, "channels") == {"channels": {}}
        names = ["news", "news2", "bare:1", "[x]", "a*"]
        async with (
            connect(node, MemoryTransport(), names),
            connect(node, MemoryTransport(), ["news"]),
        ):

            async def found(pattern: str) -> dict[str, int]:
                result = await ask(node, "channels", pattern=pattern)
                return {name: one["num_clients"] for name, one in result["channels"].items()}

            assert await found("") == {**dict.fromkeys(names, 1), "news": 2}
            assert await found("*") == await found("")
            assert await found("news") == {"news": 2}
            assert await found("news?") == {"news2": 1}
            assert await found("bare:*") == {"bare:1": 1}
            assert await found("[[]x]") == {"[x]": 1}
            assert await found("NEWS") == {}


@settings(max_examples=200)
@given(pattern=st.text(alphabet="[]!*?-^a\\{}\n\0é", max_size=60))
def test_any_pattern_is_a_pattern(pattern: str) -> None:
    """Whatever it is made of."""

    async def main() -> None:
        async with open_test_node() as node, connect(node, MemoryTransport(), ["a", "aaa"]):
            await channels(node, ChannelsBody(pattern), Budget(1.0))

    trio.run(main)


async def test_a_pattern_made_to_take_long() -> None:
    """Stars upon stars are matched at once."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a" * 255]):
        start = time.perf_counter()
        assert await ask(node, "channels", pattern="*a" * 500 + "b") == {"channels": {}}
        assert await ask(node, "channels", pattern="[" * 1_024) == {"channels": {}}
        assert time.perf_counter() - start < 10  # milliseconds, or more years than there are


async def test_info() -> None:
    """Everything that there is to count is there, zeros included."""
    async with open_test_node(OPTIONS) as node, alice_on(node) as (client, _):
        client.subscribe("news")
        (info,) = (await ask(node, "info"))["nodes"]
        assert info["uid"] == node.id
        counts = ("num_clients", "num_users", "num_channels", "num_subs")
        assert [info[one] for one in counts] == [1, 1, 1, 1]
        assert info["uptime"] == 0
        assert info["metrics"]["items"]["publications"] == 0.0
        assert {"name", "version"} <= set(info)


async def test_rpc() -> None:
    """There is nothing to call."""
    async with open_test_node() as node:
        assert await ask(node, "rpc", method="m", params={"a": 1}) == 104
        assert await ask(node, "rpc") == 107


async def test_disconnect_and_refresh() -> None:
    """By default for good; expired, so that it comes back with a new token."""
    async with open_test_node() as node:
        async with alice_on(node) as (client, transport):
            assert await ask(node, "disconnect", user="alice", whitelist=[client.id]) == NOBODY
            assert await ask(node, "disconnect", user="alice", session="other") == NOBODY
            assert await ask(node, "disconnect") == NOBODY
            assert end_of(client) is None
            assert await ask(node, "disconnect", user="alice") == ONE
            assert end_of(client) is FORCE_DISCONNECT
        assert transport.closed_with == FORCE_DISCONNECT
        async with alice_on(node) as (client, _):
            await ask(node, "disconnect", user="alice", disconnect={"code": 4_001, "reason": "é"})
            assert end_of(client) == Disconnect(4_001, "é")
        async with alice_on(node) as (client, _):
            await ask(node, "disconnect", user="alice", disconnect={"code": 4_001})
            assert end_of(client) == Disconnect(4_001, "force disconnect")
        async with alice_on(node) as (client, _):
            assert await ask(node, "refresh", user="alice", info={"a": "\n"}) == ONE
            assert client.grant.info == b'{"a": "\\n"}'
            assert await ask(node, "refresh", user="alice", info=None) == ONE
            assert client.grant.info == b'{"a": "\\n"}'
            assert await ask(node, "refresh", user="alice", expired=True) == ONE
            assert end_of(client) is EXPIRED


async def test_a_batch_of_everything() -> None:
    """Each reply is under its method's name, in order."""
    async with open_test_node(OPTIONS) as node, alice_on(node) as (client, _):
        good = [{name: body} for name, body in GOOD.items() if name in COMMANDS]
        replies = (await ask(node, "batch", commands=good))["replies"]
        for command, reply in zip(good, replies, strict=True):
            expected = "error" if "rpc" in command else next(iter(command))
            assert set(reply) == {expected}
        assert end_of(client) is FORCE_DISCONNECT
