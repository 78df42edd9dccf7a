"""The server API on a node: bytes in, answers out, whatever the bytes are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from repeater.api.keys import ApiKey
from repeater.api.methods import COMMANDS, call
from repeater.api.stream import EventStream
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.memory_presence import MemoryPresence
from repeater.errors import BrokerError
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.http.answer import Answer
from repeater.publication import StreamPosition
from repeater.testing import MemoryTransport, connect, open_test_node

NO_HISTORY = NodeOptions(channel=ChannelOptions(history_size=0))
EVENT = b'{"channel":"news","data":[1]}'


def refusal(code: int, message: str) -> object:
    return {"error": {"code": code, "message": message}}


NO_CHANNELS = refusal(107, "bad request: channels: missing or empty")


def decoded(answer: Answer) -> object:
    return json.loads(answer.body)


@asynccontextmanager
async def stuck_node(room: int, **options: object) -> AsyncIterator[Node]:
    """A node whose repeater never runs: after `room` publications its intake stays full."""
    node_options = NodeOptions(insecure=True, intake_limit=room, **options)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        broker = MemoryBroker()
        node = Node(node_options, broker, MemoryPresence(), None, nursery)
        nursery.start_soon(broker.run, node._intake)
        await trio.testing.wait_all_tasks_blocked()
        yield node
        nursery.cancel_scope.cancel()


class FailingBroker(MemoryBroker):
    """A back end that is down."""

    def submit(self, *_: object, **__: object) -> StreamPosition | None:
        raise BrokerError


async def test_a_publication_gets_its_position() -> None:
    """The answer is the position, and the subscriber gets the data as it was written."""
    transport = MemoryTransport()
    async with open_test_node() as node, connect(node, transport, ["news"]):
        answer = await call(node, "publish", b'{"channel":"news","data":{"a": 1}}')
        result = decoded(answer)
        assert isinstance(result, dict)
        assert answer.status == 200
        assert result["result"]["offset"] == 1
        assert set(result["result"]) == {"offset", "epoch"}
        await trio.testing.wait_all_tasks_blocked()
        assert transport.sent == [b'{"a": 1}']


async def test_no_history_no_position() -> None:
    """Where a channel keeps no history, the result is there and empty."""
    async with open_test_node(NO_HISTORY) as node:
        assert (await call(node, "publish", EVENT)).body == b'{"result":{}}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xef\xbb\xbf{}", 400),
        (EVENT + b"x", 400),
        (b'{"channel":"a","data":"\xff"}', 400),
        (b'{"channel":"a","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"channel":"a","data":NaN}', 400),
        (b"[]", 107),
        (b"null", 107),
        (b'"publish"', 107),
        (b'{"data":1}', 107),
        (b'{"channel":"","data":1}', 107),
        (b'{"channel":null,"data":1}', 107),
        (b'{"channel":7,"data":1}', 107),
        (b'{"channel":"a"}', 107),
        (b'{"channel":"a","data":1,"tags":{"a":1}}', 107),
        (b'{"channel":"a","data":1,"idempotency_key":1}', 107),
        (b'{"channel":"a","data":1,"idempotency_key":"%s"}' % (b"k" * 256), 107),
        (b'{"channel":"a","b64data":"!"}', 107),
        (b'{"channel":"a","b64data":"/w=="}', 107),
        (b'{"channel":"%s","data":1}' % (b"a" * 256), 107),
        (b'{"channel":"unknown:a","data":1}', 102),
    ],
)
async def test_a_bad_body_publishes_nothing(body: bytes, status: int) -> None:
    """Each has its documented answer: 400 if it is not JSON, an API error for the rest."""
    async with open_test_node() as node:
        answer = await call(node, "publish", body)
        if status == 400:
            assert (answer.status, answer.content_type) == (400, "application/json")
            message = msgspec.json.decode(answer.body)["error"]["message"]
            assert message.startswith("bad request: the body is ")
        else:
            assert answer.status == 200
            assert msgspec.json.decode(answer.body)["error"]["code"] == status
        await trio.testing.wait_all_tasks_blocked()
        assert node.statistics().repeater.publications == 0


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b'{"channel":"a","channel":"b","data":1}', b"1"),
        (b'{"channel":"b","data":1e999999}', b"1e999999"),
        (b'{"channel":"b","data":null}', b"null"),
        (b'{"channel":"b","data":"\\ud800"}', b'"\\ud800"'),
        (b'{"channel":"b","data":[1 ,\r\n 2]}', b"[1 , 2]"),
        (b'{"channel":"b","data":1,"tags":null,"version":null,"b64data":null}', b"1"),
        (b'{"channel":"b","b64data":"eyJhIjoxfQ=="}', b'{"a":1}'),
        (b'{"channel":"b","data":1,"unknown":[{}]}', b"1"),
    ],
)
async def test_an_odd_body_is_published(body: bytes, data: bytes) -> None:
    """The last of two equal keys counts, numbers are not looked at, unknown fields are ignored."""
    transport = MemoryTransport()
    async with open_test_node() as node, connect(node, transport, ["b"]):
        assert b'"result"' in (await call(node, "publish", body)).body
        await trio.testing.wait_all_tasks_blocked()
        assert transport.sent == [data]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{}", 400, b'{"code":107,"message":"bad request: channel: missing or empty"}'),
        (
            b'{"channel":"x:a","data":1}',
            404,
            b'{"code":102,"message":"unknown channel: there is no namespace \'x\': add '
            b"[namespaces.x] to the configuration, or use a name without ':'\"}",
        ),
        (
            b"{",
            400,
            b'{"code":107,"message":"bad request: the body is not JSON: it ends too early"}',
        ),
    ],
)
async def test_transport_mode(body: bytes, status: int, text: bytes) -> None:
    """On request an API error is an HTTP status and the bare error object."""
    async with open_test_node() as node:
        answer = await call(node, "publish", body, transport_mode=True)
        assert (answer.status, answer.body) == (status, text)


async def test_a_failing_back_end() -> None:
    """Its failure is 100, in transport mode 500, and in a batch one item's."""
    async with open_test_node(broker=FailingBroker()) as node:
        error = {"code": 100, "message": "internal server error: it failed"}
        assert decoded(await call(node, "publish", EVENT)) == {"error": error}
        answer = await call(node, "publish", EVENT, transport_mode=True)
        assert (answer.status, decoded(answer)) == (500, error)
        items = b'{"commands":[{"publish":%s}]}' % EVENT
        assert decoded(await call(node, "batch", items)) == {"replies": [{"error": error}]}


