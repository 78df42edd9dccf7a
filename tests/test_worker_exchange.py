"""Several workers of one supervisor: nobody sees how many there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import Caller, Denial
from repeater.backend.contract import EventStatistics
from repeater.brokers.contract import BrokerStatistics, Outcome, Page
from repeater.brokers.memory_presence import MemoryPresence
from repeater.brokers.receipts import Answer, Receipt, settled
from repeater.errors import (
    CONNECTION_CLOSED,
    DISCONNECTED,
    SERVER_UNSUBSCRIBE,
    SHUTDOWN,
    ApplicationError,
    BrokerError,
    Disconnect,
    ErrorCode,
    ReplyError,
    Unsubscribed,
    open_service_nursery,
)
from repeater.options import ChannelOptions
from repeater.publication import Announcement, ClientInfo, Publication, Rupture
from repeater.workers import events as worker_events
from tests.brokers import ForwardingBroker, LateAnswers
from tests.worker_links import Worker, supervising, worker

pytestmark = pytest.mark.timeout(30)

OPTIONS = ChannelOptions(history_size=1_000)


class Told:
    """Implements `Events`: what the application is told, in its order."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def connected(self, caller: Caller) -> None:
        self.told.append(("connected", caller.client))

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        self.told.append(("disconnected", caller.client, why))

    def subscribed(self, caller: Caller, channel: str) -> None:
        self.told.append(("subscribed", caller.client, channel))

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        self.told.append(("unsubscribed", caller.client, channel, why))

    def channel_occupied(self, channel: str) -> None:
        self.told.append(("occupied", channel))

    def channel_vacated(self, channel: str) -> None:
        self.told.append(("vacated", channel))

    def shut_down_by(self, deadline: float) -> None:
        """Nothing is delivered here."""

    def statistics(self) -> EventStatistics:
        return EventStatistics(0, len(self.told), 3, 0, 0)

    def take(self) -> list[tuple[object, ...]]:
        told, self.told = self.told, []
        return told


async def test_two_workers_agree(autojump_clock: MockClock) -> None:
    """Each channel has one order and one row of numbers, whoever publishes and whoever hears."""
    async with supervising() as supervisor, worker(supervisor) as one, worker(supervisor) as two:
        for each in (one, two):
            await each.hold()
        positions = []

        async def publish(by: Worker, name: bytes) -> None:
            for number in range(50):
                publication = Publication("c", b'"%b%d"' % (name, number))
                positions.append(await by.broker.submit(publication, OPTIONS).wait())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, one, b"a")
            nursery.start_soon(publish, two, b"b")
        heard = await one.events(100)
        assert await two.events(100) == heard
        numbers = [event.offset for event in heard if isinstance(event, Publication)]
        assert numbers == [*range(1, 101)]
        assert sorted(one.offset for one in positions if one) == numbers
        found, _top = await two.broker.history("c", OPTIONS).wait()
        assert list(found) == heard


async def test_events_go_to_those_who_hold_the_channel(autojump_clock: MockClock) -> None:
    """A worker hears a channel from its hold to its release, and others hear it all the while."""
    async with supervising() as supervisor, worker(supervisor) as one, worker(supervisor) as two:
        await one.hold()
        await two.hold("other")
        await one.broker.submit(Publication("c", b"1"), OPTIONS).wait()
        await two.hold()
        await one.broker.submit(Publication("c", b"2"), OPTIONS).wait()
        two.broker.release("c")
        await two.broker.submit(Publication("c", b"3"), OPTIONS).wait()
        await two.broker.submit(Publication("other", b"4"), OPTIONS).wait()
        assert [event.data for event in await one.events(3)] == [b"1", b"2", b"3"]
        heard = await two.events(1)
        if len(heard) == 1:
            heard += await two.events(1)
        assert [event.data for event in heard] == [b"2", b"4"]


async def test_a_rupture_of_all_channels_reaches_all_workers(autojump_clock: MockClock) -> None:
    """A rupture without a channel goes to every worker, one of a channel to its holders."""
    async with supervising() as supervisor, worker(supervisor) as one, worker(supervisor) as two:
        await one.hold()
        sink = supervisor.exchange._shared.sink
        sink.put_nowait(Rupture("c"))
        sink.put_nowait(Rupture())
        assert await one.events(2) == [Rupture("c"), Rupture()]
        assert await two.events(1) == [Rupture()]


