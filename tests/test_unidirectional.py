"""Unidirectional clients: who they are, and then only what they hear."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import (
    ConnectionGrant,
    TokenExpiredError,
    TokenInvalidError,
)
from repeater.clients.client import Client
from repeater.clients.unidirectional import UnidirectionalSession
from repeater.errors import (
    BAD_REQUEST,
    EXPIRED,
    INSUFFICIENT_STATE,
    INVALID_TOKEN,
    SERVER_ERROR,
    BrokerError,
    Disconnect,
)
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_UNI_ASGI
from repeater.publication import Publication
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import TestBroker
from tests.conversation import FakeVerifier
from tests.refusing import usual

pytestmark = pytest.mark.usefixtures("announced_at_once")


class Listener(msgspec.Struct, frozen=True):
    client: Client
    transport: MemoryTransport
    session: UnidirectionalSession

    async def heard(self) -> list[Any]:
        await wait_all_tasks_blocked()
        return [json.loads(chunk) for chunk in self.transport.sent]


@asynccontextmanager
async def listening(node: Node, message: str | bytes = "{}") -> AsyncIterator[Listener]:
    transport = MemoryTransport(CENTRIFUGE_UNI_ASGI)
    async with connect(node, transport, ready=False) as client:
        listener = Listener(client, transport, UnidirectionalSession(node, client))
        await listener.session.receive(message)
        yield listener


async def end_of(
    message: str | bytes, known: ConnectionGrant | Exception | None = None
) -> Disconnect | None:
    """What this first message ends with."""
    verifier = FakeVerifier({} if known is None else {"t": known})
    async with open_node(verifier=verifier) as node:
        async with listening(node, message) as listener:
            await trio.lowlevel.checkpoint()
        assert not listener.transport.sent
        return usual(listener.transport.closed_with)


async def test_connect_push_comes_first() -> None:
    """The result is the first push, bare and without `pong`; publications are bare too."""
    async with open_test_node() as node, listening(node, '{"subs":{"c":{}}}') as listener:
        await node.publish(Publication("c", b"1"))
        first, second = await listener.heard()
        result = first["connect"]
        assert result["client"] == listener.client.id
        assert result["ping"] == 25
        assert "pong" not in result
        assert set(result["subs"]) == {"c"}
        assert second.pop("pub")["data"] == 1
        assert second == {"channel": "c"}


@pytest.mark.parametrize("message", ["{}", "null", '{"name":"x","unknown":1}'])
async def test_no_credentials_are_needed_where_none_are(message: str) -> None:
    """`null` is `{}`, and fields that nobody knows are ignored."""
    async with open_test_node() as node, listening(node, message) as listener:
        assert "connect" in (await listener.heard())[0]


async def test_recovery() -> None:
    """Positions in the request bring what was missed, in the connect push."""
    async with open_test_node() as node:
        for number in (1, 2, 3):
            position = await node.publish(Publication("c", b"%d" % number))
        assert position is not None
        since = {"recover": True, "offset": 1, "epoch": position.epoch}
        async with listening(node, json.dumps({"subs": {"c": since}}).encode()) as listener:
            await node.publish(Publication("c", b"4"))
            first, second = await listener.heard()
            sub = first["connect"]["subs"]["c"]
            assert sub["recovered"] is True
            assert [one["data"] for one in sub["publications"]] == [2, 3]
            assert second["pub"]["data"] == 4


@pytest.mark.parametrize(
    ("known", "end"),
    [
        (TokenExpiredError(), EXPIRED),
        (ConnectionGrant("ann", expire_at=1), EXPIRED),
        (TokenInvalidError(), INVALID_TOKEN),
        (BrokerError("no keys"), SERVER_ERROR),
    ],
)
async def test_error_is_a_disconnect(known: ConnectionGrant | Exception, end: Disconnect) -> None:
    """109 and 110 become 3005, others 3004; what is a disconnect anyway stays that."""
    assert await end_of('{"token":"t"}', known) == end


@pytest.mark.parametrize("message", ["", "nonsense", "[]", b"\xff", b"binary", '{"token":1}'])
async def test_broken_first_message(message: str | bytes) -> None:
    """An invalid connect request ends the connection with 3501."""
    assert await end_of(message) == BAD_REQUEST


async def test_later_messages_are_not_listened_to() -> None:
    """Whatever comes behind the connect changes nothing."""
    async with open_test_node() as node, listening(node) as listener:
        for message in ("{}", "nonsense", b"binary", '{"subs":{"c":{}}}'):
            await listener.session.receive(message)
        assert len(await listener.heard()) == 1
        assert not node.hub.channels
        assert listener.client.end is None


@pytest.mark.parametrize("message", ["{}", '{"subs":{"c":{}}}'])
async def test_ended_client_does_not_connect(message: str) -> None:
    """A good message right behind a bad one does not bring the client back."""
    async with open_test_node() as node:
        async with listening(node, "nonsense") as listener:
            await listener.session.receive(message)
        assert usual(listener.transport.closed_with) == BAD_REQUEST
        assert not listener.transport.sent
        assert not node.registry.users
        assert not node.hub.channels


async def test_joins_are_bare_too() -> None:
    """Announcements come without envelope, its own first, behind the connect push."""
    channel = ChannelOptions(join_leave=True, force_push_join_leave=True)
    options = NodeOptions(channel=channel)
    async with open_test_node(options) as node, listening(node, '{"subs":{"c":{}}}') as listener:
        _, joined = await listener.heard()
        assert joined["channel"] == "c"
        assert joined["join"]["info"]["client"] == listener.client.id


async def test_gap_ends_it() -> None:
    """Its subscriptions are the server's: a gap is 3010."""
    broker = TestBroker(lambda event: [] if event.data == b"2" else [event])
    async with open_test_node(broker=broker) as node:
        async with listening(node, '{"subs":{"c":{}}}') as listener:
            for number in (1, 2, 3):
                await node.publish(Publication("c", b"%d" % number))
            await listener.heard()
        assert usual(listener.transport.closed_with) == INSUFFICIENT_STATE


async def test_pinged(autojump_clock: MockClock) -> None:
    """It is pinged by `{}`."""
    async with open_test_node() as node, listening(node) as listener:
        await trio.sleep(26)
        assert (await listener.heard())[1] == {}
