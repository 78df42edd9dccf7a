"""The Centrifugo conversation, command by command."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.memory import MemoryBroker
from repeater.clients.session import Session
from repeater.errors import BAD_REQUEST, NOT_AVAILABLE, SHUTDOWN, Disconnect
from repeater.node import Node, open_node
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import Publication, StreamPosition
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.refusing import usual, usual_error

CONNECT = '{"connect":{"name":"js"},"id":1}'


class Talk:
    """One client's session and what it was sent."""

    def __init__(self, session: Session, transport: MemoryTransport) -> None:
        self.session = session
        self.transport = transport

    async def say(self, *lines: str) -> list[Any]:
        """Send one message; returns what has come since."""
        before = len(self.transport.sent)
        await self.session.receive("\n".join(lines))
        await wait_all_tasks_blocked()
        return [json.loads(chunk) for chunk in self.transport.sent[before:]]


@asynccontextmanager
async def talking(node: Node, *, connected: bool = True) -> AsyncIterator[Talk]:
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with connect(node, transport, ready=False) as client:
        talk = Talk(Session(node, client), transport)
        if connected:
            await talk.say(CONNECT)
        yield talk


async def end_of(message: str | bytes, *, connected: bool = True) -> Disconnect | None:
    """What a client is disconnected with for this message."""
    async with open_test_node() as node:
        async with talking(node, connected=connected) as talk:
            await talk.session.receive(message)
            await trio.lowlevel.checkpoint()
        return usual(talk.transport.closed_with)


async def test_pipelined_start() -> None:
    """The JavaScript SDK's first frame is answered in order, ids and all."""
    async with open_test_node() as node, talking(node, connected=False) as talk:
        replies = await talk.say(
            '{"connect":{"name":"js"},"id":1}',
            '{"subscribe":{"channel":"news","positioned":true,"recoverable":true,'
            '"join_leave":true,"flag":1},"id":2}',
        )
        assert [reply["id"] for reply in replies] == [1, 2]
        assert replies[0]["connect"]["ping"] == 25
        assert replies[0]["connect"]["pong"] is True
        assert replies[0]["connect"]["client"]
        assert replies[1]["subscribe"].pop("epoch")
        assert replies[1] == {"id": 2, "subscribe": {"recoverable": True, "positioned": True}}
        assert set(node.hub.channels) == {"news"}


async def test_ids_do_not_start_at_one() -> None:
    """A second connection's connect has whatever id comes next."""
    async with open_test_node() as node, talking(node, connected=False) as talk:
        replies = await talk.say(
            '{"connect":{"name":"js","subs":{"srv":{"recover":true,"offset":3,"epoch":"e1"}}},'
            '"id":13}'
        )
        assert replies[0]["id"] == 13


async def test_publish_is_heard_with_info() -> None:
    """A publication comes back to its subscribed publisher, with who published it."""
    async with open_test_node() as node, talking(node) as talk:
        await talk.say('{"subscribe":{"channel":"news"},"id":2}')
        reply, push = sorted(
            await talk.say('{"publish":{"channel":"news","data":{"a":1}},"id":9}'),
            key=lambda message: "push" in message,
        )
        assert reply == {"id": 9, "publish": {}}
        assert push["push"]["channel"] == "news"
        assert push["push"]["pub"]["data"] == {"a": 1}
        assert push["push"]["pub"]["info"]["user"] == ""


async def test_reply_comes_before_what_it_announces() -> None:
    """In one message, the subscribe reply is queued before the channel's publications."""
    async with open_test_node() as node, talking(node) as talk:
        messages = await talk.say(
            '{"subscribe":{"channel":"news"},"id":2}',
            '{"publish":{"channel":"news","data":1},"id":3}',
        )
        assert messages[0] == {"id": 2, "subscribe": {}}
        assert any("push" in message for message in messages[1:])


async def test_unsubscribe_ends_the_pushes() -> None:
    """After it nothing is heard; an unknown channel succeeds too."""
    async with open_test_node() as node, talking(node) as talk:
        await talk.say('{"subscribe":{"channel":"news"},"id":2}')
        assert await talk.say('{"unsubscribe":{"channel":"news"},"id":3}') == [
            {"id": 3, "unsubscribe": {}}
        ]
        assert await talk.say('{"unsubscribe":{"channel":"other"},"id":4}') == [
            {"id": 4, "unsubscribe": {}}
        ]
        await node.publish(Publication("news", b"1"))
        assert await talk.say("{}") == []


async def test_errors_of_subscribe() -> None:
    """105 for a second time, 106 past the limit, 107 for a bad name; the connection goes on."""
    async with open_test_node(NodeOptions(channel_limit=1)) as node, talking(node) as talk:
        subscribe = [
            json.dumps({"subscribe": {"channel": name}, "id": number})
            for number, name in enumerate(["a", "a", "", "x" * 256, "é"], 2)
        ]
        replies = await talk.say(*subscribe)
        codes = [reply.get("error", {}).get("code") for reply in replies]
        assert codes == [None, 105, 106, 107, 107]
        assert usual_error(replies[1]["error"])["message"] == "already subscribed"


