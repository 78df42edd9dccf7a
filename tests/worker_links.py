"""Supervisors and workers in one process, over real socket pairs."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from repeater.access.denial_store import DenialStore, MemoryDenials
from repeater.backend.contract import Events
from repeater.brokers.contract import Broker, PresenceStore
from repeater.brokers.control import Supervision
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.memory_presence import MemoryPresence
from repeater.brokers.receipts import settled
from repeater.errors import open_service_nursery
from repeater.fanout.intake import Intake
from repeater.publication import Event
from repeater.workers.broker import WorkerBroker
from repeater.workers.exchange import Exchange
from repeater.workers.worker import WorkerLink, open_worker_link


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a socket pair."""
    ours, theirs = socket.socketpair()
    return (
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)),
        trio.SocketStream(trio.socket.from_stdlib_socket(theirs)),
    )


class Supervisor:
    """An exchange, and what it was told to give up."""

    def __init__(self, exchange: Exchange, nursery: trio.Nursery) -> None:
        self.exchange = exchange
        self.given_up: dict[int, str] = {}
        self._nursery = nursery
        self._last = 0

    def attach(self) -> trio.SocketStream:
        """Attach one more worker; the worker's end of its link."""
        self._last += 1
        number = self._last
        ours, theirs = stream_pair()

        def give_up(reason: str) -> None:
            assert number not in self.given_up
            self.given_up[number] = reason

        self._nursery.start_soon(self.exchange.attach, ours, number, give_up)
        return theirs

    @asynccontextmanager
    async def worker(self, *, silence: float = 3.0) -> AsyncIterator[WorkerLink]:
        """One more worker."""
        async with open_worker_link(self.attach(), silence=silence) as link:
            yield link


@asynccontextmanager
async def supervising(
    broker: Broker | None = None,
    *,
    presence: PresenceStore | None = None,
    denials: DenialStore | None = None,
    events: Events | None = None,
    timeout: float = 10.0,
    supervision: Supervision | None = None,
) -> AsyncIterator[Supervisor]:
    """A supervisor that runs for as long as the block lasts."""
    exchange = Exchange(
        broker or MemoryBroker(),
        presence or MemoryPresence(),
        denials or MemoryDenials(),
        events,
        timeout=timeout,
        supervision=supervision,
    )
    async with open_service_nursery() as nursery:
        nursery.start_soon(exchange.run)
        yield Supervisor(exchange, nursery)


class Worker:
    """A worker whose broker runs, and the intake that it hands events to."""

    def __init__(self, link: WorkerLink, room: int) -> None:
        self.link = link
        self.broker: WorkerBroker = link.broker
        self.intake = Intake(room, 1 << 26, 1 << 18)
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            await self.broker.run(self.intake)

    async def hold(self, channel: str = "c") -> None:
        await settled(self.broker.hold(channel))

    async def events(self, count: int) -> list[Event]:
        found: list[Event] = []
        while len(found) < count:
            found += await self.intake.take_batch()
        return found


@asynccontextmanager
async def worker(supervisor: Supervisor, *, room: int = 8_192) -> AsyncIterator[Worker]:
    async with supervisor.worker() as link, open_service_nursery() as nursery:
        one = Worker(link, room)
        nursery.start_soon(one.run)
        await one.broker.wait_room()
        yield one
