"""The bounded queue between brokers and repeater."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Sequence
from time import perf_counter

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from repeater.brokers.memory import MemoryBroker
from repeater.fanout.intake import Intake
from repeater.options import ChannelOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON
from repeater.publication import (
    EVENT_OVERHEAD,
    Announcement,
    ClientInfo,
    Event,
    Publication,
    weight_of,
)
from repeater.testing import StallingTransport, connect, open_test_node

WEIGHT = EVENT_OVERHEAD + 2
"""Of `publication()`: a channel's name and data of one byte each."""
PLENTY = 1_000_000


def publication(number: int = 0, size: int = 1) -> Publication:
    return Publication("c", b"x" * size, offset=number)


def new_intake(events: int, *, size: int = PLENTY, batch: int = PLENTY) -> Intake:
    return Intake(events, size, batch)


def offset_of(event: Event) -> int:
    assert isinstance(event, Publication)
    return event.offset


async def test_batches_keep_the_order() -> None:
    """A batch is everything waiting, oldest first."""
    intake = new_intake(10)
    for number in range(5):
        intake.put_nowait(publication(number))
    assert [offset_of(one) for one in await intake.take_batch()] == [0, 1, 2, 3, 4]
    assert len(intake) == 0


async def test_batch_is_bounded_in_bytes() -> None:
    """A publication that would pass the limit begins the next batch; one too big goes alone."""
    intake = new_intake(10, batch=2 * WEIGHT + 100)
    for size in (51, 51, 1, 5_000, 1):
        intake.put_nowait(publication(size=size))
    assert [len(await intake.take_batch()) for _ in range(4)] == [2, 1, 1, 1]
    assert intake.bytes == 0


async def test_full_refuses() -> None:
    """Without room `put_nowait` raises WouldBlock and keeps nothing."""
    intake = new_intake(1)
    intake.put_nowait(publication())
    with pytest.raises(trio.WouldBlock):
        intake.put_nowait(publication())
    assert len(intake) == 1


async def test_publishers_wait_for_room_in_order() -> None:
    """Those who wait get their room in the order in which they came."""
    intake, order = new_intake(1), []

    async def publish(number: int) -> None:
        await intake.wait_room()
        intake.put_nowait(publication(number))
        order.append(number)

    intake.put_nowait(publication())
    async with trio.open_nursery() as nursery:
        for number in range(1, 5):
            nursery.start_soon(publish, number)
            await wait_all_tasks_blocked()
        for _ in range(4):
            await intake.take_batch()
            await wait_all_tasks_blocked()
    assert order == [1, 2, 3, 4]


async def test_full_in_bytes() -> None:
    """The intake is full once its events weigh the limit, however few they are."""
    intake = new_intake(1_000, size=10 * WEIGHT)
    for _ in range(10):
        intake.put_nowait(publication())
    assert intake.bytes == 10 * WEIGHT
    with pytest.raises(trio.WouldBlock):
        intake.check_room()
    with trio.move_on_after(0.01) as waiting:
        await intake.wait_room()
    assert waiting.cancelled_caught
    await intake.take_batch()
    assert intake.bytes == 0
    await intake.wait_room()


async def test_one_event_of_any_size_fits() -> None:
    """An event that is larger than the limit is taken when there is room, and the next waits."""
    intake = new_intake(1_000, size=1_000)
    intake.put_nowait(publication(size=50_000))
    with pytest.raises(trio.WouldBlock):
        intake.put_nowait(publication())
    assert len(await intake.take_batch()) == 1
    intake.put_nowait(publication())


@pytest.mark.parametrize(
    ("event", "texts"),
    [
        (Publication("c", b"x" * 100), 101),
        (Publication("c", b"", tags={"k" * 300: "v" * 500}), 801),
        (Publication("c", b"", tags={"k": "\x01" * 500}), 6 * 500),
        (Publication("c", b"", info=ClientInfo("u" * 100, "c" * 100)), 201),
        (Publication("c", b"", info=ClientInfo("", "", msgspec.Raw(b"i" * 900))), 901),
        (Publication("c", b"", info=ClientInfo("", "", None, msgspec.Raw(b"i" * 900))), 901),
        (Publication("c", b"", version=1, version_epoch="e" * 700), 701),
        (Announcement("c", ClientInfo("u", "c", msgspec.Raw(b"i" * 900)), joined=True), 903),
    ],
)
def test_an_event_weighs_all_its_texts(event: Event, texts: int) -> None:
    """Data, tags, infos and names count, with something for each event; not much more does."""
    assert texts + EVENT_OVERHEAD <= weight_of(event) <= texts + 3 * EVENT_OVERHEAD


