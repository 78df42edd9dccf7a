"""Fan-out: order, one encode a codec, and who hears what when others come and go."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio
from trio.testing import wait_all_tasks_blocked

from service.client import Client
from service.errors import SLOW
from service.node import Node
from service.options import NodeOptions
from service.protocol.codecs import CENTRIFUGE_JSON_ASGI, PLAIN, Codec, say_data
from service.protocol.frames import text_frame
from service.publication import Publication
from service.testing import MemoryTransport, StallingTransport, connect, open_test_node


class WatchedTransport(MemoryTransport):
    """Calls `on_write` with itself before each write."""

    async def act(self) -> None:
        """What another task does once this transport was written to."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery

    def write(self, chunk: bytes) -> int:
        if not self.sent:
            self._nursery.start_soon(self.act)
        return super().write(chunk)


def put(node: Node, *publications: tuple[str, bytes]) -> None:
    """Into fan-out as one batch: nothing runs between the puts."""
    for channel, data in publications:
        node._intake.put_nowait(Publication(channel, data))


async def test_order_holds_in_each_channel() -> None:
    """A subscriber of two channels hears each in the order of publishing."""
    transport = MemoryTransport()
    async with open_test_node() as node, connect(node, transport, ["a", "b"]):
        for number in range(100):
            await node.publish(Publication("ab"[number % 2], b"%d" % number))
        await wait_all_tasks_blocked()
    heard = [int(chunk) for chunk in transport.sent]
    assert sorted(heard) == list(range(100))
    assert [n for n in heard if n % 2] == list(range(1, 100, 2))
    assert [n for n in heard if not n % 2] == list(range(0, 100, 2))


async def test_one_encode_for_each_codec() -> None:
    """A publication is encoded once for a codec, however many listen by it."""
    said: list[Publication] = []

    def say(publication: Publication) -> bytes:
        said.append(publication)
        return say_data(publication)

    codec = Codec("counting", say=say, wrap=None, frame=None, ping=None)
    async with open_test_node() as node, AsyncExitStack() as stack:
        transports = [MemoryTransport(codec) for _ in range(100)]
        other = MemoryTransport(CENTRIFUGE_JSON_ASGI)
        for transport in (*transports, other):
            await stack.enter_async_context(connect(node, transport, ["c"]))
        await node.publish(Publication("c", b"1"))
        await wait_all_tasks_blocked()
        assert len(said) == 1
        assert all(transport.sent == [b"1"] for transport in transports)
        assert len(other.sent) == 1
        assert node.statistics().repeater.deliveries == 101


async def test_same_bytes_for_everybody() -> None:
    """Subscribers in step are all written the very same object."""
    async with open_test_node() as node, AsyncExitStack() as stack:
        transports = [MemoryTransport(PLAIN) for _ in range(10)]
        for transport in transports:
            await stack.enter_async_context(connect(node, transport, ["c"]))
        put(node, ("c", b"1"), ("c", b"2"))
        await wait_all_tasks_blocked()
        assert transports[0].sent == [text_frame(b"1") + text_frame(b"2")]
        assert all(transport.sent[0] is transports[0].sent[0] for transport in transports)


async def test_who_leaves_during_a_fan_out_hears_nothing_more() -> None:
    """A listener that unsubscribes, or is cut, while others are written to, is left out."""
    options = NodeOptions(fanout_budget=0)  # gives way after every slice
    async with (
        trio.open_nursery() as nursery,
        open_test_node(options) as node,
        AsyncExitStack() as stack,
    ):
        clients: list[Client] = []
        first = WatchedTransport(nursery)
        transports = [first, *(MemoryTransport() for _ in range(199))]

        async def leave() -> None:
            clients[150].unsubscribe("c")
            clients[151].unsubscribe("c")

        first.act = leave  # type: ignore[method-assign]
        for transport in transports:
            client = await stack.enter_async_context(connect(node, transport, ["c"]))
            clients.append(client)
        await node.publish(Publication("c", b"1"))
        await wait_all_tasks_blocked()
        heard = [len(transport.sent) for transport in transports]
        assert heard == [0 if number in (150, 151) else 1 for number in range(200)]


async def test_who_joins_during_a_fan_out_hears_the_next() -> None:
    """A listener that comes meanwhile hears the next publication, once, as all others do."""
    options = NodeOptions(fanout_budget=0)
    async with (
        trio.open_nursery() as nursery,
        open_test_node(options) as node,
        AsyncExitStack() as stack,
    ):
        first, late = WatchedTransport(nursery), MemoryTransport()
        joiner = await stack.enter_async_context(connect(node, late))

        async def join() -> None:
            joiner.subscribe("c")

        first.act = join  # type: ignore[method-assign]
        others = [MemoryTransport() for _ in range(100)]
        for transport in (first, *others):
            await stack.enter_async_context(connect(node, transport, ["c"]))
        await node.publish(Publication("c", b"1"))
        await wait_all_tasks_blocked()
        await node.publish(Publication("c", b"2"))
        await wait_all_tasks_blocked()
        assert late.sent == [b"2"]
        assert all(transport.sent == [b"1", b"2"] for transport in (first, *others))


async def test_batch_of_several_channels_is_one_write() -> None:
    """A subscriber of three channels gets a batch that touches all of them in one write."""
    transport = MemoryTransport(PLAIN)
    async with open_test_node() as node, connect(node, transport, ["a", "b", "c"]):
        put(node, ("a", b"1"), ("b", b"2"), ("c", b"3"), ("unheard", b"4"), ("a", b"5"))
        await wait_all_tasks_blocked()
    assert len(transport.sent) == 1
    assert transport.sent[0] == b"".join(map(text_frame, (b"1", b"5", b"2", b"3")))


async def test_nobody_listens() -> None:
    """Publications that nobody hears are counted and cost nobody anything."""
    async with open_test_node() as node:
        put(node, ("a", b"1"), ("b", b"2"))
        put(node, ("a", b"1"))
        await wait_all_tasks_blocked()
        statistics = node.statistics().repeater
        assert (statistics.publications, statistics.deliveries, statistics.waiting) == (3, 0, 0)


async def test_stalled_client_does_not_disturb_the_others() -> None:
    """One that reads nothing is cut at its bound; everybody else hears everything."""
    options = NodeOptions(outbox_limit=1_000)
    stalled, healthy = StallingTransport(PLAIN), MemoryTransport(PLAIN)
    async with open_test_node(options) as node, trio.open_nursery() as nursery:
        ends = []

        async def hold() -> None:
            async with connect(node, stalled, ["c"]) as client:
                ends.append(client)
                await trio.sleep_forever()

        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        async with connect(node, healthy, ["c"]):
            for _ in range(50):
                await node.publish(Publication("c", b"x" * 98))
                await wait_all_tasks_blocked()
        assert ends[0].end == SLOW
        assert stalled.aborted
    assert b"".join(healthy.sent) == text_frame(b"x" * 98) * 50
    assert not stalled.sent
