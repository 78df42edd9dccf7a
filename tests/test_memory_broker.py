"""The broker in memory: it keeps the contract, and it forgets what expired."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from repeater.brokers.contract import BrokerStatistics
from repeater.brokers.memory import MemoryBroker
from repeater.fanout.intake import Intake
from repeater.fanout.recovery import recover
from repeater.options import ChannelOptions
from repeater.publication import Publication, StreamPosition, weight_of
from repeater.testing import check_broker

OPTIONS = ChannelOptions(history_size=3, history_ttl=60, history_meta_ttl=600)


@asynccontextmanager
async def open_broker() -> AsyncIterator[MemoryBroker]:
    yield MemoryBroker(idempotency_ttl=30)


@asynccontextmanager
async def running(broker: MemoryBroker, *, room: int = 8) -> AsyncIterator[MemoryBroker]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.run, Intake(room, 1 << 26, 1 << 18))
        await broker.wait_room()
        yield broker
        nursery.cancel_scope.cancel()


def event(channel: str = "c") -> Publication:
    return Publication(channel, b"1")


async def test_it_keeps_the_contract(autojump_clock: MockClock) -> None:
    """The conformance suite that is exported for everybody's brokers."""
    await check_broker(open_broker, idempotency_ttl=30)


async def test_what_expired_is_forgotten(autojump_clock: MockClock) -> None:
    """After the meta TTL nothing of a channel or of an idempotency key is held any more."""
    async with running(MemoryBroker(idempotency_ttl=30)) as broker:
        for number in range(5):
            broker.submit(event(f"c{number}"), OPTIONS, idempotency_key="k")
        broker.history("only read", OPTIONS)
        await trio.sleep(700)
        assert broker.statistics() == BrokerStatistics()
        assert not broker._streams._orders


async def test_stream_that_is_published_into_lives_on(autojump_clock: MockClock) -> None:
    """Each publication moves both expiries; the sweep finds each stream again."""
    async with running(MemoryBroker(), room=100) as broker:
        epochs = set()
        for _ in range(20):
            position = broker.submit(event(), OPTIONS)
            assert position is not None
            epochs.add(position.epoch)
            await trio.sleep(500)
        assert len(epochs) == 1
        assert position == StreamPosition(20, *epochs)
        await trio.sleep(200)
        assert broker.statistics().streams == 0


async def test_reading_keeps_nothing() -> None:
    """Whoever asks for names that nobody published to leaves nothing behind."""
    async with running(MemoryBroker()) as broker:
        for number in range(1_000):
            found, top = broker.history(f"guess{number}", OPTIONS)
            assert (found, top.offset) == ((), 0)
            broker.remove_history(f"guess{number}")
        assert broker.statistics() == BrokerStatistics()
        assert not broker._streams._orders


async def test_history_expires_at_its_time(autojump_clock: MockClock) -> None:
    """Read exactly `history_ttl` after the newest publication, history is empty; not before."""
    async with running(MemoryBroker()) as broker:
        begin = trio.current_time()
        broker.submit(event(), OPTIONS)
        await trio.sleep_until(begin + 60 - 0.001)
        assert len(broker.history("c", OPTIONS)[0]) == 1
        # The sweep is not here yet.
        broker._streams.sweep = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        await trio.sleep_until(begin + 60)
        found, top = broker.history("c", OPTIONS)
        assert (found, top.offset) == ((), 1)


def weight(size: int = 1) -> int:
    return weight_of(Publication("c", b"x" * size))


async def test_history_is_bounded_in_bytes() -> None:
    """The channel that was published to least recently loses its publications, oldest first."""
    options = ChannelOptions(history_size=100)
    async with running(MemoryBroker(history_bytes=10 * weight()), room=1_000) as broker:
        tops = {}
        for channel in "aaabbbccc":
            tops[channel] = broker.submit(event(channel), options)
        broker.submit(event("a"), options)
        assert broker.statistics().history_bytes == 10 * weight()
        broker.submit(event("c"), options)
        broker.submit(event("c"), options)
        kept = {}
        for channel in "abc":
            found, top = broker.history(channel, options)
            kept[channel] = [one.offset for one in found]
            assert top.epoch == (tops[channel] or top).epoch
        assert kept == {"a": [1, 2, 3, 4], "b": [3], "c": [1, 2, 3, 4, 5]}
        assert broker.statistics().history_bytes == 10 * weight()
        assert broker.statistics().dropped_publications == 2


async def test_the_newest_publication_is_kept() -> None:
    """A publication that is larger than the bound is kept alone, until the next one comes."""
    async with running(MemoryBroker(history_bytes=1_000), room=1_000) as broker:
        broker.submit(event("a"), OPTIONS)
        for channel in ("b", "c", "c"):
            broker.submit(Publication(channel, b"x" * 5_000), OPTIONS)
        found, top = broker.history("c", OPTIONS)
        assert [one.offset for one in found] == [2]
        assert top.offset == 2
        for channel in "ab":
            found, top = broker.history(channel, OPTIONS)
            assert (found, top.offset) == ((), 1)
        assert broker.statistics().history_bytes == weight(5_000)


async def test_streams_are_bounded_in_number() -> None:
    """The stream published to least recently is forgotten, one without publications first."""
    async with running(MemoryBroker(history_channels=3), room=1_000) as broker:
        first = {}
        for channel in "abc":
            first[channel] = broker.submit(event(channel), OPTIONS)
        broker.submit(event("a"), OPTIONS)
        broker.remove_history("c")
        broker.submit(event("d"), OPTIONS)  # "c" goes: it has nothing any more
        broker.submit(event("e"), OPTIONS)  # then "b", the oldest
        tops = {name: broker.history(name, OPTIONS)[1].offset for name in "abcde"}
        assert tops == {"a": 2, "b": 0, "c": 0, "d": 1, "e": 1}
        seen = broker.statistics()
        assert (seen.streams, seen.forgotten_streams) == (3, 2)
        assert seen.history_bytes == 4 * weight()


