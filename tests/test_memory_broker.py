"""What every broker does. A new broker joins by one more entry in `BROKERS`."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.brokers.contract import Broker
from repeater.brokers.memory import MemoryBroker
from repeater.fanout.intake import Intake
from repeater.options import ChannelOptions
from repeater.publication import Announcement, ClientInfo, Publication, StreamPosition

MakeBroker = Callable[[], Broker]
BROKERS: dict[str, MakeBroker] = {"memory": lambda: MemoryBroker(idempotency_ttl=30)}
OPTIONS = ChannelOptions(history_size=3, history_ttl=60, history_meta_ttl=600)


@pytest.fixture(params=BROKERS)
def make(request: pytest.FixtureRequest) -> MakeBroker:
    return BROKERS[request.param]


@asynccontextmanager
async def running(make: MakeBroker, *, room: int = 8) -> AsyncIterator[tuple[Broker, Intake]]:
    broker, intake = make(), Intake(room, 65_536)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.run, intake)
        yield broker, intake
        nursery.cancel_scope.cancel()


async def take(intake: Intake) -> list[Publication]:
    """The publications that were handed on."""
    return [one for one in await intake.take_batch() if isinstance(one, Publication)]


def event(data: bytes = b"1", channel: str = "c") -> Publication:
    return Publication(channel, data)


class TestBroker:
    """The conformance suite."""

    async def test_offsets_count_from_one(self, make: MakeBroker) -> None:
        """Each channel counts 1, 2, 3 within one epoch; position and hand-over agree."""
        async with running(make) as (broker, intake):
            positions = [await broker.publish(event(), OPTIONS) for _ in range(3)]
            other = await broker.publish(event(channel="d"), OPTIONS)
            taken = await take(intake)
        assert [one and one.offset for one in positions] == [1, 2, 3]
        assert len({one and one.epoch for one in positions}) == 1
        assert other is not None
        assert other.offset == 1
        assert [StreamPosition(one.offset, one.epoch) for one in taken] == [*positions, other]
        assert all(one.epoch for one in taken)

    async def test_history_since_and_limit(self, make: MakeBroker) -> None:
        """History is what came after the position, oldest first, at most `limit`."""
        async with running(make) as (broker, _):
            for number in (b"1", b"2", b"3"):
                top = await broker.publish(event(number), OPTIONS)
            assert top is not None

            async def read(since: int | None = None, limit: int | None = None) -> list[bytes]:
                position = None if since is None else StreamPosition(since, top.epoch)
                found, at = await broker.history("c", OPTIONS, since=position, limit=limit)
                assert at == top
                return [one.data for one in found]

            assert await read() == [b"1", b"2", b"3"]
            assert await read(since=1) == [b"2", b"3"]
            assert await read(since=0, limit=2) == [b"1", b"2"]
            assert await read(limit=0) == []
            assert await read(since=3) == []
            assert await read(since=99) == []

    async def test_history_of_another_epoch(self, make: MakeBroker) -> None:
        """A position of another epoch selects nothing."""
        async with running(make) as (broker, _):
            top = await broker.publish(event(), OPTIONS)
            found, at = await broker.history("c", OPTIONS, since=StreamPosition(0, "other"))
            assert (tuple(found), at) == ((), top)

    async def test_history_is_bounded(self, make: MakeBroker) -> None:
        """Only the last `history_size` are kept; offsets go on."""
        async with running(make) as (broker, _):
            for number in range(1, 6):
                await broker.publish(event(b"%d" % number), OPTIONS)
            found, at = await broker.history("c", OPTIONS)
            assert [one.offset for one in found] == [3, 4, 5]
            found, at = await broker.history("c", OPTIONS, since=StreamPosition(1, at.epoch))
            assert [one.offset for one in found] == [3, 4, 5]

    async def test_history_of_an_unseen_channel(self, make: MakeBroker) -> None:
        """Looking makes the stream: offset 0 of the epoch that the first publication gets."""
        async with running(make) as (broker, _):
            found, at = await broker.history("c", OPTIONS)
            assert (tuple(found), at.offset) == ((), 0)
            assert at.epoch
            assert await broker.publish(event(), OPTIONS) == StreamPosition(1, at.epoch)

    async def test_history_expires(self, make: MakeBroker, autojump_clock: MockClock) -> None:
        """After the TTL of the newest the publications are gone; offset and epoch stay."""
        async with running(make) as (broker, _):
            await broker.publish(event(), OPTIONS)
            await trio.sleep(59)
            assert len((await broker.history("c", OPTIONS))[0]) == 1
            top = await broker.publish(event(), OPTIONS)
            await trio.sleep(59)
            assert len((await broker.history("c", OPTIONS))[0]) == 2
            await trio.sleep(1)
            assert await broker.history("c", OPTIONS) == ((), top)
            assert top is not None
            assert await broker.publish(event(), OPTIONS) == StreamPosition(3, top.epoch)
            assert len((await broker.history("c", OPTIONS))[0]) == 1

    async def test_meta_expires(self, make: MakeBroker, autojump_clock: MockClock) -> None:
        """After the meta TTL the numbering begins again, in a new epoch."""
        async with running(make) as (broker, _):
            first = await broker.publish(event(), OPTIONS)
            await trio.sleep(598)
            assert (await broker.history("c", OPTIONS))[1] == first
            await trio.sleep(4)
            second = await broker.publish(event(), OPTIONS)
        assert first is not None
        assert second is not None
        assert second.offset == 1
        assert second.epoch != first.epoch

    async def test_idempotency_key(self, make: MakeBroker, autojump_clock: MockClock) -> None:
        """A repeated key gets the first result and publishes nothing, until it expires."""
        async with running(make) as (broker, intake):
            first = await broker.publish(event(), OPTIONS, idempotency_key="k")
            assert await broker.publish(event(), OPTIONS, idempotency_key="k") == first
            assert len(intake) == 1
            other = await broker.publish(event(channel="d"), OPTIONS, idempotency_key="k")
            assert other is not None
            assert len(intake) == 2
            await trio.sleep(31)
            third = await broker.publish(event(), OPTIONS, idempotency_key="k")
            assert third is not None
            assert third.offset == 2

    async def test_idempotency_key_without_history(self, make: MakeBroker) -> None:
        """A result that is None is remembered like any other."""
        async with running(make) as (broker, intake):
            for _ in range(2):
                assert (
                    await broker.publish(event(), OPTIONS, idempotency_key="k", skip_history=True)
                    is None
                )
            assert len(intake) == 1

    async def test_skip_history(self, make: MakeBroker) -> None:
        """A skipped publication is handed on without number and is not kept."""
        async with running(make) as (broker, intake):
            await broker.publish(event(b"1"), OPTIONS)
            assert await broker.publish(event(b"2"), OPTIONS, skip_history=True) is None
            assert [one.offset for one in await take(intake)] == [1, 0]
            found, at = await broker.history("c", OPTIONS)
            assert [one.data for one in found] == [b"1"]
            assert at.offset == 1

    async def test_no_history_at_all(self, make: MakeBroker) -> None:
        """With a history size of 0 nothing is numbered."""
        options = msgspec.structs.replace(OPTIONS, history_size=0)
        async with running(make) as (broker, intake):
            assert await broker.publish(event(), options) is None
            assert [one.offset for one in await take(intake)] == [0]

    async def test_full_intake_makes_publishers_wait(self, make: MakeBroker) -> None:
        """Without room a publisher waits, and nothing is numbered before it has room."""
        async with running(make, room=1) as (broker, intake), trio.open_nursery() as nursery:
            await broker.publish(event(b"1"), OPTIONS)
            nursery.start_soon(broker.publish, event(b"2"), OPTIONS)
            await wait_all_tasks_blocked()
            assert (await broker.history("c", OPTIONS))[1].offset == 1
            await intake.take_batch()
            await wait_all_tasks_blocked()
            assert [one.data for one in await take(intake)] == [b"2"]

    async def test_cancelled_publisher_published_nothing(self, make: MakeBroker) -> None:
        """Cancelled while it waits for room: no number, no history, no hand-over, no key."""
        async with running(make, room=1) as (broker, intake):
            first = await broker.publish(event(b"1"), OPTIONS)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def publish() -> None:
                        await broker.publish(event(b"2"), OPTIONS, idempotency_key="k")

                    nursery.start_soon(publish)
                    await wait_all_tasks_blocked()
                    scope.cancel()
            assert len(await intake.take_batch()) == 1
            found, at = await broker.history("c", OPTIONS)
            assert ([one.data for one in found], at) == ([b"1"], first)
            second = await broker.publish(event(b"3"), OPTIONS, idempotency_key="k")
            assert second is not None
            assert second.offset == 2

    async def test_closed_intake_keeps_nothing(self, make: MakeBroker) -> None:
        """A publication that the closing node refuses is not in history either."""
        async with running(make) as (broker, intake):
            intake.close()
            with pytest.raises(trio.ClosedResourceError):
                await broker.publish(event(), OPTIONS)
            assert (await broker.history("c", OPTIONS))[1].offset == 0

    async def test_concurrent_publishers_keep_one_order(self, make: MakeBroker) -> None:
        """However many publish at once, hand-over and history have the same order."""
        options = msgspec.structs.replace(OPTIONS, history_size=100)
        taken: list[int] = []
        async with running(make, room=4) as (broker, intake):
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(broker.publish, event(b"%d" % number), options)
                while len(taken) < 50:
                    taken += [one.offset for one in await take(intake)]
            assert taken == list(range(1, 51))
            assert [one.offset for one in (await broker.history("c", options))[0]] == taken

    async def test_reverse(self, make: MakeBroker) -> None:
        """Newest first, those before the position, at most `limit`."""
        async with running(make) as (broker, _):
            for number in range(1, 6):
                top = await broker.publish(event(b"%d" % number), OPTIONS)
            assert top is not None

            async def read(since: int | None, limit: int | None) -> list[int]:
                position = None if since is None else StreamPosition(since, top.epoch)
                found, at = await broker.history(
                    "c", OPTIONS, since=position, limit=limit, reverse=True
                )
                assert at == top
                return [one.offset for one in found]

            assert await read(None, None) == [5, 4, 3]
            assert await read(None, 2) == [5, 4]
            assert await read(5, None) == [4, 3]
            assert await read(5, 1) == [4]
            assert await read(3, None) == []
            assert await read(99, None) == [5, 4, 3]
            assert await read(0, None) == []

    async def test_removed_history(self, make: MakeBroker) -> None:
        """The publications are gone, the numbers go on; an unseen channel has nothing to remove."""
        async with running(make) as (broker, _):
            await broker.remove_history("unseen")
            top = await broker.publish(event(), OPTIONS)
            assert top is not None
            await broker.remove_history("c")
            assert await broker.history("c", OPTIONS) == ((), top)
            assert await broker.publish(event(b"2"), OPTIONS) == StreamPosition(2, top.epoch)
            found, _ = await broker.history("c", OPTIONS, since=StreamPosition(0, top.epoch))
            assert [one.offset for one in found] == [2]

    async def test_history_size_follows_the_options(self, make: MakeBroker) -> None:
        """With the next publication a channel keeps as many as its options say by then."""
        async with running(make) as (broker, _):
            for size, kept in ((3, [1]), (3, [1, 2]), (1, [3]), (4, [3, 4])):
                options = msgspec.structs.replace(OPTIONS, history_size=size)
                await broker.publish(event(), options)
                found, _ = await broker.history("c", options)
                assert [one.offset for one in found] == kept

    async def test_announcement(self, make: MakeBroker) -> None:
        """A join is handed on in its turn, is in no history, and waits for room like the rest."""
        async with running(make, room=2) as (broker, intake), trio.open_nursery() as nursery:
            joined = Announcement("c", ClientInfo("ann", "1"), joined=True)
            await broker.publish(event(b"1"), OPTIONS)
            await broker.announce(joined)
            nursery.start_soon(broker.announce, joined)
            await wait_all_tasks_blocked()
            assert len(intake) == 2
            first, second = await intake.take_batch()
            assert (first.data, second) == (b"1", joined)
            assert await intake.take_batch() == [joined]
            found, top = await broker.history("c", OPTIONS)
            assert (len(found), top.offset) == (1, 1)

    async def test_what_travels_is_kept(self, make: MakeBroker) -> None:
        """Tags, info and the wish for a difference are in history as they were published."""
        async with running(make) as (broker, intake):
            info = ClientInfo("ann", "1", msgspec.Raw(b"{}"))
            sent = Publication("c", b"1", tags={"k": "v"}, info=info, delta=True)
            await broker.publish(sent, OPTIONS)
            (taken,) = await take(intake)
            ((kept,), top) = await broker.history("c", OPTIONS)
            assert kept == taken
            assert kept == msgspec.structs.replace(sent, offset=1, epoch=top.epoch)

    async def test_any_page(self, make: MakeBroker) -> None:
        """Whatever is kept and asked for: the right ones, in the right order, and the top."""
        chance = random.Random(1)
        async with running(make, room=10_000) as (broker, _):
            options, published = msgspec.structs.replace(OPTIONS, history_size=1_500), 0
            for _ in range(200):
                for _ in range(chance.choice((0, 1, 50))):
                    await broker.publish(event(), options)
                    published += 1
                if chance.random() < 0.02:
                    await broker.remove_history("c")
                    options = msgspec.structs.replace(
                        options, history_size=chance.choice((5, 1_200))
                    )
                found, top = await broker.history("c", options)
                kept = [one.offset for one in found]
                assert kept == list(range(published - len(kept) + 1, published + 1))
                since = chance.randint(0, published + 2)
                limit = chance.choice((None, 0, 1, 7, 1_100))
                for reverse in (False, True):
                    found, at = await broker.history(
                        "c",
                        options,
                        since=StreamPosition(since, top.epoch),
                        limit=limit,
                        reverse=reverse,
                    )
                    wanted = [one for one in kept if (one < since if reverse else one > since)]
                    wanted = wanted[::-1] if reverse else wanted
                    assert [one.offset for one in found] == wanted[:limit]
                    assert at == top


async def test_what_expired_is_forgotten(autojump_clock: MockClock) -> None:
    """After the meta TTL nothing of a channel or of an idempotency key is held any more."""
    async with running(lambda: MemoryBroker(idempotency_ttl=30)) as (broker, _):
        assert isinstance(broker, MemoryBroker)
        for number in range(5):
            await broker.publish(event(channel=f"c{number}"), OPTIONS, idempotency_key="k")
        await broker.history("only read", OPTIONS)
        await trio.sleep(700)
        assert not broker._streams
        assert not broker._due
        assert not broker._results


async def test_stream_that_is_published_into_lives_on(autojump_clock: MockClock) -> None:
    """Each publication moves both expiries; the sweep finds each stream again."""
    async with running(lambda: MemoryBroker(), room=100) as (broker, _):
        epochs = set()
        for _ in range(20):
            position = await broker.publish(event(), OPTIONS)
            assert position is not None
            epochs.add(position.epoch)
            await trio.sleep(500)
        assert len(epochs) == 1
        assert position == StreamPosition(20, *epochs)
        await trio.sleep(200)
        assert isinstance(broker, MemoryBroker)
        assert not broker._streams