@pytest.mark.parametrize("channels", [("c",), tuple("abcdefgh")])
async def test_a_batch_never_cuts_a_subscriber_in_step(channels: Sequence[str]) -> None:
    """The largest batch fits an outbox, whatever its events are made of: here their infos."""
    info = ClientInfo("u", "c", msgspec.Raw(b'"%s"' % (b"i" * 1_000)))
    transport = StallingTransport(CENTRIFUGE_JSON)
    async with open_test_node() as node, connect(node, transport, channels) as client:
        number = 0
        while node._intake.bytes < node.options.batch_limit:
            channel = channels[number % len(channels)]
            node._intake.put_nowait(Publication(channel, b'"0123456789abcd"', info=info))
            number += 1
        await wait_all_tasks_blocked()
        assert client.end is None
        assert number > 100
        assert number * 1_000 < client.outbox.backlog_bytes < node.options.outbox_limit / 2


async def test_newcomers_wait_behind_those_who_wait() -> None:
    """With room for some of those who wait, nobody who comes later goes first."""
    intake, order = new_intake(2), []

    async def publish(number: int) -> None:
        await intake.wait_room()
        intake.put_nowait(publication(number))
        order.append(number)

    intake.put_nowait(publication())
    intake.put_nowait(publication())
    async with trio.open_nursery() as nursery:
        for number in range(1, 4):
            nursery.start_soon(publish, number)
            await wait_all_tasks_blocked()
        await intake.take_batch()
        # The two that there is room for are woken, but have not run yet.
        with pytest.raises(trio.WouldBlock):
            intake.check_room()
        for number in range(4, 9):
            nursery.start_soon(publish, number)
        await wait_all_tasks_blocked()
        while len(intake):
            await intake.take_batch()
            await wait_all_tasks_blocked()
    assert order[:3] == [1, 2, 3]
    assert len(order) == 8


async def test_who_publishes_nothing_passes_its_place_on() -> None:
    """Woken publishers that put nothing, as for a repeated key, leave nobody asleep."""
    intake, served = new_intake(1), []

    async def publish(number: int, *, nothing: bool) -> None:
        await intake.wait_room()
        served.append(number)
        if not nothing:
            intake.put_nowait(publication(number))

    intake.put_nowait(publication())
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(functools.partial(publish, nothing=number < 19), number)
            await wait_all_tasks_blocked()
        await intake.take_batch()
        await wait_all_tasks_blocked()
        assert served == list(range(20))
        assert intake.publishers == 0


async def test_a_cancelled_publisher_passes_its_place_on() -> None:
    """A publisher that is cancelled in the turn in which it is woken lets nobody sleep."""
    intake, served = new_intake(1), []
    scopes = [trio.CancelScope() for _ in range(3)]

    async def publish(number: int) -> None:
        with scopes[number]:
            await intake.wait_room()
            served.append(number)

    intake.put_nowait(publication())
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(publish, number)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        await intake.take_batch()
    assert served == [1, 2]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 400), st.booleans()),
        st.tuples(st.just("take"), st.just(0), st.just(False)),
        st.tuples(st.just("cancel"), st.integers(0, 50), st.just(False)),
        st.tuples(st.just("run"), st.just(0), st.just(False)),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 4), st.integers(1, 4))
def test_the_line_of_publishers(
    steps: list[tuple[str, int, bool]], events: int, weights: int
) -> None:
    """Whatever happens: served in order, within the bounds, and nobody sleeps beside room.

    Publishers come, are cancelled, or put nothing when it is their turn; batches are taken.
    """
    heaviest = 400 + EVENT_OVERHEAD + 1

    async def check() -> None:
        intake = new_intake(events, size=weights * WEIGHT, batch=3 * WEIGHT)
        served: list[int] = []
        scopes: list[trio.CancelScope] = []
        put: list[int] = []

        async def publish(number: int, size: int, nothing: bool) -> None:
            with scopes[number]:
                await intake.wait_room()
                served.append(number)
                if not nothing:
                    intake.put_nowait(publication(number, size))
                    put.append(number)

        taken: list[int] = []
        async with trio.open_nursery() as nursery:
            for kind, value, nothing in steps:
                if kind == "publish":
                    scopes.append(trio.CancelScope())
                    nursery.start_soon(publish, len(scopes) - 1, value, nothing)
                    # Trio starts tasks in any order, so each comes to the line by itself.
                    await trio.lowlevel.checkpoint()
                elif kind == "take" and len(intake):
                    taken += [offset_of(one) for one in await intake.take_batch()]
                elif kind == "cancel" and value < len(scopes):
                    scopes[value].cancel()
                elif kind == "run":
                    await wait_all_tasks_blocked()
                    assert not intake.publishers or not intake._has_room()
                assert len(intake) <= events
                assert intake.bytes < weights * WEIGHT + heaviest
            await wait_all_tasks_blocked()
            while len(intake):
                taken += [offset_of(one) for one in await intake.take_batch()]
                await wait_all_tasks_blocked()
            assert not intake.publishers
            assert intake.bytes == intake._woken == 0
        assert served == sorted(served)
        assert taken == put

    trio.run(check)


