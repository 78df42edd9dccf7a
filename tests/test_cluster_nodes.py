"""With several nodes on one engine, calls of the server API act on all, whichever takes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

import pytest
import trio

from repeater.access.grants import ConnectionGrant
from repeater.clients.emulated_message import EmulatedMessage, emulate
from repeater.clients.emulation import UnknownSessionError
from repeater.clients.session import Session
from repeater.errors import EXPIRED, FORCE_DISCONNECT
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.testing import MemoryTransport, connect
from tests.clusters import open_clusters, patient_members
from tests.members import ask, user_on
from tests.valkeys import ValkeyServer, valkey

INTERNAL = 100
TWO = {"num_clients": 2}
DENIED = {"changed": True, "num_clients": 0, "num_subs": 0}
OPTIONS = NodeOptions(insecure=True, channel=ChannelOptions(presence=True))
_prefixes = count()


@pytest.fixture(scope="module")
def engine() -> Iterator[ValkeyServer]:
    """One server for all tests, each of which has a prefix of its own."""
    with valkey() as server:
        yield server


@asynccontextmanager
async def open_nodes(engine: ValkeyServer, many: int = 2) -> AsyncIterator[list[Node]]:
    prefix = f"test{next(_prefixes)}"
    async with (
        open_clusters(engine.unix_url, many, prefix=prefix) as parts,
        AsyncExitStack() as stack,
    ):
        stack.enter_context(patient_members())
        yield [
            await stack.enter_async_context(
                open_node(OPTIONS, control=part.control, denials=part.denials)
            )
            for part in parts
        ]


async def test_calls_on_a_user_reach_every_node(engine: ValkeyServer) -> None:
    """Subscribe, unsubscribe, refresh and disconnect, on all connections of the user."""
    async with (
        open_nodes(engine, 3) as nodes,
        user_on(nodes[0]) as (first, _),
        user_on(nodes[1]) as (second, transport),
        user_on(nodes[2], "bob") as (other, _),
    ):
        node = nodes[0]
        assert await ask(node, "subscribe", user="ann", channel="news", data={"d": 1}) == TWO
        assert list(first.channels) == list(second.channels) == ["news"]
        assert transport.messages()[-1]["push"]["subscribe"]["data"] == {"d": 1}
        assert await ask(node, "unsubscribe", user="ann", channel="news") == {"num_subs": 2}
        assert not first.channels
        assert not second.channels
        assert await ask(nodes[2], "refresh", user="ann", info={"m": 2}) == TWO
        assert bytes(first.grant.info) == bytes(second.grant.info) == b'{"m": 2}'
        assert await ask(nodes[2], "disconnect", user="ann") == TWO
        assert first.end == second.end == FORCE_DISCONNECT
        assert await ask(nodes[1], "refresh", user="bob", expired=True) == {"num_clients": 1}
        assert other.end == EXPIRED


async def test_a_blocked_user_is_put_out_of_every_node_and_not_let_in_again(
    engine: ValkeyServer,
) -> None:
    """When the call is answered, no node has a connection of the user; lifted, all take it."""
    async with (
        open_nodes(engine) as nodes,
        user_on(nodes[0]) as (first, _),
        user_on(nodes[1]) as (second, _),
    ):
        assert await ask(nodes[0], "block_user", user="ann") == DENIED | TWO
        assert first.end == second.end == FORCE_DISCONNECT
        grant = ConnectionGrant(user="ann")
        assert [node.denials.refusal(grant) for node in nodes] == [FORCE_DISCONNECT] * 2
        assert await ask(nodes[1], "unblock_user", user="ann") == {"changed": True}
        assert [node.denials.refusal(grant) for node in nodes] == [None, None]


async def test_a_revoked_token_is_refused_by_every_node(engine: ValkeyServer) -> None:
    """By its id, and all of a user's that were issued earlier."""
    async with open_nodes(engine) as nodes:
        assert await ask(nodes[0], "revoke_token", jti="one") == DENIED
        assert await ask(nodes[1], "revoke_token", user="ann", issued_before=100) == DENIED
        for node in nodes:
            by_id = ConnectionGrant(user="bob", token_id="one", by_token=True)
            older = ConnectionGrant(user="ann", issued_at=99, by_token=True)
            newer = ConnectionGrant(user="ann", issued_at=100, by_token=True)
            found = [node.denials.refusal(one) is None for one in (by_id, older, newer)]
            assert found == [False, False, True]


async def test_info_shows_every_node_and_channels_are_added(engine: ValkeyServer) -> None:
    """Each node is a server of its own; a channel's subscribers are those of all nodes."""
    async with (
        open_nodes(engine, 3) as nodes,
        connect(nodes[0], MemoryTransport(), ["news", "one"]),
        connect(nodes[2], MemoryTransport(), ["news"]),
    ):
        found = (await ask(nodes[2], "info"))["nodes"]
        assert [one["num_clients"] for one in found if one["uid"] == nodes[2].id] == [1]
        assert found[0]["uid"] == nodes[2].id
        assert {one["uid"]: one["num_subs"] for one in found} == {
            nodes[0].id: 2, nodes[1].id: 0, nodes[2].id: 1
        }  # fmt: skip
        channels = (await ask(nodes[1], "channels"))["channels"]
        assert channels == {"news": {"num_clients": 2}, "one": {"num_clients": 1}}


async def test_a_message_of_an_emulated_session_reaches_its_node(engine: ValkeyServer) -> None:
    """A load balancer may give it to any node; one that no node knows is unknown at once."""
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with (
        open_nodes(engine) as (first, second),
        connect(first, transport, ready=False) as client,
        trio.open_nursery() as nursery,
    ):
        session = Session(first, client)
        with first.emulation.open(client, session, nursery):
            await session.receive('{"id":1,"connect":{}}')
            before = len(transport.sent)
            message = EmulatedMessage(client.session, '{"id":2,"subscribe":{"channel":"news"}}')
            await emulate(second, first.id, message)
            with trio.fail_after(5):
                while len(transport.sent) == before:  # noqa: ASYNC110  # it is carried out later
                    await trio.sleep(0.01)
            assert list(client.channels) == ["news"]
        for member in (first.id, "nobody"):
            with pytest.raises(UnknownSessionError):
                await emulate(second, member, EmulatedMessage("other", "{}"))
        nursery.cancel_scope.cancel()


async def test_a_call_says_that_the_engine_is_not_there(engine: ValkeyServer) -> None:
    """The node that took it has acted; others may have connections of the user."""
    with valkey() as server:
        async with open_nodes(server) as nodes, user_on(nodes[0]) as (first, _):
            server.kill()
            await trio.sleep(0.2)
            assert await ask(nodes[0], "disconnect", user="ann") == INTERNAL
            assert first.end == FORCE_DISCONNECT
            assert await ask(nodes[0], "block_user", user="ann") == INTERNAL
            assert await ask(nodes[0], "channels") == INTERNAL
