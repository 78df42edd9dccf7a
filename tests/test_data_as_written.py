"""Data that passes through the server: delivered as it was written, or refused where it came in."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant
from repeater.api.methods import call
from repeater.api.stream import EventStream
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import BAD_REQUEST, ErrorCode, ReplyError
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import (
    CENTRIFUGE_JSON,
    CENTRIFUGE_JSON_ASGI,
    CENTRIFUGE_SSE,
    CENTRIFUGE_STREAM,
    CENTRIFUGE_UNI_ASGI,
    PLAIN_ASGI,
    Codec,
)
from repeater.protocol.sse.event_stream import EVENT_STREAM
from repeater.publication import Publication
from repeater.testing import MemoryTransport, StallingTransport, connect, open_test_node
from tests.application import Application, open_asking_node
from tests.conversation import FakeVerifier, Talk, talking
from tests.refusing import usual, usual_error

WRITTEN = [
    b'"\\ud83d"',
    b'{"text":"Good morning \\ud83d","n":1.0e10}',
    b'{"\\uDE00" : [ 1 , 2.50 ]}',
    b'"\\\\ud83d \\ud83d\\ude00"',
    b"null",
    b"[" * 128 + b"]" * 128,
]
TOO_DEEP = [b"[" * levels + b"]" * levels for levels in (129, 500, 975, 980, 30_000)]
CODECS = [PLAIN_ASGI, CENTRIFUGE_JSON_ASGI, CENTRIFUGE_UNI_ASGI, CENTRIFUGE_SSE, CENTRIFUGE_STREAM]


@asynccontextmanager
async def listener(node: Node, codec: Codec) -> AsyncIterator[MemoryTransport]:
    """A subscriber to `c`."""
    transport = MemoryTransport(codec)
    async with connect(node, transport, ["c"]):
        yield transport


async def publish(node: Node, talk: Talk, way: str, data: bytes) -> object:
    """Publish this data into `c`; returns None, or what was answered instead of a success."""
    if way == "node":
        await node.publish(Publication("c", data))
        return None
    if way == "client":
        number = len(talk.transport.sent) + 100
        await talk.session.receive(
            f'{{"id":{number},"publish":{{"channel":"c","data":{data.decode()}}}}}'
        )
        return None
    encoded = base64.b64encode(data)
    body = b'{"channel":"c","data":%b}' % data
    bodies = {
        "publish": body,
        "b64data": b'{"channel":"c","b64data":"%b"}' % encoded,
        "broadcast": b'{"channels":["c"],"data":%b}' % data,
        "batch": b'{"commands":[{"publish":%b}]}' % body,
        "batch of a broadcast": b'{"commands":[{"broadcast":{"channels":["c"],"data":%b}}]}' % data,
    }
    if way == "stream":
        stream = EventStream(node, 1_000_000)
        await stream.feed(body.replace(b"\n", b"\r"))
        await stream.end()
        return json.loads((await stream.answer()).body)["result"]["errors"] or None
    answer = await call(node, "publish" if way == "b64data" else way.split()[0], bodies[way])
    return answer.body if b"error" in answer.body or answer.status != 200 else None


WAYS = ["node", "client", "publish", "b64data", "broadcast", "batch", "batch of a broadcast",
        "stream"]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", WRITTEN, ids=lambda data: str(data[:20]))
async def test_data_is_delivered_as_written(way: str, data: bytes) -> None:
    """Live in every codec, and in history and recovery, whichever way it came in."""
    options = NodeOptions(insecure=True, channel=ChannelOptions(allow_recovery=True))
    async with open_test_node(options) as node, talking(node) as talk:
        transports = []
        async with trio.open_nursery() as nursery:
            for codec in CODECS:
                transport = MemoryTransport(codec)
                nursery.start_soon(_listen, node, transport)
                transports.append(transport)
            await wait_all_tasks_blocked()
            assert await publish(node, talk, way, data) is None
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        for transport in transports:
            assert any(data in chunk for chunk in transport.sent), transport.codec
        history = await call(node, "history", b'{"channel":"c","limit":-1}')
        assert b'"data":' + data in history.body
        await talk.ask(subscribe={"channel": "c", "recover": True, "recoverable": True})
        assert b'"data":' + data in talk.transport.sent[-1]


async def _listen(node: Node, transport: MemoryTransport) -> None:
    """Hear `c` until cancelled."""
    async with connect(node, transport, ["c"]):
        await trio.sleep_forever()


@pytest.mark.parametrize("way", WAYS)
async def test_line_breaks_between_tokens_go(way: str) -> None:
    """And nothing else: blanks stay. A Server-Sent Event has a single line of data then."""
    data = b'{\r\n  "a" :\t[1,\r 2]\n}'
    line = b'{  "a" :\t[1, 2]}'
    async with (
        open_test_node(NodeOptions(insecure=True)) as node,
        talking(node) as talk,
        listener(node, EVENT_STREAM) as transport,
    ):
        sent = data.replace(b"\n", b"") if way == "client" else data
        assert await publish(node, talk, way, sent) is None
        await wait_all_tasks_blocked()
        assert transport.sent[-1] == b"data: " + line + b"\n\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", TOO_DEEP, ids=len)
async def test_too_deep_data_is_refused_where_it_comes_in(way: str, data: bytes) -> None:
    """With its documented error, also with a line break; afterwards the node still works."""
    async with (
        open_test_node(NodeOptions(insecure=True)) as node,
        listener(node, CENTRIFUGE_JSON_ASGI) as transport,
    ):
        for text in (data, data.replace(b"[", b"[\r", 1)):
            async with talking(node) as talk:
                if way == "node":
                    with pytest.raises(ReplyError) as caught:
                        await publish(node, talk, way, text)
                    assert caught.value.code is ErrorCode.BAD_REQUEST
                    continue
                answer = await publish(node, talk, way, text)
                await wait_all_tasks_blocked()
            if way == "client":
                assert usual(talk.transport.closed_with) == BAD_REQUEST
            elif way in ("b64data", "stream"):
                assert "107" in str(answer)
            else:
                assert isinstance(answer, bytes)
                assert b"bad request: the body is nested deeper than 1" in answer
        await node.publish(Publication("c", b"7"))
        await wait_all_tasks_blocked()
        assert len(transport.sent) == 1


@pytest.mark.parametrize("levels", [129, 975, 978, 30_000])
@pytest.mark.parametrize("method", ["connect", "subscribe", "publish", "rpc"])
async def test_too_deep_data_for_a_back_end(levels: int, method: str) -> None:
    """It is refused with 3501 before a question is made of it; no such text ends the node."""
    application = Application()
    application.answers["connect"] = {"result": {"user": "ann"}}
    deep = "[\r" + "[" * (levels - 1) + "]" * levels
    asked = ChannelOptions(subscribe_proxy_enabled=True, publish_proxy_enabled=True)
    async with open_asking_node(application, NodeOptions(channel=asked)) as node:
        async with talking(node, connected=method != "connect") as talk:
            text = f'{{"id":9,"{method}":{{"channel":"c","data":{deep}}}}}'
            await talk.session.receive(text)
            await wait_all_tasks_blocked()
        assert usual(talk.transport.closed_with) == BAD_REQUEST
        assert len(application.requests) == (method != "connect")
        transport = MemoryTransport(CENTRIFUGE_UNI_ASGI)
        async with connect(node, transport, ready=False) as client:
            await UnidirectionalSession(node, client).receive(f'{{"data":{deep}}}')
            await trio.lowlevel.checkpoint()
        assert transport.closed_with == BAD_REQUEST


@pytest.mark.parametrize("data", WRITTEN, ids=lambda data: str(data[:20]))
async def test_a_back_end_gets_and_gives_data_as_written(data: bytes) -> None:
    """In questions, and in each field of its answers that passes through."""
    application = Application()
    application.answers["connect"] = b'{"result":{"user":"ann","info":%b,"data":%b,"meta":%b}}' % (
        (data,) * 3
    )
    application.answers["rpc"] = b'{"result":{"data":%b}}' % data
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        await talk.session.receive(f'{{"id":1,"connect":{{"data":{data.decode()}}}}}')
        assert b'"data":' + data in talk.transport.sent[0]
        assert b'"data":' + data in application.requests[-1].content
        grant = talk.client.grant
        kept = b"" if data == b"null" else data
        assert (grant.info, grant.data, grant.meta) == (kept, data, kept)
        await talk.session.receive(f'{{"id":2,"rpc":{{"data":{data.decode()}}}}}')
        assert talk.transport.sent[-1] == b'{"id":2,"rpc":{"data":%b}}' % data
        assert b'"data":' + data in application.requests[-1].content
        assert (b'"meta":' + data in application.requests[-1].content) is bool(kept)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ({"result": {"user": None}}, "connect"),
        ({"result": {"user": None, "info": None, "channels": None, "subs": None}}, "connect"),
        ({"error": {"code": 403, "message": None}}, {"code": 403, "message": "refused"}),
        ({"error": {"code": 403, "temporary": None}, "result": None},
         {"code": 403, "message": "refused"}),
    ],
)  # fmt: skip
async def test_a_back_end_that_writes_nulls(answer: Any, reply: Any) -> None:
    """Null in its answer is the same as nothing."""
    application = Application()
    application.answers["connect"] = answer
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        got = await talk.call("connect")
        assert reply in got if isinstance(reply, str) else got["error"] == reply
        assert talk.client.user == ""


async def test_a_back_end_that_disconnects_with_a_null() -> None:
    """A disconnect without a reason is a disconnect."""
    application = Application()
    application.answers["connect"] = {"disconnect": {"code": 4_501, "reason": None}}
    async with open_asking_node(application) as node:
        async with talking(node, connected=False) as talk:
            await talk.call("connect")
        assert talk.transport.closed_with is not None
        assert talk.transport.closed_with.code == 4_501


NULLS: list[tuple[str, list[str]]] = [
    ("subscribe", ["token", "recover", "offset", "epoch", "delta", "tf", "positioned", "flag"]),
    ("history", ["limit", "since", "reverse"]),
    ("publish", ["type"]),
    ("rpc", ["method"]),
    ("presence", []),
]


@pytest.mark.parametrize(("method", "names"), NULLS)
async def test_a_client_that_writes_nulls(method: str, names: list[str]) -> None:
    """Null in a field of a command is the same as nothing."""
    options = NodeOptions(insecure=True, channel=ChannelOptions(presence=True))
    async with open_test_node(options) as node, talking(node) as talk:
        body: dict[str, Any] = {"channel": "c", "data": None, **dict.fromkeys(names)}
        reply = await talk.ask(**{method: body, "send": None, "connect": None})
        if method == "rpc":
            assert reply["error"]["code"] == 108
        else:
            assert method in reply


async def test_a_connect_full_of_nulls() -> None:
    """The same for `connect`."""
    names = ["token", "name", "version", "headers", "subs", "data"]
    async with open_test_node() as node, talking(node, connected=False) as talk:
        assert "connect" in await talk.ask(connect=dict.fromkeys(names))


@pytest.mark.parametrize(
    "method",
    [
        '"publish":{"channel":7}',
        '"publish":{"channel":"c","type":"x"}',
        '"subscribe":{"channel":["c"]}',
        '"subscribe":{"channel":"c","offset":"1"}',
        '"history":[]',
        '"history":{"channel":"c","limit":1.5}',
        '"rpc":"m"',
        '"connect":{"token":7}',
    ],
)
async def test_a_bad_command_costs_that_command(method: str) -> None:
    """One with an id gets error 107 and the connection lives on; without an id, 3501."""
    async with open_test_node() as node:
        async with talking(node) as talk:
            bad, good = f'{{"id":5,{method}}}', '{"id":6,"unsubscribe":{"channel":"c"}}'
            await talk.session.receive(f"{bad}\n{good}")
            answer = json.loads(talk.transport.sent[-2])
            assert answer["id"] == 5
            assert usual_error(answer["error"]) == {"code": 107, "message": "bad request"}
            assert json.loads(talk.transport.sent[-1]) == {"id": 6, "unsubscribe": {}}
            await talk.session.receive(bad.replace('"id":5,', ""))
            await trio.lowlevel.checkpoint()
        assert usual(talk.transport.closed_with) == BAD_REQUEST


@pytest.mark.parametrize(
    "pong", ["{}", "{ }", "{}\r", "{}\r\n", '{"id":0}', '{"id":null}', '{"x":1}', " {}"]
)
async def test_a_pong_in_any_spelling(pong: str) -> None:
    """A command without id and method is a pong."""
    async with open_test_node() as node, talking(node) as talk:
        for message in (pong, pong.rstrip("\n") + '\n{"id":9,"unsubscribe":{"channel":"c"}}'):
            await talk.session.receive(message)
        assert json.loads(talk.transport.sent[-1]) == {"id": 9, "unsubscribe": {}}
        assert talk.client.end is None


async def test_presence_after_unsubscribing() -> None:
    """In one message, or one batch: who has just left is not counted."""
    options = NodeOptions(insecure=True, channel=ChannelOptions(presence=True, join_leave=True))
    async with open_test_node(options) as node, talking(node) as talk:
        for _ in range(2):
            await talk.ask(subscribe={"channel": "c"})
            *_, stats, members = await talk.say(
                {"id": 91, "unsubscribe": {"channel": "c"}},
                {"id": 92, "presence_stats": {"channel": "c"}},
                {"id": 93, "presence": {"channel": "c"}},
            )
            assert stats["presence_stats"] == {"num_clients": 0, "num_users": 0}
            assert members["presence"] == {"presence": {}}
        await talk.ask(subscribe={"channel": "c"})
        body = {"commands": [{"unsubscribe": {"user": talk.client.user, "channel": "c"}},
                             {"presence_stats": {"channel": "c"}}]}  # fmt: skip
        answer = await call(node, "batch", json.dumps(body).encode())
        assert json.loads(answer.body)["replies"] == [
            {"unsubscribe": {"num_subs": 1}}, {"presence_stats": {"num_clients": 0, "num_users": 0}}
        ]  # fmt: skip


async def test_a_year_is_the_longest_ttl() -> None:
    """Typed SDKs read 32 bits; a client that refreshes early is not refused."""
    verifier = FakeVerifier({"t": ConnectionGrant("ann", expire_at=2**53)})
    async with (
        open_node(NodeOptions(insecure=True), verifier=verifier) as node,
        talking(node, connected=False) as talk,
    ):
        assert (await talk.connect("t"))["ttl"] == 31_536_000


LONGEST = [
    b'["%b"]' % (b'\\"' * 262_000),
    b'[%b""]' % (b'"",' * 174_000),
    b"[%b1]" % (b"1,\n" * 174_000),
    b"[%b1]" % (b"1,\r" * 174_000),
]


@pytest.mark.parametrize("data", LONGEST, ids=lambda data: str(data[:6]))
@pytest.mark.parametrize(
    "codec", [*CODECS, EVENT_STREAM, CENTRIFUGE_JSON_ASGI.delta, CENTRIFUGE_JSON.delta]
)
async def test_the_longest_event_fits_into_each_outbox(
    data: bytes, codec: Codec, autojump_clock: MockClock
) -> None:
    """A body at the limit cuts no client without a backlog, however its codec writes the data."""
    assert 520_000 < len(data) <= 524_288 - 30
    transport = StallingTransport(codec)
    async with open_test_node() as node, connect(node, transport, ["c"]) as client:
        await wait_all_tasks_blocked()  # the broker runs
        answer = await call(node, "publish", b'{"channel":"c","data":%b}' % data)
        assert b'"offset":1' in answer.body
        await wait_all_tasks_blocked()
        assert client.end is None
        assert len(data) // 2 < client.outbox.backlog_bytes < 2 * len(data) + 1_000