async def test_answers_do_not_wait_behind_events(autojump_clock: MockClock) -> None:
    """A worker whose intake is full gets answers all the same, and its events later, in order."""
    async with (
        supervising() as supervisor,
        worker(supervisor) as busy,
        worker(supervisor, room=1) as full,
    ):
        await full.hold()
        receipts = [
            busy.broker.submit(Publication("c", b"%d" % number), OPTIONS) for number in range(3_000)
        ]
        for receipt in receipts:
            await receipt.wait()
        await wait_all_tasks_blocked()
        assert len(full.intake) == 1
        await trio.sleep(30)  # Beats go on: nobody is silent.
        assert await full.link.presence.count("c").wait() == (0, 0)
        assert supervisor.given_up == {}
        with pytest.raises(trio.WouldBlock):  # as behind a full intake in one process
            full.broker.submit(Publication("c", b"1"), OPTIONS)
        heard = await full.events(3_000)
        assert [int(event.data) for event in heard] == [*range(3_000)]


async def test_reads_let_others_go_first(autojump_clock: MockClock) -> None:
    """Members and pages are read one in a pass of the loop: others publish between them."""
    happened, begun = list[str](), trio.Event()

    class Presence(MemoryPresence):
        def members(self, channel: str) -> Mapping[str, ClientInfo]:
            happened.append("members")
            begun.set()
            return super().members(channel)

    class Published(ForwardingBroker):
        def submit(self, *args: Any, **options: Any) -> Answer[Outcome]:
            happened.append("publish")
            return super().submit(*args, **options)

        def history(self, *args: Any, **options: Any) -> Answer[Page]:
            happened.append("page")
            return super().history(*args, **options)

    async with (
        supervising(Published(), presence=Presence()) as supervisor,
        worker(supervisor) as one,
        worker(supervisor) as two,
    ):
        reads: list[Receipt[Any]] = [one.link.presence.members("c") for _ in range(50)]
        reads += [one.broker.history("c", OPTIONS) for _ in range(50)]
        await begun.wait()
        await two.broker.submit(Publication("c", b"1"), OPTIONS).wait()
        for read in reads:
            await read.wait()
        assert happened.index("publish") < 50
        assert len(happened) == 101


async def test_the_window_bounds_what_is_under_way(autojump_clock: MockClock) -> None:
    """4,096 calls are under way at most; the next one waits for an answer, first come first."""
    broker = LateAnswers()
    async with supervising(broker) as supervisor, worker(supervisor) as one:
        receipts = [one.broker.submit(Publication("c", b"1"), OPTIONS) for _ in range(4_096)]
        with pytest.raises(trio.WouldBlock):
            one.broker.submit(Publication("c", b"1"), OPTIONS)
        served = []

        async def wait(number: int) -> None:
            await one.broker.wait_room()
            receipts.append(one.broker.submit(Publication("c", b"1"), OPTIONS))
            served.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(wait, number)
                await wait_all_tasks_blocked()
            assert served == []
            broker.answer()
        assert served == [0, 1, 2]
        await wait_all_tasks_blocked()
        broker.answer()
        for receipt in receipts:
            await receipt.wait()


async def test_bytes_under_way_are_bounded(autojump_clock: MockClock) -> None:
    """So are 8 MiB of them."""
    async with supervising(LateAnswers()) as supervisor, worker(supervisor) as one:
        large = Publication("c", b"1" * (4 << 20))
        for _ in range(2):
            one.broker.submit(large, OPTIONS)
        with pytest.raises(trio.WouldBlock):
            one.broker.submit(Publication("c", b"1"), OPTIONS)


@pytest.mark.parametrize(
    "error",
    [
        BrokerError("it failed"),
        ReplyError(ErrorCode.LIMIT_EXCEEDED),
        ApplicationError(4_321, "no", temporary=True),
    ],
)
async def test_an_engines_error_is_the_workers(
    autojump_clock: MockClock, error: BrokerError | ReplyError
) -> None:
    """A failure or a refusal of the engine reaches the publisher with all that it says."""
    broker = LateAnswers()
    async with supervising(broker) as supervisor, worker(supervisor) as one:
        receipt = one.broker.submit(Publication("c", b"1"), OPTIONS)
        await wait_all_tasks_blocked()
        broker.answer(error=error)
        with pytest.raises(type(error)) as raised:
            await receipt.wait()
        assert (str(raised.value), vars(raised.value)) == (str(error), vars(error))


async def test_the_supervisors_numbers_are_shown(autojump_clock: MockClock) -> None:
    """A worker shows its broker's and events' statistics within a second, and its outage."""

    class Down(LateAnswers):
        def outage(self) -> str:
            return "the disk is full"

        def statistics(self) -> BrokerStatistics:
            return BrokerStatistics(streams=5)

    async with supervising(Down(), events=Told()) as supervisor, worker(supervisor) as one:
        await trio.sleep(1.5)
        assert one.broker.outage() == one.link.outage() == "the disk is full"
        assert one.broker.statistics() == BrokerStatistics(streams=5)
        assert one.link.events.statistics() == EventStatistics(0, 0, 3, 0, 0)


