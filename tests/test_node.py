"""The node: what it refuses, how it ends, and that nothing is left."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.api.methods import call
from repeater.brokers.contract import Outcome
from repeater.brokers.receipts import Answer, Receipt
from repeater.errors import SHUTDOWN, BrokerError, IntakeFullError, ReplyError
from repeater.options import NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import Publication, StreamPosition
from repeater.testing import MemoryTransport, StallingTransport, connect, open_test_node
from tests.brokers import ForwardingBroker, LateAnswers


class StuckBroker(ForwardingBroker):
    """Never has room."""

    def submit(self, *_: object, **__: object) -> Answer[Outcome]:
        raise trio.WouldBlock

    async def wait_room(self) -> None:
        await trio.sleep_forever()


class CrashingBroker(StuckBroker):
    """Crashes at once."""

    async def run(self, intake: object) -> None:
        raise ZeroDivisionError


async def test_publish_timeout(autojump_clock: MockClock) -> None:
    """Without room for the publish timeout a publisher is told to try later."""
    async with open_test_node(NodeOptions(publish_timeout=3), broker=StuckBroker()) as node:
        start = trio.current_time()
        with pytest.raises(IntakeFullError):
            await node.publish(Publication("c", b"1"))
        assert trio.current_time() - start == pytest.approx(3)


async def test_publish_timeout_of_a_network_broker(autojump_clock: MockClock) -> None:
    """If a broker that waits for a network is late, nobody claims that nothing was published."""
    broker, transport = LateAnswers(), MemoryTransport()
    async with open_test_node(NodeOptions(publish_timeout=3), broker=broker) as node:
        async with connect(node, transport, ["c"]):
            start = trio.current_time()
            with pytest.raises(BrokerError, match="may have happened"):
                await node.publish(Publication("c", b"1"))
            assert trio.current_time() - start == pytest.approx(3)
            broker.answer()  # Nobody waits for it any more.
        assert transport.sent == [b"1"]
        assert node.statistics().broker_errors == {"publish": 1}
        assert node.statistics().refused == 0


async def test_room_and_answer_have_a_deadline_each(autojump_clock: MockClock) -> None:
    """A publisher may wait for room nearly as long as it may, and then as long for the answer."""
    broker = LateAnswers()
    options = NodeOptions(publish_timeout=3, intake_limit=1)
    async with open_test_node(options, broker=broker) as node, trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()  # the broker runs
        first = node.submit(Publication("c", b"1"))
        start = trio.current_time()
        with pytest.raises(BrokerError, match="may have happened"):
            await node.publish(Publication("c", b"2"))
        assert trio.current_time() - start == pytest.approx(3)
        nursery.start_soon(node.publish, Publication("c", b"3"))
        await trio.sleep(2.9)
        broker.answer()
    assert isinstance(first, Receipt)
    assert first.settled
    assert broker.asked == ["1", "2", "3"]


@pytest.mark.parametrize("channel", ["", "x" * 256, "é", "a\nb", "a\x00"])
async def test_bad_channel_is_refused(channel: str) -> None:
    """An invalid name gets error 107."""
    async with open_test_node() as node:
        with pytest.raises(ReplyError, match="107"):
            await node.publish(Publication(channel, b"1"))


async def test_submit() -> None:
    """Publishes at once, or not at all: full, invalid and shutting down are told apart."""
    event = Publication("news", b"1")
    transport = MemoryTransport()
    async with open_test_node(NodeOptions(intake_limit=2)) as node:
        async with connect(node, transport, ["news"]):
            await wait_all_tasks_blocked()  # the broker runs
            first, second = node.submit(event), node.submit(event)
            assert isinstance(first, StreamPosition)
            assert isinstance(second, StreamPosition)
            assert (first.offset, second.offset) == (1, 2)
            with pytest.raises(trio.WouldBlock):
                node.submit(event)
            await wait_all_tasks_blocked()
            assert transport.sent == [b"1", b"1"]
            third = node.submit(event)
            assert isinstance(third, StreamPosition)
            assert third.offset == 3  # the refused one was not numbered
        with pytest.raises(ReplyError):
            node.submit(Publication("", b"1"))
        node._intake.close()
        with pytest.raises(IntakeFullError):
            node.submit(event)
        with pytest.raises(IntakeFullError):
            await node.wait_room()
        assert node.statistics().refused == 2
    async with open_test_node(broker=StuckBroker()) as node:
        with pytest.raises(trio.WouldBlock):
            node.submit(event)


async def test_publish_after_the_end_of_taking() -> None:
    """A draining node takes nothing: the publisher is told to try elsewhere or later."""
    async with open_test_node() as node:
        await node.shut_down()
        with pytest.raises(IntakeFullError):
            await node.publish(Publication("c", b"1"))


async def test_accepted_is_delivered_at_shutdown() -> None:
    """What was accepted is fanned out before the clients are asked to leave."""
    transport = MemoryTransport()
    async with open_test_node() as node, connect(node, transport, ["c"]):
        for number in range(50):
            await node.publish(Publication("c", b"%d" % number))
        await node.shut_down()
        await trio.lowlevel.checkpoint()
    assert transport.sent == [b"%d" % number for number in range(50)]
    assert transport.closed_with == SHUTDOWN


async def test_shutdown_is_paced(autojump_clock: MockClock) -> None:
    """Clients are asked in groups, a pause apart, and all with 3001."""
    options = NodeOptions(shutdown_group=2, shutdown_pause=0.5, shutdown_timeout=100)
    times: list[float] = []
    transports = [MemoryTransport() for _ in range(6)]
    async with open_test_node(options) as node, trio.open_nursery() as nursery:

        async def hold(transport: MemoryTransport) -> None:
            async with connect(node, transport, ["c"]):
                await trio.sleep(1_000)
            times.append(trio.current_time() - start)

        for transport in transports:
            nursery.start_soon(hold, transport)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        await node.shut_down()
    assert times == pytest.approx([0, 0, 0.5, 0.5, 1, 1])
    assert all(transport.closed_with == SHUTDOWN for transport in transports)


async def test_shutdown_twice_is_once() -> None:
    """A second `shut_down` returns and changes nothing."""
    async with open_test_node() as node:
        await node.shut_down()
        await node.shut_down()
        assert node.statistics().draining


async def test_goodbye_has_a_deadline(autojump_clock: MockClock) -> None:
    """A client that reads nothing does not hold its handler past the close timeout."""
    transport = StallingTransport()
    async with open_test_node(NodeOptions(close_timeout=2)) as node:
        async with connect(node, transport, ["c"]) as client:
            client.outbox.send(b"x")
            start = trio.current_time()
            client.disconnect(SHUTDOWN)
        assert trio.current_time() - start == pytest.approx(2)
        assert transport.aborted
        assert not transport.released


async def test_orderly_end_releases() -> None:
    """A client that leaves by itself is released, not reset, and counted as 3000."""
    transport = MemoryTransport()
    async with open_test_node() as node:
        async with connect(node, transport, ["c"]):
            pass
        assert transport.released
        assert not transport.aborted
        assert transport.closed_with is None
        assert node.statistics().ended == {3000: 1}


async def test_crash_ends_the_node_at_once(autojump_clock: MockClock) -> None:
    """A bug in one of the node's tasks ends the block, without the shutdown's patience."""
    start = trio.current_time()
    with pytest.raises(ExceptionGroup) as caught:
        async with open_test_node(broker=CrashingBroker()):
            await trio.sleep_forever()
    assert caught.group_contains(ZeroDivisionError)
    assert trio.current_time() - start < 1


async def test_cancelled_block_ends_at_once(autojump_clock: MockClock) -> None:
    """With nobody connected, a cancelled node does not wait for its shutdown's deadline."""
    start = trio.current_time()
    with trio.CancelScope() as scope:
        async with open_test_node():
            scope.cancel()
            await trio.sleep_forever()
    assert trio.current_time() - start < 1


