"""Emulated sessions: whose messages are whose, in which order, and how many may wait."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.clients.emulated_message import EmulatedMessage, emulate
from repeater.clients.emulation import (
    Emulation,
    OverflowedError,
    UnknownSessionError,
)
from repeater.clients.session import Session
from repeater.errors import NO_PONG, TOO_MANY_REQUESTS
from repeater.node import Node
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_STREAM
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.members import open_workers

CONNECT = '{"connect":{},"id":1}'


class Waiting:
    """A conversation that takes its time with each message."""

    def __init__(self) -> None:
        self.taken: list[str | bytes] = []
        self.finished: list[str | bytes] = []
        self.go_on = trio.Event()

    async def receive(self, message: str | bytes) -> None:
        self.taken.append(message)
        await self.go_on.wait()
        self.finished.append(message)


@asynccontextmanager
async def emulated(node: Node, credentials: str = "") -> AsyncIterator[tuple[str, MemoryTransport]]:
    """A connected session's id, and what its stream carries."""
    transport = MemoryTransport(CENTRIFUGE_STREAM)
    async with connect(node, transport, ready=False) as client, trio.open_nursery() as nursery:
        session = Session(node, client)
        with node.emulation.open(client, session, nursery, credentials):
            await session.receive(CONNECT)
            yield client.session, transport
        nursery.cancel_scope.cancel()


def replies(transport: MemoryTransport) -> list[Any]:
    return [json.loads(line) for line in b"".join(transport.sent).splitlines()]


async def test_the_connect_reply_names_session_and_node() -> None:
    """That is what a client sends its commands with; each session's id is its own."""
    async with open_test_node() as node, emulated(node) as (one, transport):
        reply = replies(transport)[0]["connect"]
        assert (reply["session"], reply["node"]) == (one, node.id)
        assert reply["client"] != one
        async with emulated(node) as (two, _):
            assert one != two
            assert len(node.emulation) == 2
    assert len(node.emulation) == 0


async def test_commands_are_answered_on_the_stream() -> None:
    """Those of one message in order, and messages in order of arrival."""
    async with open_test_node() as node, emulated(node) as (session, transport):
        subscribe = '{"subscribe":{"channel":"a"},"id":2}'
        node.emulation.take(session, subscribe + '\n{"publish":{"channel":"a","data":1},"id":3}')
        node.emulation.take(session, '{"history":{"channel":"a","limit":1},"id":4}')
        await wait_all_tasks_blocked()
        lines = replies(transport)[1:]
        assert [line["id"] for line in lines if "id" in line] == [2, 3, 4]
        assert sum("push" in line for line in lines) == 1


async def test_one_message_after_the_other() -> None:
    """The next is not begun before the last is done, however many requests there are."""
    conversation = Waiting()
    async with open_test_node() as node:
        transport = MemoryTransport(CENTRIFUGE_STREAM)
        async with connect(node, transport) as client, trio.open_nursery() as nursery:
            with node.emulation.open(client, conversation, nursery):
                for message in ("1", "2", "3"):
                    node.emulation.take(client.session, message)
                await wait_all_tasks_blocked()
                assert conversation.taken == ["1"]
                conversation.go_on.set()
                await wait_all_tasks_blocked()
                assert conversation.finished == ["1", "2", "3"]
                assert not nursery.child_tasks


async def test_the_first_message_comes_before_those_of_other_requests() -> None:
    """It came with the stream itself, and stands in the same queue."""
    conversation = Waiting()
    async with open_test_node() as node:
        transport = MemoryTransport(CENTRIFUGE_STREAM)
        async with connect(node, transport) as client, trio.open_nursery() as nursery:
            with node.emulation.open(client, conversation, nursery) as session:
                session.take("connect")
                node.emulation.take(client.session, "later")
                await wait_all_tasks_blocked()
                assert conversation.taken == ["connect"]
                conversation.go_on.set()
                await wait_all_tasks_blocked()
                assert conversation.finished == ["connect", "later"]


@pytest.mark.parametrize(("count", "size"), [(129, 2), (5, 65_536)])
async def test_a_full_queue_ends_the_session(count: int, size: int) -> None:
    """A message left out would be a hole: the client is asked to come back (3013)."""
    conversation = Waiting()
    async with open_test_node() as node:
        transport = MemoryTransport(CENTRIFUGE_STREAM)
        async with connect(node, transport) as client, trio.open_nursery() as nursery:
            with node.emulation.open(client, conversation, nursery):
                node.emulation.take(client.session, "first")
                await wait_all_tasks_blocked()
                for _ in range(count - 1):
                    node.emulation.take(client.session, "x" * size)
                with pytest.raises(OverflowedError):
                    node.emulation.take(client.session, "x" * size)
                assert client.end == TOO_MANY_REQUESTS
                with pytest.raises(UnknownSessionError):
                    node.emulation.take(client.session, "later")
        assert conversation.finished == []
        assert transport.closed_with == TOO_MANY_REQUESTS