async def test_channels_are_occupied_and_vacated_once(autojump_clock: MockClock) -> None:
    """The application hears of the first listener of all workers, and of the last."""
    told = Told()
    async with (
        supervising(events=told) as supervisor,
        worker(supervisor) as one,
        worker(supervisor) as two,
    ):
        await one.hold()
        await two.hold()
        assert supervisor.exchange.channels == 1
        one.broker.release("c")
        await one.hold("d")
        assert told.take() == [("occupied", "c"), ("occupied", "d")]
        two.broker.release("c")
        await two.hold("d")
        assert told.take() == [("vacated", "c")]


async def test_a_dead_workers_clients_are_taken_back(autojump_clock: MockClock) -> None:
    """Presence, leaves, and what the application is told: as if each client had ended."""
    told, presence = Told(), MemoryPresence()
    ann, bob = Caller("1", "websocket", "ann"), Caller("2", "sse", "bob")
    info, other = ClientInfo("ann", "1"), ClientInfo("bob", "2")
    async with supervising(presence=presence, events=told) as supervisor, worker(supervisor) as two:
        async with worker(supervisor) as one:
            for channel in ("c", "d"):
                await one.hold(channel)
                await two.hold(channel) if channel == "d" else None
                await one.link.presence.add(channel, info).wait()
            await one.link.presence.add("c", other).wait()
            await one.link.presence.remove("c", "2").wait()
            for joined in (info, other):
                one.broker.announce(Announcement("d", joined, joined=True))
            one.broker.announce(Announcement("d", other, joined=False))
            for caller in (ann, bob):
                one.link.events.connected(caller)
                one.link.events.subscribed(caller, "c")
            one.link.events.subscribed(ann, "d")
            one.link.events.unsubscribed(ann, "c", SERVER_UNSUBSCRIBE)
            one.link.events.disconnected(bob, SHUTDOWN)
            assert [event for event in await two.events(3) if isinstance(event, Announcement)]
            told.take()
            one.link._link.close("killed")
            await wait_all_tasks_blocked()
        assert told.take() == [
            ("unsubscribed", "1", "d", DISCONNECTED),
            ("disconnected", "1", CONNECTION_CLOSED),
            ("vacated", "c"),
        ]
        assert presence.count("c") == presence.count("d") == (0, 0)
        assert await two.events(1) == [Announcement("d", info, joined=False)]


async def test_the_application_is_told_in_one_order(autojump_clock: MockClock) -> None:
    """Each worker's events reach the supervisor in their order, with the holds between them."""
    told = Told()
    ann = Caller("1", "websocket", "ann", b'{"m":1}', {"x": "y"}, protocol="protobuf")
    async with supervising(events=told) as supervisor, worker(supervisor) as one:
        events = one.link.events
        events.connected(ann)
        held = one.broker.hold("c")
        events.channel_occupied("c")
        events.subscribed(ann, "c")
        await settled(held)
        events.unsubscribed(ann, "c", SERVER_UNSUBSCRIBE)
        one.broker.release("c")
        events.channel_vacated("c")
        events.disconnected(ann, SHUTDOWN)
        await one.hold("d")
        assert told.take() == [
            ("connected", "1"),
            ("occupied", "c"),
            ("subscribed", "1", "c"),
            ("unsubscribed", "1", "c", SERVER_UNSUBSCRIBE),
            ("vacated", "c"),
            ("disconnected", "1", SHUTDOWN),
            ("occupied", "d"),
        ]


