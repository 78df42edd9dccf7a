"""A server with workers inside this process: real links, real sockets, and one loop for all.

A process test shows that processes are started and ended. This shows that nobody sees how many
workers there are: whole suites run on it as they run on one node.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from unittest.mock import patch

import trio

from repeater.config import CurrentSettings, Settings, WorkerPlace
from repeater.errors import open_service_nursery
from repeater.front.listeners import open_all
from repeater.front.worker_listeners import WorkerListeners
from repeater.node import Node
from repeater.serving.server import Server, open_server
from repeater.serving.shared import open_shared
from repeater.serving.worker import _parts
from repeater.workers.exchange import Exchange
from repeater.workers.worker import open_worker_link


class Workers:
    """The servers of all workers, as one. Made and ended by `open_workers`."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = servers
        self.port = servers[0].port

    @property
    def nodes(self) -> Sequence[Node]:
        """The node of each worker."""
        return [server.node for server in self.servers]

    @property
    def node(self) -> Node:
        """The node with the fewest clients: what is asked of it concerns the others."""
        return min(self.nodes, key=lambda node: len(node.registry.clients))


@asynccontextmanager
async def open_workers(settings: Settings, count: int = 2) -> AsyncIterator[Workers]:
    """Serve with so many workers for as long as the block lasts; the kernel spreads connections.

    All begin to end at the same moment.
    """
    listeners = open_all(settings, WorkerListeners(count))
    stopping = trio.Event()
    try:
        async with (
            open_shared(settings, count) as shared,
            trio.open_nursery() as running,
        ):
            servers = [
                await running.start(
                    _work, shared.exchange, settings, number, listeners.of(number), stopping
                )
                for number in range(1, count + 1)
            ]
            try:
                yield Workers(servers)
            finally:
                listeners.close()
                stopping.set()
    finally:
        listeners.close()


async def _work(
    exchange: Exchange,
    settings: Settings,
    number: int,
    listeners: Sequence[socket.socket],
    stopping: trio.Event,
    task_status: trio.TaskStatus[Server],
) -> None:
    """Run one worker until all are to stop. Its sockets are copies, as those of a process are."""
    ours, its = (
        trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()
    )
    place = WorkerPlace(number, -1, -1, tuple(os.dup(one.fileno()) for one in listeners))
    async with open_service_nursery() as nursery:
        nursery.start_soon(exchange.attach, ours, number, _must_not_be_given_up)
        async with open_worker_link(its) as link, AsyncExitStack() as stack:
            current = CurrentSettings(settings)
            parts = await stack.enter_async_context(_parts(link, current, number))
            opened = open_server(settings, current=current, **parts)
            with patch("repeater.serving.server.worker_place", lambda: place):
                server = await stack.enter_async_context(opened)
            task_status.started(server)
            await stopping.wait()


def _must_not_be_given_up(reason: str) -> None:
    raise AssertionError(f"a worker was given up: {reason}")
