"""A node that everybody may use, and clients on it without a socket."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from repeater.access.grants import TokenVerifier
from repeater.backend.contract import Backend, Events
from repeater.brokers.contract import Broker, PresenceStore
from repeater.brokers.control import Control
from repeater.clients.client import Client
from repeater.clients.plain import hear
from repeater.node import Node, open_node
from repeater.options import NodeOptions
from repeater.testing.fakes import MemoryTransport


class UnixClock:
    """Unix time that goes with Trio's clock, so that a test's clock moves expiries; it can be set.

    Begins at the real time, when it is read first. Pass it as `now` to `open_node`.
    """

    def __init__(self) -> None:
        self._ahead: float | None = None

    def __call__(self) -> float:
        """Unix seconds."""
        if self._ahead is None:
            self._ahead = time.time() - trio.current_time()
        return trio.current_time() + self._ahead

    def step(self, seconds: float) -> None:
        """Set the clock forwards, or backwards by a negative number."""
        self._ahead = self() - trio.current_time() + seconds


@asynccontextmanager
async def open_test_node(
    options: NodeOptions | None = None,
    *,
    broker: Broker | None = None,
    presence: PresenceStore | None = None,
    verifier: TokenVerifier | None = None,
    backend: Backend | None = None,
    events: Events | None = None,
    now: Callable[[], float] | None = None,
    control: Control | None = None,
) -> AsyncIterator[Node]:
    """Run a node on which every client may do everything, whatever `options` says of it.

    Its Unix time goes with Trio's clock unless `now` is given. The rest is `open_node`'s.
    """
    open_to_all = msgspec.structs.replace(options or NodeOptions(), insecure=True)
    async with open_node(
        open_to_all,
        broker=broker,
        presence=presence,
        verifier=verifier,
        backend=backend,
        events=events,
        now=now or UnixClock(),
        control=control,
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
    """A client on the node for as long as the block lasts, or until something cuts it.

    It hears the channels without positions. A client that is not `ready` has said nothing yet, and
    hears none: `clients.plain.hear` makes it ready, or `Client.became_ready`.
    """
    assert ready or not channels
    with trio.CancelScope() as scope:
        client = Client(node.registry, transport, scope, ready=ready)
        try:
            if ready:
                await hear(node, client, channels)
            yield client
        finally:
            await client.leave()