@pytest.mark.parametrize("before", [0, 1])
async def test_a_forgotten_stream_has_another_epoch(before: int) -> None:
    """A position from before a stream was forgotten recovers nothing, whatever its offset."""
    async with running(MemoryBroker(history_channels=1), room=1_000) as broker:
        positions = {}
        for _ in range(before):
            broker.submit(event("a"), OPTIONS)
        for _ in range(3):
            _, position = broker.history("a", OPTIONS)
            assert position.epoch not in positions
            positions[position.epoch] = position
            broker.submit(event("a"), OPTIONS)
            broker.submit(event("b"), OPTIONS)
            for old in positions.values():
                found, top = broker.history("a", OPTIONS, since=old)
                assert not found
                assert top.epoch != old.epoch


async def test_options_change_under_a_stream(autojump_clock: MockClock) -> None:
    """With other lifetimes and another size a stream goes on, and expires by the new ones."""
    short = ChannelOptions(history_size=1, history_ttl=10, history_meta_ttl=20)
    async with running(MemoryBroker(), room=1_000) as broker:
        for _ in range(3):
            broker.submit(event(), OPTIONS)
        broker.submit(event(), short)
        found, _ = broker.history("c", short)
        assert [one.offset for one in found] == [4]
        assert broker.statistics().history_bytes == weight()
        await trio.sleep(12)
        assert broker.statistics().history_bytes == 0
        broker.submit(event(), OPTIONS)
        await trio.sleep(30)
        assert broker.statistics().history_bytes == weight()
        broker.remove_history("c")
        broker.submit(event(), short)
        await trio.sleep(30)
        assert broker.statistics() == BrokerStatistics()
        assert not broker._streams._orders


async def test_results_are_bounded() -> None:
    """Beyond the bound the oldest key is forgotten, so it publishes again; the newest is not."""
    async with running(MemoryBroker(idempotency_bytes=10_000), room=1_000) as broker:
        for number in range(100):
            broker.submit(event(), OPTIONS, idempotency_key=f"{number}")
        seen = broker.statistics()
        assert 10 < seen.results < 20
        assert seen.results + seen.dropped_results == 100
        for key, offset in (("99", 100), ("0", 101)):
            position = broker.submit(event(), OPTIONS, idempotency_key=key)
            assert position is not None
            assert position.offset == offset
        broker.submit(event(), OPTIONS, idempotency_key="k" * 50_000)
        assert broker.statistics().results == 1


async def test_an_expired_result_is_replaced(autojump_clock: MockClock) -> None:
    """A key that is used again after its time counts once, for its whole new time."""
    async with running(MemoryBroker(idempotency_ttl=0.5), room=1_000) as broker:
        broker.submit(event(), OPTIONS, idempotency_key="k")
        await trio.sleep(0.6)
        position = broker.submit(event(), OPTIONS, idempotency_key="k")
        await trio.sleep(0.45)  # the sweep comes at 1.0
        assert broker.statistics().results == 1
        assert broker.submit(event(), OPTIONS, idempotency_key="k") == position
        await trio.sleep(1)
        assert broker._results.bytes == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["publish", "read", "remove", "sleep", "off"]),
            st.sampled_from("abcd"),
            st.integers(0, 3),
        ),
        max_size=80,
    )
)
def test_no_recovery_is_false(steps: list[tuple[str, str, int]]) -> None:
    """Whatever is published, dropped, forgotten or switched off: a position of a stream that missed
    something is never said to have missed nothing. And all counts are right at the end.
    """
    kinds = [
        ChannelOptions(history_size=size, history_ttl=5, history_meta_ttl=meta)
        for size in (1, 3)
        for meta in (8, 20)
    ]
    off = ChannelOptions(history_size=0)

    async def check() -> None:
        broker = MemoryBroker(history_bytes=4 * weight(), history_channels=3)
        heard: dict[str, list[bytes]] = {name: [] for name in "abcd"}
        positions: list[tuple[str, StreamPosition, int]] = []
        async with running(broker, room=1_000):
            for number, (step, channel, value) in enumerate(steps):
                data = b"%d" % number
                if step in ("publish", "off"):
                    options = kinds[value] if step == "publish" else off
                    heard[channel].append(data)
                    broker.submit(Publication(channel, data), options)
                elif step == "read":
                    _, top = broker.history(channel, kinds[value], limit=0)
                    positions.append((channel, top, len(heard[channel])))
                elif step == "remove":
                    broker.remove_history(channel)
                else:
                    await trio.sleep(value * 3)
            for channel, since, before in positions:
                found, top = broker.history(channel, kinds[0], since=since)
                joined = recover(since, found, top, ())
                if joined.recovered:
                    assert [one.data for one in joined.publications] == heard[channel][before:]
            streams = broker._streams
            orders = streams._orders.values()
            full = [one for order in orders for one in order.full.values()]
            bare = [one for order in orders for one in order.bare.values()]
            assert len(full) + len(bare) == len(streams) <= 3
            kept = [one for stream in full for one in stream.publications or ()]
            assert streams.bytes == sum(map(weight_of, kept)) <= 4 * weight() + 8
            assert all(stream.publications for stream in full)
            await trio.sleep(60)
            assert len(streams) == streams.bytes == 0

    trio.run(check, clock=MockClock(autojump_threshold=0))