async def test_events_are_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound events are dropped and counted, but the end of a known client never is."""
    monkeypatch.setattr(worker_events, "LIMIT", 1_000)
    told = Told()
    async with supervising(events=told) as supervisor, worker(supervisor) as one:
        callers = [Caller(f"{number}", "websocket") for number in range(100)]
        for caller in callers:
            one.link.events.connected(caller)
            one.link.events.subscribed(caller, "c")
        for caller in callers:
            one.link.events.disconnected(caller, SHUTDOWN)
        dropped = one.link.events.statistics().dropped
        await wait_all_tasks_blocked()
        heard = told.take()
        begun = [event[1] for event in heard if event[0] == "connected"]
        subscribed = [event[1] for event in heard if event[0] == "subscribed"]
        assert 0 < len(begun) < 100
        assert [event[1] for event in heard if event[0] == "disconnected"] == begun
        assert dropped == 3 + 200 - len(begun) - len(subscribed)  # 3 by the supervisor


async def test_a_broker_that_finishes_waits_for_its_events(autojump_clock: MockClock) -> None:
    """`finish` returns when all that was answered is in the intake, also where room is rare."""
    async with (
        supervising() as supervisor,
        worker(supervisor, room=1) as one,
        open_service_nursery() as nursery,
    ):
        await one.hold()
        receipts = [one.broker.submit(Publication("c", b"1"), OPTIONS)]
        await receipts[0].wait()
        await wait_all_tasks_blocked()
        sink = supervisor.exchange._shared.sink
        for _ in range(20):
            sink.put_nowait(Rupture("c"))
        finished = trio.Event()

        async def finish() -> None:
            await one.broker.finish()
            finished.set()

        nursery.start_soon(finish)
        for _ in range(20):
            await wait_all_tasks_blocked()
            assert not finished.is_set()
            assert len(await one.intake.take_batch()) == 1
        await finished.wait()
        assert len(one.intake) == 1
        with pytest.raises(trio.ClosedResourceError):
            one.broker.submit(Publication("c", b"1"), OPTIONS)


async def test_a_node_that_shuts_down_still_takes_events(autojump_clock: MockClock) -> None:
    """A worker that drains holds nobody up, though its intake is full and closed."""
    async with (
        supervising() as supervisor,
        worker(supervisor) as busy,
        worker(supervisor, room=1) as leaving,
    ):
        await leaving.hold()
        await busy.hold()
        large = Publication("c", b"1" * 100_000)
        for _ in range(40):
            await busy.broker.submit(large, OPTIONS).wait()
        leaving.intake.close()
        began = trio.current_time()
        for _ in range(200):
            await busy.broker.submit(large, OPTIONS).wait()
            await busy.intake.take_batch()
        assert trio.current_time() - began < 2
        assert supervisor.given_up == {}


async def test_what_is_no_call_on_the_broker_goes_on_after_its_end(
    autojump_clock: MockClock,
) -> None:
    """The node ends its broker before its clients: their departures are answered all the same."""
    async with supervising() as supervisor, worker(supervisor) as one:
        page = one.broker.history("c", OPTIONS)
        left = one.link.presence.remove("c", "1")
        one.scope.cancel()
        with pytest.raises(BrokerError, match="the broker has ended"):
            await page.wait()
        await left.wait()
        await one.link.presence.remove("c", "2").wait()


class KeptDenials:
    """Implements `DenialStore`: keeps what it is told in a list."""

    def __init__(self) -> None:
        self.kept: list[Denial] = [Denial(user="old")]
        self.fails = False
        self.swept: list[int] = []

    async def load(self) -> Sequence[Denial]:
        return tuple(self.kept)

    async def run(self, apply: Callable[[Denial], Awaitable[None]]) -> None:
        await trio.sleep_forever()

    async def save(self, denial: Denial) -> None:
        if self.fails:
            raise BrokerError("the disk is full")
        self.kept.append(denial)

    async def sweep(self, now: int) -> None:
        self.swept.append(now)


async def test_a_denial_reaches_all_workers_before_it_is_saved(autojump_clock: MockClock) -> None:
    """When `save` returns, every other worker has applied the change; its author does it itself."""
    store, applied = KeptDenials(), list[tuple[int, Denial]]()

    def applier(number: int) -> Callable[[Denial], Awaitable[None]]:
        async def apply(denial: Denial) -> None:
            await trio.sleep(0.1 * number)
            applied.append((number, denial))

        return apply

    async with (
        supervising(denials=store) as supervisor,
        worker(supervisor) as one,
        worker(supervisor) as two,
        worker(supervisor) as three,
        open_service_nursery() as nursery,
    ):
        for number, each in enumerate((one, two, three)):
            assert await each.link.denials.load() == [Denial(user="old")]
            nursery.start_soon(each.link.denials.run, applier(number))
        first, second = Denial(user="ann", expire_at=9), Denial(token_id="t", lifted=True)
        await one.link.denials.save(first)
        assert applied == [(1, first), (2, first)]
        await three.link.denials.save(second)
        assert applied[2:] == [(0, second), (1, second)]
        assert store.kept[1:] == [first, second]
        await two.link.denials.sweep(7)
        assert store.swept == [7]
        store.fails = True
        with pytest.raises(BrokerError, match="the disk is full"):
            await one.link.denials.save(first)
        assert len(applied) == 4


async def test_a_worker_that_does_not_answer_delays_a_denial_a_second(
    autojump_clock: MockClock,
) -> None:
    """A worker whose node is not there yet is waited for a second; it applies the change later."""
    applied: list[Denial] = []
    async with supervising(denials=KeptDenials()) as supervisor, worker(supervisor) as one:
        async with worker(supervisor) as late:
            began = trio.current_time()
            await one.link.denials.save(Denial(user="ann"))
            assert trio.current_time() - began == pytest.approx(1)

            async def apply(denial: Denial) -> None:
                applied.append(denial)

            async with open_service_nursery() as nursery:
                nursery.start_soon(late.link.denials.run, apply)
                await wait_all_tasks_blocked()
            assert applied == [Denial(user="ann")]
        began = trio.current_time()
        await one.link.denials.save(Denial(user="bob"))
        assert trio.current_time() == began
