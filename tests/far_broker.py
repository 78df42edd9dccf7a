"""A broker whose answers and events take a while, each its own, as over a network."""

from __future__ import annotations

import contextlib
import random

import trio

from repeater.brokers.contract import EventSink, Page
from repeater.brokers.receipts import Answer, Receipt
from repeater.options import ChannelOptions
from repeater.publication import Event, StreamPosition
from tests.brokers import ForwardingBroker


class FarBroker(ForwardingBroker):
    """A broker far away: answers take a while, and events reach fan-out after the history."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._sink: EventSink | None = None
        self._nursery: trio.Nursery
        self._send, self._receive = trio.open_memory_channel[Event](100)

    async def run(self, intake: EventSink) -> None:
        self._sink = intake
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._forward, intake)
            await super().run(self)

    def check_room(self) -> None:
        assert self._sink is not None
        self._sink.check_room()

    async def wait_room(self) -> None:
        await trio.lowlevel.checkpoint()

    def put_nowait(self, event: Event, weight: int = 0) -> None:
        self._send.send_nowait(event)

    async def _forward(self, intake: EventSink) -> None:
        async for event in self._receive:
            await self._dawdle(12)
            with contextlib.suppress(trio.ClosedResourceError):
                intake.put_nowait(event)

    async def _dawdle(self, most: int) -> None:
        for _ in range(self._random.randrange(most)):
            await trio.lowlevel.checkpoint()

    def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Answer[Page]:
        page = self.memory.history(channel, options, since=since, limit=limit, reverse=reverse)
        receipt: Receipt[Page] = Receipt()
        self._nursery.start_soon(self._answer, receipt, page)
        return receipt

    async def _answer(self, receipt: Receipt[Page], page: Page) -> None:
        await self._dawdle(6)
        receipt.settle(page)