@pytest.mark.parametrize("puts", [True, False])
async def test_a_turn_is_for_one_event(puts: bool) -> None:
    """Who was served, and used its turn or did not, waits behind the others the next time."""
    intake, order = new_intake(1), []

    async def put(number: int) -> None:
        try:
            intake.check_room()
        except trio.WouldBlock:
            await intake.wait_room()
            intake.check_room()
        intake.put_nowait(publication(number))
        order.append(number)

    async def served_before() -> None:
        await intake.wait_room()  # The last of the line, so nobody waits when it is served.
        intake.check_room()
        if puts:
            intake.put_nowait(publication(1))
        await again.wait()
        await put(3)

    again = trio.Event()
    intake.put_nowait(publication(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served_before)
        await wait_all_tasks_blocked()
        await intake.take_batch()
        await wait_all_tasks_blocked()
        if not puts:
            intake.put_nowait(publication(1))
        nursery.start_soon(put, 2)
        await wait_all_tasks_blocked()
        again.set()
        await intake.take_batch()  # The one that waits is woken, and both run in the next turn.
        await wait_all_tasks_blocked()
        await intake.take_batch()
        await wait_all_tasks_blocked()
    assert order == [2, 3]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("publish"), st.integers(1, 5)),
            st.tuples(st.sampled_from(["take", "run", "turn"]), st.just(0)),
        ),
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_nobody_overtakes_with_a_submission(steps: list[tuple[str, int]], room: int) -> None:
    """Publishers submit, wait for room where there is none, and submit again: the events are in the
    order in which they were submitted first, whoever published before and comes once more.
    """

    async def check() -> None:
        intake, broker = new_intake(room), MemoryBroker()
        options = ChannelOptions(history_size=0)
        numbers = itertools.count(1)
        taken: list[int] = []

        async def publish(count: int) -> None:
            for _ in range(count):
                event = publication(next(numbers))
                while True:
                    try:
                        broker.submit(event, options)
                    except trio.WouldBlock:
                        await broker.wait_room()
                    else:
                        break

        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.run, intake)
            await broker.wait_room()
            for kind, count in steps:
                if kind == "publish":
                    nursery.start_soon(publish, count)
                elif kind == "take" and len(intake):
                    taken += [offset_of(one) for one in await intake.take_batch()]
                elif kind == "run":
                    await wait_all_tasks_blocked()
                else:
                    await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()
            while len(intake):
                taken += [offset_of(one) for one in await intake.take_batch()]
                await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert taken == [*range(1, len(taken) + 1)]
        assert len(taken) == sum(count for kind, count in steps if kind == "publish")

    trio.run(check)


async def test_cancelled_publisher_leaves_nothing() -> None:
    """A wait that is cancelled takes no place in the queue."""
    intake = new_intake(1)
    intake.put_nowait(publication())
    with trio.CancelScope() as scope:
        scope.cancel()
        await intake.wait_room()
    assert scope.cancelled_caught
    assert len(await intake.take_batch()) == 1
    await intake.wait_room()
    assert len(intake) == 0


async def test_repeater_wakes_for_the_first_publication() -> None:
    """`take_batch` waits while nothing is there."""
    intake, batches = new_intake(4), []

    async def take() -> None:
        batches.append(await intake.take_batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        assert not batches
        intake.put_nowait(publication(7))
    assert [offset_of(one) for one in batches[0]] == [7]


async def test_close_lets_the_repeater_finish() -> None:
    """After `close` what waits is still taken, then comes the empty batch; puts are refused."""
    intake = new_intake(4)
    intake.put_nowait(publication())
    intake.close()
    with pytest.raises(trio.ClosedResourceError):
        intake.put_nowait(publication())
    assert len(await intake.take_batch()) == 1
    assert await intake.take_batch() == []


async def test_close_wakes_publishers() -> None:
    """A publisher that waits for room is told at once when the intake closes."""
    intake = new_intake(1)
    intake.put_nowait(publication())

    async def publish() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await intake.wait_room()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        intake.close()


async def test_age_of_the_oldest() -> None:
    """A batch says since when its oldest event waits: exactly, where the queue was empty."""
    intake = new_intake(10)
    before = perf_counter()
    intake.put_nowait(publication())
    after = perf_counter()
    intake.put_nowait(publication())
    await intake.take_batch()
    assert before <= intake.batch_since <= after
    intake.put_nowait(publication())
    await intake.take_batch()
    assert intake.batch_since >= after


@given(st.lists(st.integers(0, 5), max_size=30))
def test_age_is_bounded_by_the_batch_before(puts: list[int]) -> None:
    """An event that waited through others' batches counts from the last take before it came.

    Never later than it came, and never earlier than that take, or the empty queue's first event.
    """

    async def check() -> None:
        intake = new_intake(1_000, batch=2 * WEIGHT)
        came: deque[tuple[float, float]] = deque()  # earliest and latest that may be said
        taken = 0.0
        for number in [*puts, *([0] * sum(puts))]:
            for _ in range(number):
                earliest = taken if came else perf_counter()
                intake.put_nowait(publication())
                came.append((earliest, perf_counter()))
            if came:
                begin = perf_counter()
                batch = await intake.take_batch()
                earliest, latest = came[0]
                assert earliest <= intake.batch_since <= latest
                for _ in batch:
                    came.popleft()
                taken = begin
        assert not intake._marks

    trio.run(check)
