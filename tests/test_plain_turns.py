"""Many plain subscribers begin in the past at once: they are served in turns and in order."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.node import Node
from repeater.options import NodeOptions
from repeater.protocol.sse.event_stream import EventStreamCodec
from repeater.publication import Publication
from repeater.testing import open_test_node
from tests.plain_readers import Reader


class Encoded(trio.abc.Instrument):
    """The offsets of the events that are encoded, and how many of them in one pass of the loop."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.most = self._now = 0

    def note(self, publication: Publication) -> None:
        self.offsets.append(publication.offset)
        self._now += 1
        self.most = max(self.most, self._now)

    def after_io_wait(self, timeout: float) -> None:  # Trio's signature
        self._now = 0


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """What is encoded for streams without envelopes, by replays only: fan-out has another way."""
    encoded, event = Encoded(), EventStreamCodec.event

    def noted(codec: EventStreamCodec, publication: Publication, event_id: bytes) -> bytes:
        encoded.note(publication)
        return event(codec, publication, event_id)

    monkeypatch.setattr(EventStreamCodec, "event", noted)
    return encoded


async def publish(node: Node, count: int) -> None:
    for number in range(count):
        await node.publish(Publication("a", b"%d" % number))


async def test_those_who_come_at_once_share_each_turn(encoded: Encoded) -> None:
    """Thirty readers take no more of one pass than one does, and each is served to its end."""
    async with open_test_node(NodeOptions(fanout_budget=0)) as node:
        await publish(node, 20)
        readers = [Reader("events", "a", since="start") for _ in range(30)]

        async def read(reader: Reader) -> None:
            async with reader.connected(node):
                pass

        trio.lowlevel.add_instrument(encoded)
        async with trio.open_nursery() as nursery:
            for reader in readers:
                nursery.start_soon(read, reader)
        trio.lowlevel.remove_instrument(encoded)
        assert all(reader.read() == list(range(20)) for reader in readers)
        assert encoded.offsets == [*range(1, 21)] * 30
        assert encoded.most <= 2


async def test_what_gathers_meanwhile_is_written_in_turns_too(encoded: Encoded) -> None:
    """Events that come while a reader gets the past are not all encoded in its last step."""
    async with open_test_node(NodeOptions(fanout_budget=0)) as node:
        await publish(node, 20)
        await wait_all_tasks_blocked()
        reader = Reader("events", "a", since="start")
        trio.lowlevel.add_instrument(encoded)

        async def publish_meanwhile() -> None:
            while not encoded.offsets:
                await trio.lowlevel.checkpoint()
            await publish(node, 200)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_meanwhile)
            async with reader.connected(node):
                await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(encoded)
        assert reader.read() == [*range(20), *range(200)]
        assert len(encoded.offsets) > 100, "they gathered: fan-out did not give them"
        assert encoded.most < 20
