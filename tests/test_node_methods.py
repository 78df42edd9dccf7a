"""What a node tells and does when asked by its methods, without any protocol in between."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant
from repeater.brokers.contract import Page
from repeater.brokers.receipts import Answer
from repeater.errors import FORCE_DISCONNECT, BrokerError, Disconnect, ReplyError
from repeater.fanout.hub import Hub
from repeater.fanout.intake import Intake
from repeater.fanout.listener import Listener
from repeater.fanout.outbox import BacklogRoom, Outbox
from repeater.fanout.repeater import Repeater
from repeater.node import Node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import PLAIN_ASGI
from repeater.publication import Publication, StreamPosition
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.brokers import ForwardingBroker
from tests.conversation import talking

KEEPING = NodeOptions(channel=ChannelOptions(presence=True))
NOTHING_KEPT = NodeOptions(channel=ChannelOptions(history_size=0))


class SilentBroker(ForwardingBroker):
    """Publishes, and cannot read."""

    def history(self, *_: object, **__: object) -> Answer[Page]:
        raise BrokerError("down")


async def published(node: Node, count: int) -> StreamPosition:
    """Publish 1, 2, ... into `news`; the last one's position."""
    position = None
    for number in range(1, count + 1):
        position = await node.publish(Publication("news", b"%d" % number))
    assert position is not None
    return position


async def test_history_is_read_from_a_position() -> None:
    """All of it, what is after a position, the newest first, and the top alone."""
    async with open_test_node() as node:
        top = await published(node, 3)

        async def read(**how: object) -> list[bytes]:
            publications, at = await node.history("news", **how)  # type: ignore[arg-type]
            assert at == top
            return [one.data for one in publications]

        assert await read() == [b"1", b"2", b"3"]
        assert await read(since=StreamPosition(1, top.epoch)) == [b"2", b"3"]
        assert await read(since=StreamPosition(2, "")) == [b"3"]
        assert await read(limit=2, reverse=True) == [b"3", b"2"]
        assert await read(since=StreamPosition(2, top.epoch), reverse=True) == [b"1"]
        assert await read(limit=0) == []
        await node.remove_history("news")
        assert await read() == []


@pytest.mark.parametrize(
    ("since", "reverse", "code"),
    [
        (StreamPosition(1, "other"), False, 112),
        (StreamPosition(-1, ""), False, 107),
        (StreamPosition(2**64, ""), False, 107),
        (StreamPosition(0, ""), True, 107),
    ],
)
async def test_a_position_that_selects_nothing_is_refused(
    since: StreamPosition, reverse: bool, code: int
) -> None:
    """Another epoch is 112; a position that no stream can have is 107."""
    async with open_test_node() as node:
        await published(node, 1)
        with pytest.raises(ReplyError, match=str(code)):
            await node.history("news", since=since, reverse=reverse)


async def test_what_is_not_kept_is_not_available() -> None:
    """History and presence of a channel that keeps none are 108, an unknown namespace is 102."""
    async with open_test_node(NOTHING_KEPT) as node:
        for ask in (node.history, node.remove_history, node.presence, node.presence_stats):
            with pytest.raises(ReplyError, match="108"):
                await ask("news")
            with pytest.raises(ReplyError, match="102"):
                await ask("unknown:news")


async def test_presence_is_who_is_there() -> None:
    """Connections by id, and how many of them and of their users there are."""
    async with (
        open_test_node(KEEPING) as node,
        talking(node) as one,
        talking(node) as two,
    ):
        for talk in (one, two):
            await talk.subscribe("news")
        assert set(await node.presence("news")) == {one.client.id, two.client.id}
        assert await node.presence_stats("news") == (2, 1)


async def test_a_failing_broker_is_counted() -> None:
    """The failure reaches the caller, and the node counts it by what was asked."""
    async with open_test_node(broker=SilentBroker()) as node:
        with pytest.raises(BrokerError):
            await node.history("news")
        assert node.statistics().broker_errors == {"history": 1}


async def test_a_user_is_disconnected() -> None:
    """All connections of that user, or those that are chosen, with the code that is given."""
    async with (
        open_test_node() as node,
        connect(node, MemoryTransport()) as first,
        connect(node, MemoryTransport()) as second,
        connect(node, MemoryTransport()) as other,
    ):
        first.identify(ConnectionGrant("ann"))
        second.identify(ConnectionGrant("ann"))
        other.identify(ConnectionGrant("bob"))
        await node.disconnect("ann", client=first.id)
        await node.disconnect("ann", why=Disconnect(4000, "enough"), whitelist={first.id})
        ends = [one.end for one in (first, second, other)]
        assert ends == [FORCE_DISCONNECT, Disconnect(4000, "enough"), None]
        for client in (first, second):
            client.scope.cancel()


class RecordingListener(Listener):
    """A listener that belongs to nobody: fan-out needs nothing more."""

    __slots__ = ("lost",)

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(PLAIN_ASGI, outbox)
        self.positioned = True
        self.lost = 0

    def lose_position(self) -> None:
        self.lost += 1


async def test_fanout_needs_listeners_and_no_clients() -> None:
    """Hub, intake and repeater deliver to an outbox, and tell of a gap, without any client."""
    transport = MemoryTransport()
    async with trio.open_nursery() as nursery:
        room = BacklogRoom(nursery, limit=1_000, write_timeout=1)
        listener = RecordingListener(Outbox(transport, room, lambda _why: None))
        hub, intake = Hub(), Intake(100, 1 << 26, 1_000)
        channel = hub.listen("news", listener)
        nursery.start_soon(Repeater(hub, intake, 0.001).run)
        for offset in (1, 2, 5):
            intake.put_nowait(Publication("news", b"%d" % offset, offset=offset, epoch="e"))
        await wait_all_tasks_blocked()
        assert transport.sent == [b"1", b"2", b"5"]
        assert listener.lost == 1
        hub.leave(channel, listener)
        assert listener.ended
        assert not hub.channels
        intake.close()