async def test_a_broadcast_answers_channel_by_channel() -> None:
    """One bad channel does not keep the event from the others."""
    async with open_test_node(NO_HISTORY) as node:
        body = b'{"channels":["a","","x:y","b"],"data":1}'
        result = decoded(await call(node, "broadcast", body))
        assert isinstance(result, dict)
        good, nameless, unknown, last = result["result"]["responses"]
        assert good == last == {"result": {}}
        assert "the channel has no name" in nameless["error"]["message"]
        assert unknown["error"]["code"] == 102
        assert decoded(await call(node, "broadcast", b'{"channels":[],"data":1}')) == NO_CHANNELS


async def test_a_batch_answers_item_by_item() -> None:
    """In order and not wrapped; a bad item, or none at all, fails in its own slot."""
    items = (
        b'{"publish":%s}' % EVENT,
        b"null",
        b"7",
        b"{}",
        b'{"unknown":{}}',
        b'{"batch":{"commands":[]}}',
        b'{"publish":null}',
        b'{"id":5,"publish":%s,"other":null}' % EVENT,
        b'{"publish":{"channel":"a"}}',
        b'{"broadcast":{"channels":["a"],"data":1}}',
    )
    no_object = "bad request: the command must be an object, not "
    nameless = refusal(
        104,
        'not found: the command names no method: a command is like {"publish": {...}}',
    )
    methods = f"the methods are {', '.join(COMMANDS)}"
    unknown = refusal(104, f"not found: there is no method 'unknown': {methods}")
    in_itself = refusal(104, f"not found: there is no method 'batch': {methods}")
    async with open_test_node(NO_HISTORY) as node:
        body = b'{"parallel":true,"commands":[%s]}' % b",".join(items)
        assert decoded(await call(node, "batch", body)) == {
            "replies": [
                {"publish": {}},
                refusal(107, no_object + "null"),
                refusal(107, no_object + "a number"),
                nameless,
                unknown,
                in_itself,
                nameless,
                {"publish": {}},
                refusal(107, "bad request: data: missing or empty: give data, or b64data"),
                {"broadcast": {"responses": [{"result": {}}]}},
            ]
        }
        assert decoded(await call(node, "batch", b'{"commands":null}')) == {"replies": []}
        assert decoded(await call(node, "batch", b"{}")) == {"replies": []}


async def test_a_full_intake(autojump_clock: trio.testing.MockClock) -> None:
    """A publish is told to try later; a batch waits once, not for each of its items."""
    async with stuck_node(1, channel=ChannelOptions(history_size=0)) as node:
        await call(node, "publish", EVENT)
        answer = await call(node, "publish", EVENT)
        assert (answer.status, answer.headers) == (503, (("Retry-After", "1"),))
        start = trio.current_time()
        items = b",".join([b'{"publish":%s}' % EVENT] * 100)
        replies = decoded(await call(node, "batch", b'{"commands":[%s]}' % items))
        full = refusal(111, "too many requests: fan-out made no room in time: call again later")
        assert replies == {"replies": [full] * 100}
        assert trio.current_time() - start == node.options.publish_timeout


async def test_a_long_batch_lets_others_have_their_turn() -> None:
    """Fan-out runs while the batch does: nothing is left over for its end."""
    waiting: list[int] = []
    async with (
        open_test_node(NodeOptions(fanout_budget=0.0)) as node,
        trio.open_nursery() as nursery,
    ):

        async def watch() -> None:
            while len(waiting) < 100:
                waiting.append(node.statistics().repeater.publications)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(watch)
        items = b",".join([b'{"publish":%s}' % EVENT] * 50)
        await call(node, "batch", b'{"commands":[%s]}' % items)
        assert any(0 < count < 50 for count in waiting)