@pytest.mark.parametrize("method", ["presence", "presence_stats", "rpc"])
async def test_features_that_are_off(method: str) -> None:
    """Known commands of features that there are not get error 108, not a disconnect."""
    async with open_test_node() as node, talking(node) as talk:
        (reply,) = await talk.say(json.dumps({method: {"channel": "news"}, "id": 6}))
        assert usual_error(reply["error"]) == {"code": 108, "message": "not available"}


async def test_publish_needs_permission() -> None:
    """Where anonymous clients may only listen, publish gets 103."""
    options = NodeOptions(allow_anonymous=True)
    async with open_node(options) as node, talking(node) as talk:
        (reply,) = await talk.say('{"publish":{"channel":"c","data":1},"id":2}')
        assert reply["error"] == {"code": 103, "message": "permission denied"}


async def test_publish_without_data() -> None:
    """Data left out is error 107."""
    async with open_test_node() as node, talking(node) as talk:
        (reply,) = await talk.say('{"publish":{"channel":"c"},"id":2}')
        assert reply["error"]["code"] == 107


@pytest.mark.parametrize(
    ("message", "disconnect"),
    [
        (CONNECT, BAD_REQUEST),
        ("", BAD_REQUEST),
        ("nonsense", BAD_REQUEST),
        ('{"id":2}', BAD_REQUEST),
        ('{"id":2,"ping":{}}', BAD_REQUEST),
        ('{"subscribe":{"channel":"c"}}', BAD_REQUEST),
        ('{"subscribe":{"channel":""},"id":2}', BAD_REQUEST),
        ('{"unsubscribe":{},"id":2}', BAD_REQUEST),
        ('{"publish":{"data":1},"id":2}', BAD_REQUEST),
        ('{"send":{"data":{"hi":1}}}', NOT_AVAILABLE),
        (b"binary", BAD_REQUEST),
    ],
)
async def test_broken_rule_is_a_disconnect(message: str | bytes, disconnect: Disconnect) -> None:
    """What breaks the protocol ends the connection with the table's code."""
    assert await end_of(message) == disconnect


@pytest.mark.parametrize(
    "message", ["{}", '{"subscribe":{"channel":"c"},"id":1}', '{"connect":{}}', '{"id":1}']
)
async def test_connect_comes_first(message: str) -> None:
    """Before a `connect` with an id, everything ends the connection with 3501."""
    assert await end_of(message, connected=False) == BAD_REQUEST


async def test_anonymous_client_is_refused() -> None:
    """Without credentials and where these are needed, connect ends with 3501, not a reply."""
    async with open_node() as node:
        async with talking(node, connected=False) as talk:
            await talk.session.receive(CONNECT)
            await trio.lowlevel.checkpoint()
        assert usual(talk.transport.closed_with) == BAD_REQUEST
        assert not talk.transport.sent


async def test_commands_before_a_bad_one_count() -> None:
    """Replies of what came before the bad line are written before the close."""
    async with open_test_node() as node:
        async with talking(node) as talk:
            await talk.session.receive('{"subscribe":{"channel":"c"},"id":2}\nnonsense')
            await trio.lowlevel.checkpoint()
        assert json.loads(talk.transport.sent[-1]) == {"id": 2, "subscribe": {}}
        assert usual(talk.transport.closed_with) == BAD_REQUEST


class EndingBroker(MemoryBroker):
    """Ends every client while one of them publishes."""

    node: Node

    def submit(self, *_: object, **__: object) -> StreamPosition | None:
        for client in tuple(self.node.registry.clients):
            client.disconnect(SHUTDOWN)
        return None


async def test_ended_client_subscribes_to_nothing() -> None:
    """A client that is ended while its publish waits does not come back into the hub."""
    broker = EndingBroker()
    async with open_test_node(broker=broker) as node:
        broker.node = node
        async with talking(node) as talk:
            await talk.session.receive(
                '{"publish":{"channel":"c","data":1},"id":2}\n{"subscribe":{"channel":"c"},"id":3}'
            )
        assert usual(talk.transport.closed_with) == SHUTDOWN
        assert not node.hub.channels


async def test_publish_while_the_node_drains() -> None:
    """A client that publishes during the shutdown is told to try later: 111, temporary."""
    async with open_test_node() as node, talking(node) as talk:
        node._intake.close()
        (reply,) = await talk.say('{"publish":{"channel":"c","data":1},"id":2}')
        assert usual_error(reply["error"]) == {
            "code": 111,
            "message": "too many requests",
            "temporary": True,
        }