async def test_a_session_is_not_for_others() -> None:
    """An unknown id, one that has ended, or other credentials than the stream's: the same."""
    async with open_test_node() as node:
        async with emulated(node, "secret") as (session, _):
            node.emulation.take(session, "{}", "secret")
            for name, credentials in ((session, ""), (session, "other"), ("nobody", "secret")):
                with pytest.raises(UnknownSessionError):
                    node.emulation.take(name, "{}", credentials)
        with pytest.raises(UnknownSessionError):
            node.emulation.take(session, "{}", "secret")
    assert len(Emulation()) == 0


async def test_a_command_ends_with_its_stream() -> None:
    """Hanging up cancels what is carried out, and nothing stays in the hub."""
    conversation = Waiting()
    async with open_test_node() as node:
        transport = MemoryTransport(CENTRIFUGE_STREAM)
        async with connect(node, transport) as client, trio.open_nursery() as nursery:
            with node.emulation.open(client, conversation, nursery):
                node.emulation.take(client.session, "1")
                await wait_all_tasks_blocked()
                client.cut(NO_PONG)
                await trio.Event().wait()  # until it is ended
        assert conversation.taken == ["1"]
        assert conversation.finished == []


async def test_a_pong_comes_by_emulation(autojump_clock: trio.testing.MockClock) -> None:
    """A session that answers pings stays; a silent one is cut."""
    async with open_test_node(NodeOptions(ping_interval=10, pong_timeout=2)) as node:
        async with emulated(node) as (session, transport):
            for _ in range(50):
                await trio.sleep(1)
                node.emulation.take(session, "{}")
            assert transport.sent.count(b"{}\n") >= 4
            await trio.Event().wait()  # until it is ended
        assert 50 < trio.current_time() < 65
        assert node.statistics().ended == {3012: 1}


async def test_a_broken_command_ends_the_stream_with_its_reason() -> None:
    """The last message says why, where a WebSocket has its close frame."""
    async with open_test_node() as node:
        async with emulated(node) as (session, transport):
            node.emulation.take(session, "nonsense")
            await trio.Event().wait()  # until it is ended
        assert transport.closed_with is not None
        assert CENTRIFUGE_STREAM.farewell(transport.closed_with) == (
            b'{"push":{"disconnect":{"code":3501,"reason":"bad request: the message: it is not '
            b'JSON: send one JSON object a line"}}}\n'
        )


async def test_another_worker_forwards_a_message(autojump_clock: trio.testing.MockClock) -> None:
    """The messages are answered on the stream, in their order; credentials count as on its node."""
    async with open_workers(3) as workers, emulated(workers.nodes[1], "secret") as (one, transport):
        subscribe = EmulatedMessage(one, '{"subscribe":{"channel":"a"},"id":2}', "secret")
        publish = EmulatedMessage(one, '{"publish":{"channel":"a","data":1},"id":3}', "secret")
        for number in range(10):
            await emulate(workers.nodes[number % 3], workers.nodes[1].id, subscribe)
            await emulate(workers.nodes[0], workers.nodes[1].id, publish)
        await wait_all_tasks_blocked()
        ids = [line["id"] for line in replies(transport)[1:] if "id" in line]
        assert ids == [2, 3] * 10
        for node in workers.nodes:
            with pytest.raises(UnknownSessionError):
                await emulate(node, workers.nodes[1].id, EmulatedMessage(one, "{}", "other"))
            with pytest.raises(UnknownSessionError):
                await emulate(node, workers.nodes[0].id, subscribe)
            for member in ("nobody", workers.group.server):
                with pytest.raises(UnknownSessionError):
                    await emulate(node, member, subscribe)


async def test_a_full_session_of_another_worker(autojump_clock: trio.testing.MockClock) -> None:
    """The worker that forwards a message too many learns that the session has ended."""
    conversation = Waiting()
    async with open_workers(2) as workers:
        first, second = workers.nodes
        transport = MemoryTransport(CENTRIFUGE_STREAM)
        async with connect(second, transport) as client, trio.open_nursery() as nursery:
            with second.emulation.open(client, conversation, nursery) as session:
                session.take("first")
                await wait_all_tasks_blocked()
                message = EmulatedMessage(client.session, "x")
                for _ in range(128):
                    await emulate(first, second.id, message)
                with pytest.raises(OverflowedError):
                    await emulate(first, second.id, message)
                assert client.end == TOO_MANY_REQUESTS


async def test_a_silent_worker_has_no_sessions(autojump_clock: trio.testing.MockClock) -> None:
    """After a second the client is told that its session is unknown, and comes back."""
    async with open_workers(2) as workers, emulated(workers.nodes[1]) as (session, _):
        workers.fall_silent(1)
        began, message = trio.current_time(), EmulatedMessage(session, "{}")
        with pytest.raises(UnknownSessionError):
            await emulate(workers.nodes[0], workers.nodes[1].id, message)
        assert trio.current_time() - began == pytest.approx(1)
