"""Nodes of one process that are the workers of one server, with what their supervisor answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import trio

from repeater.access.grants import ConnectionGrant
from repeater.api.methods import call
from repeater.brokers.control import Member
from repeater.clients.client import Client
from repeater.config import load_settings
from repeater.errors import open_service_nursery
from repeater.failures import Failures
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.serving.server import Server, open_server
from repeater.supervision.counters import CounterTotals
from repeater.supervision.metrics import Metrics
from repeater.supervision.places import Places
from repeater.supervision.questions import ServerQuestions
from repeater.supervision.summary import Summaries
from repeater.supervision.users import Users
from repeater.testing import ControlGroup, MemoryTransport, connect, open_test_node
from repeater.testing.controls import GroupControl
from repeater.web.metrics import create_registry
from repeater.web.samples import Family, Sample
from repeater.web.scrape import register

OWN = (Family("process_open_fds", "Open files.", "gauge", [Sample("process_open_fds", {}, 7.0)]),)
"""What the supervisor's process shows of itself."""


OPTIONS = NodeOptions(channel=ChannelOptions(presence=True))


def worker(number: int, start: int = 1) -> Member:
    """A worker as others know it; one that is started again has another id."""
    return Member(f"{number}-{start}", "host", "server", number)


@asynccontextmanager
async def user_on(node: Node, name: str = "ann") -> AsyncIterator[tuple[Client, MemoryTransport]]:
    """A connection of a user on one of the nodes, after its `connect`.

    Its end does not cancel the block: what the test says behind it counts.
    """
    async with open_service_nursery() as nursery:
        yield await nursery.start(_be_there, node, name)


async def _be_there(
    node: Node, name: str, task_status: trio.TaskStatus[tuple[Client, MemoryTransport]]
) -> None:
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with connect(node, transport, ready=False) as client:
        client.identify(ConnectionGrant(user=name, info=b'{"n":1}'))
        client.became_ready()
        task_status.started((client, transport))
        await trio.sleep_forever()


async def ask(node: Node, method: str, /, **body: Any) -> Any:
    """The result, or the error's code."""
    answer = await call(node, method, json.dumps(body).encode())
    decoded = json.loads(answer.body)
    if "error" in decoded:
        return decoded["error"]["code"]
    return decoded.get("result", decoded)


class Workers(msgspec.Struct):
    """The workers of one server."""

    group: ControlGroup
    nodes: Sequence[Node]
    controls: Sequence[GroupControl]
    users: Users
    places: Places

    def fall_silent(self, number: int) -> None:
        """Have a worker answer nobody from now on, as a stopped process."""
        self.group.silent.add(self.nodes[number].id)


class Supervised(msgspec.Struct):
    """A server's workers as their supervisor sees them. Its controls are for its nodes."""

    group: ControlGroup
    controls: Sequence[GroupControl]
    users: Users
    places: Places
    nodes: list[Node]
    """Whose channels are counted; a test adds them."""

    def check_empty(self) -> None:
        """Nothing is left of workers that have ended."""
        assert not self.users.connections
        assert not self.places.held
        assert not self.places.addresses
        assert not self.places.waiting


def supervised(count: int) -> Supervised:
    """Make the controls of workers, and what their supervisor answers them."""
    questions = ServerQuestions(Failures())
    group = ControlGroup(questions)
    users = Users(questions)
    places = Places(questions, users, lambda: range(1, count + 1))
    Summaries(questions, users)
    CounterTotals(questions)
    Metrics(questions, users, lambda: OWN, lambda: range(1, count + 1))
    nodes: list[Node] = []
    questions.begin(
        group,
        lambda: len({name for node in nodes for name in node.hub.channels}),
        lambda: sum(node.statistics().repeater.publications for node in nodes),
    )
    return Supervised(group, [group.control() for _ in range(count)], users, places, nodes)


@asynccontextmanager
async def open_workers(
    count: int = 2, options: NodeOptions | None = None
) -> AsyncIterator[Workers]:
    """Run nodes that know each other, for as long as the block lasts."""
    parts = supervised(count)
    async with AsyncExitStack() as stack:
        for control in parts.controls:
            node = await stack.enter_async_context(open_test_node(options, control=control))
            register(node, partial(create_registry, node))
            parts.nodes.append(node)
        yield Workers(parts.group, parts.nodes, parts.controls, parts.users, parts.places)
    parts.check_empty()


@asynccontextmanager
async def open_servers(count: int = 2, **settings: object) -> AsyncIterator[list[Server]]:
    """Run development servers that are the workers of one, each on a port of its own."""
    parts = supervised(count)
    chosen = {"dev": True, "port": 0, "allowed_hosts": "*", **settings}
    async with AsyncExitStack() as stack:
        servers: list[Server] = []
        for control in parts.controls:
            server = open_server(load_settings(**chosen), control=control)
            servers.append(await stack.enter_async_context(server))
            parts.nodes.append(servers[-1].node)
        yield servers
    parts.check_empty()