@pytest.mark.parametrize(
    ("header", "authorization", "query", "admitted"),
    [
        (None, None, b"", False),
        (b"", None, b"", False),
        (b"wrong", None, b"", False),
        (b"s", None, b"", False),
        (b"s\xc3\xa9cre", None, b"", False),
        (b"s\xc3\xa9cretx", None, b"", False),
        (b"s\xc3\xa9cret", None, b"", True),
        (None, b"apikey s\xc3\xa9cret", b"", True),
        (None, b"ApiKey  s\xc3\xa9cret ", b"", True),
        (None, b"Bearer s\xc3\xa9cret", b"", False),
        (b"wrong", b"apikey s\xc3\xa9cret", b"", False),
        (None, None, b"a=b&api_key=s%C3%A9cret", True),
        (b"wrong", None, b"api_key=s%C3%A9cret", True),
        (None, None, b"api_key=wrong&api_key=s%C3%A9cret", False),
    ],
)
def test_the_key(
    header: bytes | None, authorization: bytes | None, query: bytes, admitted: bool
) -> None:
    """Header, `Authorization` without the header, then the query; an empty key does not count."""
    assert (
        ApiKey(["s\u00e9cret".encode()], insecure=False).admits(header, authorization, query)
        is admitted
    )
    both = ApiKey([b"new", "s\u00e9cret".encode()], insecure=False)
    assert both.admits(header, authorization, query) is admitted
    for keys in ([], [b""]):
        assert not ApiKey(keys, insecure=False).admits(header, authorization, query)
    assert ApiKey([], insecure=True).admits(header, authorization, query)


LINES = (
    EVENT,
    b"",
    b"  \r",
    b"{",
    b'{"channel":"news","data":"\xff"}',
    EVENT + b"\r",
    b'{"channel":"","data":1}',
    b'{"channel":"news","data":"%s"}' % (b"x" * 200),
    b" " * 200,
    EVENT,
)
TOO_LONG = "limit exceeded: the line has more than 100 bytes: see body_limit"
SUMMARY = {
    "accepted": 3,
    "failed": 5,
    "errors": [
        {
            "line": 4,
            "error": {
                "code": 107,
                "message": "bad request: the line is not JSON: it ends too early",
            },
        },
        {
            "line": 5,
            "error": {"code": 107, "message": "bad request: the line is not JSON in UTF-8"},
        },
        {"line": 7, "error": {"code": 107, "message": "bad request: channel: missing or empty"}},
        {"line": 8, "error": {"code": 106, "message": TOO_LONG}},
        {"line": 9, "error": {"code": 106, "message": TOO_LONG}},
    ],
}


@given(
    cuts=st.lists(st.integers(0, sum(map(len, LINES)) + len(LINES))),
    ended=st.booleans(),
)
def test_a_stream_means_the_same_however_it_is_cut(cuts: list[int], ended: bool) -> None:
    """Lines fail alone, one too long as well, and where reads begin and end changes nothing."""
    body = b"\n".join(LINES) + (b"\n" if ended else b"")

    async def consume() -> Answer:
        async with open_test_node() as node:
            stream = EventStream(node, 100)
            places = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
            for start, end in pairwise(places):
                await stream.feed(body[start:end])
            await stream.end()
            return await stream.answer()

    answer = trio.run(consume)
    assert (answer.status, decoded(answer)) == (200, {"result": SUMMARY})


async def test_a_stream_names_ten_errors_and_counts_all() -> None:
    """The summary stays small."""
    async with open_test_node() as node:
        stream = EventStream(node, 100)
        await stream.feed(b"{\n" * 50)
        summary = msgspec.json.decode((await stream.answer()).body)["result"]
        assert (summary["failed"], len(summary["errors"])) == (50, 10)


async def test_a_stream_waits_while_the_intake_is_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing more is read meanwhile; with room in time, all of it is published."""
    async with stuck_node(2) as node, trio.open_nursery() as nursery:
        stream = EventStream(node, 100)
        nursery.start_soon(stream.feed, (EVENT + b"\n") * 7)
        for _ in range(3):
            await trio.sleep(node.options.publish_timeout - 1)
            assert len(nursery.child_tasks) == 1
            await node._intake.take_batch()
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert msgspec.json.decode((await stream.answer()).body)["result"]["accepted"] == 7


async def test_a_stream_stops_at_an_intake_that_stays_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """503 and the first line that was not taken: from there the sender goes on later."""
    async with stuck_node(2) as node:
        stream = EventStream(node, 100)
        await stream.feed(b"\n" + (EVENT + b"\n") * 5)
        answer = await stream.answer()
        assert (answer.status, answer.headers) == (503, (("Retry-After", "1"),))
        assert decoded(answer) == {
            "result": {"accepted": 2, "failed": 0, "errors": [], "stopped_at": 4},
            "error": {
                "code": 111,
                "message": "too many requests: fan-out made no room in time: call again later",
            },
        }
