"""Many plain subscribers begin in the past at once: they are served in turns and in order."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.clients.client import Client
from repeater.clients.plain import listening
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.sse.event_stream import EventStreamCodec
from repeater.publication import Publication
from repeater.testing import open_test_node
from tests.plain_readers import Reader

KEPT = ChannelOptions(history_size=100, history_ttl=600)


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


async def test_who_waits_for_a_turn_is_not_stale(autojump_clock: MockClock) -> None:
    """A client that is answered has done its part: the server has not."""
    async with (
        open_node(NodeOptions(insecure=True, channel=KEPT)) as node,
        trio.open_nursery() as nursery,
    ):
        await publish(node, 3)
        reader = Reader("events", "a", since="start")
        wanted = reader.wanted(node, by_since=False)
        scope = trio.CancelScope()
        client = Client(node.registry, reader.transport, scope, ready=False)

        async def listen() -> None:
            with scope:
                async with listening(node, client, wanted):
                    await trio.sleep_forever()

        async with node.replays:
            nursery.start_soon(listen)
            await trio.sleep(2 * node.options.stale_timeout)
        await wait_all_tasks_blocked()
        assert client.end is None
        assert reader.read() == [0, 1, 2]
        scope.cancel()
        await client.leave()
