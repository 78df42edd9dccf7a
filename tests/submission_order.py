"""The checker of order: what each publisher submitted, in which order, and what became of it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import trio

from repeater.brokers.contract import Broker, Outcome
from repeater.brokers.receipts import Answer, settled
from repeater.errors import BrokerError
from repeater.json_text import json_text
from repeater.options import ChannelOptions
from repeater.publication import Event, Publication, StreamPosition


class Ledger:
    """What was submitted, and what was acknowledged. One for all publishers of a test."""

    def __init__(self, channels: Sequence[str], options: ChannelOptions) -> None:
        self.channels = channels
        self.options = options
        self.acknowledged: dict[tuple[str, StreamPosition], bytes] = {}
        """By channel and position: the data of the publication that has it."""
        self.failures: list[str] = []
        """Why publications were refused."""
        self._orders: dict[tuple[int, str], list[StreamPosition]] = defaultdict(list)

    async def publish(self, broker: Broker, publisher: int, count: int, under_way: int) -> None:
        """Submit so many, with so many answers open, into random channels."""
        chance = random.Random(publisher)
        waiting: list[tuple[Publication, Answer[Outcome]]] = []
        for number in range(count):
            data = json_text(b'"%d/%d"' % (publisher, number))
            publication = Publication(chance.choice(self.channels), data)
            try:
                waiting.append((publication, await self._submit(broker, publication)))
            except BrokerError as error:
                self.failures.append(str(error))
                await trio.sleep(0.01)
            if len(waiting) >= under_way:
                await self._settle(publisher, waiting.pop(0))
        for one in waiting:
            await self._settle(publisher, one)

    async def _submit(self, broker: Broker, publication: Publication) -> Answer[Outcome]:
        while True:
            try:
                return broker.submit(publication, self.options)
            except trio.WouldBlock:
                await broker.wait_room()

    async def _settle(self, publisher: int, one: tuple[Publication, Answer[Outcome]]) -> None:
        publication, answer = one
        try:
            position = await settled(answer)
        except BrokerError as error:
            self.failures.append(str(error))
            return
        assert position is not None
        place = (publication.channel, position)
        assert place not in self.acknowledged, f"{place} was given twice"
        self.acknowledged[place] = publication.data
        # In the order of submission, since answers are awaited in this order.
        self._orders[publisher, publication.channel].append(position)

    def acknowledged_in(self, channel: str) -> dict[int, bytes]:
        """What was acknowledged in a channel, by offset: of one epoch, if it had only one."""
        known = self.acknowledged.items()
        return {position.offset: data for (name, position), data in known if name == channel}

    def check_order(self) -> None:
        """Each publisher's publications of a channel have rising numbers, within an epoch."""
        for (publisher, channel), positions in self._orders.items():
            for before, after in pairwise(positions):
                assert before.epoch != after.epoch or before.offset < after.offset, (
                    f"publisher {publisher} got {after} after {before} in {channel}"
                )

    def check_events(self, events: Sequence[Event]) -> None:
        """What was handed on are the publications that were acknowledged, in steps of one."""
        last: dict[str, Publication] = {}
        for event in events:
            assert isinstance(event, Publication)
            before = last.get(event.channel)
            if before is not None and before.epoch == event.epoch:
                assert event.offset == before.offset + 1
            last[event.channel] = event
            known = self.acknowledged.get(
                (event.channel, StreamPosition(event.offset, event.epoch))
            )
            assert known in (None, event.data)
