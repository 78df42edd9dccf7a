"""A node that everybody may use, and clients on it without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from repeater.access.grants import TokenVerifier
from repeater.backend.contract import Backend, Events
from repeater.brokers.contract import Broker, PresenceStore
from repeater.clients.client import Client
from repeater.node import Node, open_node
from repeater.options import NodeOptions
from repeater.testing.fakes import MemoryTransport


@asynccontextmanager
async def open_test_node(
    options: NodeOptions | None = None,
    *,
    broker: Broker | None = None,
    presence: PresenceStore | None = None,
    verifier: TokenVerifier | None = None,
    backend: Backend | None = None,
    events: Events | None = None,
) -> AsyncIterator[Node]:
    """Run a node on which every client may do everything, whatever `options` says of it.

    The rest is `open_node`'s.
    """
    open_to_all = msgspec.structs.replace(options or NodeOptions(), insecure=True)
    async with open_node(
        open_to_all,
        broker=broker,
        presence=presence,
        verifier=verifier,
        backend=backend,
        events=events,
    ) as node:
        yield node


@asynccontextmanager
async def connect(
    node: Node,
    transport: MemoryTransport,
    channels: Sequence[str] = (),
    *,
    ready: bool = True,
) -> AsyncIterator[Client]:
    """A client on the node for as long as the block lasts, or until something cuts it."""
    with trio.CancelScope() as scope:
        client = Client(node.registry, transport, scope, ready=ready)
        try:
            if ready:
                client.introduce()
            for channel in channels:
                client.subscribe(channel)
            yield client
        finally:
            await client.leave()