async def test_ten_thousand_leave_at_once() -> None:
    """A crowd that leaves together leaves nothing: no client, channel, turn or task."""
    async with open_test_node() as node:
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living

        async def hold() -> None:
            async with connect(node, MemoryTransport(), ["c"]):
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for _ in range(10_000):
                nursery.start_soon(hold)
            await wait_all_tasks_blocked()
            assert node.statistics().subscriptions == 10_000
            nursery.cancel_scope.cancel()
        assert not node.registry.clients
        assert not node.hub.channels
        assert not node.heartbeat._slots
        assert trio.lowlevel.current_statistics().tasks_living == tasks


LONG = "k" * 256


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("publication", "key"),
    [
        (Publication("c", b"1"), LONG),
        (Publication("c", b"1", version=1, version_epoch=LONG), ""),
        (Publication("c", b"1", tags={"a": "1", LONG: "2"}), ""),
    ],
)
async def test_texts_that_are_kept_are_short(
    publication: Publication, key: str, at_once: bool
) -> None:
    """An idempotency key, version epoch or tag name above 255 characters is error 107."""
    async with open_test_node() as node:

        async def publish(publication: Publication, key: str) -> Answer[Outcome]:
            if at_once:
                await wait_all_tasks_blocked()  # the broker runs
                return node.submit(publication, idempotency_key=key)
            return await node.publish(publication, idempotency_key=key)

        with pytest.raises(ReplyError, match="107"):
            await publish(publication, key)
        good = Publication("c", b"1", tags={LONG[1:]: LONG * 10}, version=1, version_epoch=LONG[1:])
        position = await publish(good, LONG[1:])
        assert isinstance(position, StreamPosition)
        assert position.offset == 1


@pytest.mark.parametrize("version", [-1, 2**64])
async def test_a_version_has_64_bits(version: int) -> None:
    """A version that no engine could keep is error 107; the largest one is accepted."""
    async with open_test_node() as node:
        with pytest.raises(ReplyError, match="107"):
            await node.publish(Publication("c", b"1", version=version))
        position = await node.publish(Publication("c", b"1", version=2**64 - 1))
        assert position is not None
        assert position.offset == 1
        answer = await call(node, "publish", b'{"channel":"c","data":1,"version":%d}' % version)
        assert answer.status in (200, 400)
        assert b"offset" not in answer.body


@pytest.mark.parametrize("data", [b"hello", b"hello\nworld", b"[" * 60_000, b'"\xff"'])
async def test_data_that_is_not_json(data: bytes) -> None:
    """It is the caller's error 107; no subscriber gets a broken frame, and the node lives on."""
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    async with open_test_node() as node, connect(node, transport, ["c"]):
        await wait_all_tasks_blocked()  # the broker runs
        with pytest.raises(ReplyError, match="107"):
            await node.publish(Publication("c", data))
        with pytest.raises(ReplyError, match="107"):
            node.submit(Publication("c", data))
        await node.publish(Publication("c", b'{\n"a": 1}'))
        await wait_all_tasks_blocked()
        (push,) = transport.sent
        assert b'"data":{"a": 1}' in push
