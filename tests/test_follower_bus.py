"""The bus of the engine: channels that are held, looked at, repaired and let go.

All of it runs on an engine in memory behind the real client, on the mock clock.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.brokers.receipts import Receipt, settled
from repeater.brokers.valkey import holds
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.brokers.valkey.bus import Bus, BusStatistics
from repeater.brokers.valkey.engine import Take
from repeater.brokers.valkey.heads import CHECK
from repeater.brokers.valkey.holds import LINGER
from repeater.brokers.valkey.outlet import Outlet
from repeater.brokers.valkey.values import Place, Read
from repeater.errors import BrokerError
from repeater.fanout.intake import Intake
from repeater.options import ChannelOptions
from repeater.publication import Event, Publication, Rupture
from repeater.valkey.pipe import Lost, Refused
from tests.memory_network import Network, open_network

OPTIONS = ChannelOptions(history_size=4, history_ttl=1e6, history_meta_ttl=1e6)
META, STREAM, BUS = b"repeater:m:c", b"repeater:s:c", b"repeater:c:c"


class Bench:
    """A node with the channel `c`, and a stranger who publishes without a node."""

    def __init__(self, network: Network, room: int) -> None:
        self.network = network
        self.broker = ValkeyBroker(network.servers("node"))
        self.other = ValkeyBroker(network.servers("other"))
        self.intake = Intake(room, 1_000_000, 1_000_000)
        self.others = Intake(1_000, 1_000_000, 1_000_000)

    async def publish(self, *data: bytes) -> None:
        """Publish by another node."""
        for one in data:
            answer = self.other.submit(Publication("c", one), OPTIONS)
            await settled(answer)

    async def told(self) -> list[str]:
        """What came to fan-out since the last time."""
        await trio.sleep(1)
        if not len(self.intake):
            return []
        return [_text(one) for one in await self.intake.take_batch()]

    def statistics(self) -> BusStatistics:
        return self.broker._bus.statistics()


def _text(event: Event) -> str:
    return "rupture" if isinstance(event, Rupture) else event.data.decode()


@asynccontextmanager
async def opened(room: int = 100) -> AsyncIterator[Bench]:
    """Two nodes on an engine that answers within 2 ms."""
    async with open_network(random.Random(1)) as network, trio.open_nursery() as nursery:
        network.lag = lambda: 0.001  # type: ignore[method-assign]
        bench = Bench(network, room)
        nursery.start_soon(bench.broker.run, bench.intake)
        nursery.start_soon(bench.other.run, bench.others)
        yield bench
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def holding(room: int = 100) -> AsyncIterator[Bench]:
    """The same; the channel is held."""
    async with opened(room) as bench:
        await settled(bench.broker.hold("c"))
        yield bench


async def test_a_held_channel_hears_all(autojump_clock: MockClock) -> None:
    """What is published after the answer to `hold` comes; what was before is in the history."""
    async with opened() as bench:
        await trio.sleep(1)
        await bench.publish(b"1")
        await settled(bench.broker.hold("c"))
        await bench.publish(b"2")
        assert await bench.told() == ["2"]


async def test_hold_takes_one_round_trip(autojump_clock: MockClock) -> None:
    """Subscription and top are asked for together."""
    async with opened() as bench:
        await trio.sleep(1)
        begun = trio.current_time()
        await settled(bench.broker.hold("c"))
        assert trio.current_time() - begun == pytest.approx(0.002)


async def test_hold_waits_for_the_first_connection(autojump_clock: MockClock) -> None:
    """In the first second it is not known whether the engine is there: `hold` waits."""
    async with opened() as bench:
        held = bench.broker.hold("c")
        assert isinstance(held, Receipt)
        await held.wait()
        assert trio.current_time() < 1


async def test_hold_fails_without_an_engine(autojump_clock: MockClock) -> None:
    """After a second without an engine whoever waits is told, and whoever comes at once."""
    async with open_network(random.Random(1)) as network, trio.open_nursery() as nursery:
        network.is_down = True
        bench = Bench(network, 100)
        nursery.start_soon(bench.broker.run, bench.intake)
        with pytest.raises(BrokerError, match="refused"):
            await settled(bench.broker.hold("c"))
        assert trio.current_time() <= 2
        with pytest.raises(BrokerError, match="refused"):
            bench.broker.hold("c")
        nursery.cancel_scope.cancel()


async def test_a_hold_that_failed_is_made_up_for(autojump_clock: MockClock) -> None:
    """A channel that was asked for in an outage is held as soon as the engine is back."""
    async with opened() as bench:
        await trio.sleep(1)
        bench.network.go_down()
        await trio.sleep(0.1)
        with pytest.raises(BrokerError):
            bench.broker.hold("c")
        bench.network.come_back()
        await trio.sleep(5)
        assert bench.broker.hold("c") is None
        await bench.publish(b"1")
        assert await bench.told() == ["1"]


async def test_a_hold_that_was_given_up_in_an_outage_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    """Who is released in an outage is not subscribed to for longer than others."""
    async with opened() as bench:
        await trio.sleep(1)
        bench.network.go_down()
        await trio.sleep(0.1)
        with pytest.raises(BrokerError):
            bench.broker.hold("c")
        bench.broker.release("c")
        await trio.sleep(LINGER + 2)
        assert bench.statistics().held == 0


async def test_two_holds_are_one_subscription(autojump_clock: MockClock) -> None:
    """Who asks while another waits gets the same answer; who comes later has it at once."""
    async with opened() as bench:
        await trio.sleep(1)
        first, second = bench.broker.hold("c"), bench.broker.hold("c")
        assert first is second
        assert isinstance(first, Receipt)
        await first.wait()
        assert bench.broker.hold("c") is None
        assert bench.network.subscriptions.count(BUS) == 1


async def test_a_channel_lingers(autojump_clock: MockClock) -> None:
    """A channel is held for a minute after its last listener, and then let go."""
    async with holding() as bench:
        bench.broker.release("c")
        await trio.sleep(LINGER - 2)
        assert bench.network.listeners(BUS) == 1
        assert bench.broker.hold("c") is None
        await trio.sleep(LINGER)
        assert bench.network.listeners(BUS) == 1
        bench.broker.release("c")
        await trio.sleep(LINGER + 2)
        assert bench.network.listeners(BUS) == 0
        assert bench.statistics().held == 0


async def test_few_channels_linger(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a number the channel that has lingered longest is let go."""
    monkeypatch.setattr(holds, "LINGERING", 2)
    async with opened() as bench:
        await trio.sleep(1)
        for channel in ("a", "b", "c"):
            await settled(bench.broker.hold(channel))
            bench.broker.release(channel)
        await trio.sleep(1)
        assert bench.statistics().lingering == 2
        assert bench.network.listeners(b"repeater:c:a") == 0
        assert bench.network.listeners(BUS) == 1


async def test_nobody_hears_a_channel_that_lingers(autojump_clock: MockClock) -> None:
    """Events of a channel without listeners do not come to fan-out; its place goes on."""
    async with holding() as bench:
        bench.broker.release("c")
        await bench.publish(b"1", b"2")
        assert await bench.told() == []
        assert bench.broker.hold("c") is None
        await bench.publish(b"3")
        assert await bench.told() == ["3"]
        assert bench.statistics().reads == 0


async def test_a_reconnection_without_loss_reads_nothing(autojump_clock: MockClock) -> None:
    """If the top is the place after a reconnection, no stream is read and nobody is told."""
    async with holding() as bench:
        await bench.publish(b"1")
        bench.network.cut("node")
        await trio.sleep(3)
        assert await bench.told() == ["1"]
        found = bench.statistics()
        assert (found.reads, found.ruptures, found.in_doubt) == (0, 0, 0)
        await bench.publish(b"2")
        assert await bench.told() == ["2"]


async def test_what_a_reconnection_missed_is_read_once(autojump_clock: MockClock) -> None:
    """What was published meanwhile comes in order, after one read."""
    async with holding() as bench:
        await bench.publish(b"1")
        bench.network.cut("node")
        await bench.publish(b"2", b"3", b"4")
        await trio.sleep(3)
        await bench.publish(b"5")
        assert await bench.told() == ["1", "2", "3", "4", "5"]
        assert bench.statistics().reads == 1


async def test_what_is_not_kept_is_a_rupture(autojump_clock: MockClock) -> None:
    """If more was missed than the history keeps, the node is told, and goes on at the top."""
    async with holding() as bench:
        await bench.publish(b"1")
        bench.network.cut("node")
        await bench.publish(*[b"%d" % number for number in range(2, 9)])
        await trio.sleep(3)
        await bench.publish(b"9")
        assert await bench.told() == ["1", "rupture", "9"]
        assert bench.statistics().ruptures == 1


async def test_a_lost_message_is_found_by_the_check(autojump_clock: MockClock) -> None:
    """The last message was lost, and nothing follows it: the next position check has it read."""
    async with holding() as bench:
        await bench.publish(b"1")
        bench.network.fates = bench.network.fates._replace(lost=1.0)
        await bench.publish(b"2")
        bench.network.fates = bench.network.fates._replace(lost=0.0)
        assert await bench.told() == ["1"]
        await trio.sleep(CHECK)
        assert await bench.told() == ["2"]


async def test_a_fork_gets_another_epoch(autojump_clock: MockClock) -> None:
    """A failover loses the top, and its number is used again: the epoch ends, and all are told."""
    async with holding() as bench:
        await bench.publish(b"1", b"2")
        assert await bench.told() == ["1", "2"]
        before = bench.network.valkey.data[META]
        assert isinstance(before, dict)
        epoch = before[b"e"]
        bench.network.fail_over(1)
        await trio.sleep(3)
        await bench.publish(b"3")
        # The other node held nothing, and would not have noticed.
        assert (await bench.told())[0] == "rupture"
        after = bench.network.valkey.data[META]
        assert isinstance(after, dict)
        assert after[b"e"] != epoch
        assert bench.statistics().forks == 1


async def test_a_refused_subscription_is_asked_for_again(autojump_clock: MockClock) -> None:
    """`hold` fails if the engine refuses; the channel is held once the engine allows it."""
    async with opened() as bench:
        await trio.sleep(1)
        bench.network.denied.add(BUS)
        with pytest.raises(BrokerError):
            await settled(bench.broker.hold("c"))
        bench.network.denied.clear()
        await trio.sleep(CHECK + 1)
        assert bench.broker.hold("c") is None


@pytest.mark.parametrize("payload", [b"", b"\n", b"7 e 0\nuiduiduud{", b"0\nuiduiduuj{", b"\xff"])
async def test_a_strangers_message_is_a_lost_one(autojump_clock: MockClock, payload: bytes) -> None:
    """It is counted, the stream is read, and nobody is told."""
    async with holding() as bench:
        await bench.publish(b"1")
        bench.network.publish(BUS, payload)
        await bench.publish(b"2")
        assert await bench.told() == ["1", "2"]
        found = bench.statistics()
        assert (found.foreign, found.ruptures) == (1, 0)
        assert found.reads in (1, 2)


async def test_a_strangers_key_is_no_stream(autojump_clock: MockClock) -> None:
    """A meta of another type is a rupture, once; the next publication begins a stream."""
    async with holding() as bench:
        await bench.publish(b"1")
        bench.network.valkey.put(META, b"a text")
        await trio.sleep(3 * CHECK)
        assert await bench.told() == ["1", "rupture"]
        await bench.publish(b"2")
        assert await bench.told() == ["2"]


async def test_a_strangers_entry_is_a_rupture(autojump_clock: MockClock) -> None:
    """A stream that must be read and cannot be is a rupture; the node goes on at its top."""
    async with holding() as bench:
        await bench.publish(b"1", b"2")
        bench.network.valkey.put(STREAM, [(1, 0, [b"d", b"?"]), (2, 0, [b"d", b"?"])])
        bench.network.cut("node")
        await bench.publish(b"3")
        await trio.sleep(3)
        assert await bench.told() == ["1", "2", "rupture"]
        await bench.publish(b"4")
        assert await bench.told() == ["4"]


async def test_a_stream_that_cannot_be_read_stays_in_doubt(autojump_clock: MockClock) -> None:
    """Messages wait until a later check has the stream read; nothing is lost."""
    async with holding() as bench:
        await bench.publish(b"1")
        bench.network.cut("node")
        await bench.publish(b"2")
        run = bench.network.valkey.run
        bench.network.valkey.run = lambda words: (  # type: ignore[method-assign]
            _refusal() if words[0] in (b"EVALSHA", b"EVAL") else run(words)
        )
        await trio.sleep(3)
        assert await bench.told() == ["1"]
        bench.network.valkey.run = run  # type: ignore[method-assign]
        await trio.sleep(CHECK + 1)
        assert await bench.told() == ["2"]


def _refusal() -> object:
    return Refused("LOADING the dataset is in memory")


async def test_a_full_intake_stops_the_bus(autojump_clock: MockClock) -> None:
    """Without room nothing is read from the bus; with room all of it comes."""
    async with holding(room=2) as bench:
        wanted = [b"%d" % number for number in range(20)]
        await bench.publish(*wanted)
        await trio.sleep(20)
        assert bench.statistics().late < 20
        told: list[str] = []
        while len(told) < 20:
            told += await bench.told()
        assert told == [one.decode() for one in wanted]
        assert bench.statistics().reads == 0


async def test_the_epoch_of_an_empty_channel_is_kept(autojump_clock: MockClock) -> None:
    """While a channel is held, the epoch that its history was read with does not expire."""
    async with holding() as bench:
        _, before = await bench.broker.history("c", OPTIONS).wait()
        await trio.sleep(2_000)
        _, after = await bench.broker.history("c", OPTIONS).wait()
        assert before == after
        await bench.publish(b"1")
        assert await bench.told() == ["1"]
        assert bench.statistics().ruptures == 0


async def test_finish_waits_for_the_own_events(autojump_clock: MockClock) -> None:
    """At the end what the node has published is with fan-out, also what must be read first."""
    async with holding() as bench:
        bench.network.fates = bench.network.fates._replace(lost=1.0)
        bench.broker.submit(Publication("c", b"1"), OPTIONS)
        await trio.sleep(0.1)
        bench.network.fates = bench.network.fates._replace(lost=0.0)
        bench.broker.submit(Publication("c", b"2"), OPTIONS)
        await bench.broker.finish()
        assert [_text(one) for one in await bench.intake.take_batch()] == ["1", "2"]


class FakeEngine:
    """An engine of one partition that answers when the test wants."""

    def __init__(self) -> None:
        self.down = ""
        self.is_moving = False
        self.takes: dict[str, Take] = {}
        self.heads: list[tuple[str, Callable[[Place | Exception], None]]] = []
        self.told: list[Callable[[object], None]] = []
        self.looks: list[tuple[str, Receipt[Read]]] = []
        self.unsubscribed: list[str] = []

    def partition_of(self, channel: str) -> int:
        return 0

    def why(self, partition: int) -> str:
        return self.down

    def subscribe(
        self, partition: int, takes: Mapping[str, Take], tell: Callable[[object], None]
    ) -> None:
        if self.down:
            raise Lost(self.down)
        self.takes.update(takes)
        self.told.append(tell)

    def unsubscribe(self, partition: int, channels: Sequence[str]) -> None:
        self.unsubscribed += channels

    def head(self, partition: int, channel: str, tell: Callable[[Place | Exception], None]) -> None:
        if self.down or self.is_moving:
            raise Lost(self.down or "the partition is moving")
        self.heads.append((channel, tell))

    def look(self, channel: str, since: Place | None) -> Receipt[Read]:
        receipt = Receipt[Read]()
        self.looks.append((channel, receipt))
        return receipt

    def fork(self, channel: str, epoch: str) -> Receipt[None]:
        raise NotImplementedError

    def renew(self, channel: str) -> None:
        raise NotImplementedError

    def mark(self, partition: int, tell: Callable[[object], None]) -> None:
        tell(None)

    def confirm(self) -> None:
        """Confirm all subscriptions."""
        while self.told:
            self.told.pop(0)(None)

    def tell_tops(self, place: Place) -> None:
        """Answer everybody who has asked for a top."""
        while self.heads:
            self.heads.pop(0)[1](place)


def payload(offset: int, uid: bytes) -> bytes:
    return b"%d e 1\n%bd%d" % (offset, uid, offset)


@asynccontextmanager
async def a_bus(*channels: str) -> AsyncIterator[tuple[Bus, FakeEngine, Intake]]:
    """A bus that holds channels, each at offset 4."""
    engine, intake = FakeEngine(), Intake(100, 1_000_000, 1_000_000)
    bus = Bus(engine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run, intake)
        bus.up([0])
        for channel in channels:
            bus.hold(channel)
        await wait_all_tasks_blocked()
        engine.confirm()
        engine.tell_tops(Place(4, "e", b"uid-0004"))
        yield bus, engine, intake
        nursery.cancel_scope.cancel()


async def test_nothing_is_trusted_from_the_end_of_a_connection_on(
    autojump_clock: MockClock,
) -> None:
    """The next number is not handed on before the top was told: it may be of a forked stream."""
    async with a_bus("c") as (bus, engine, intake):
        engine.takes["c"](payload(5, b"uid-0005"))
        assert len(intake) == 1
        bus.down([0])
        engine.takes["c"](payload(6, b"uid-0006"))
        bus.up([0])
        engine.takes["c"](payload(7, b"uid-0007"))
        await wait_all_tasks_blocked()
        assert len(intake) == 1
        engine.tell_tops(Place(7, "e", b"uid-0007"))
        await wait_all_tasks_blocked()
        assert len(intake) == 1
        assert [channel for channel, _ in engine.looks] == ["c"]


async def test_a_top_before_the_subscription_is_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    """A top that was told before the subscription was confirmed says nothing of later messages."""
    async with a_bus() as (bus, engine, _):
        held = bus.hold("c")
        await wait_all_tasks_blocked()
        engine.tell_tops(Place(4, "e", b"uid-0004"))
        assert isinstance(held, Receipt)
        assert not held.settled
        engine.confirm()
        assert not held.settled
        engine.tell_tops(Place(5, "e", b"uid-0005"))
        assert held.settled


@pytest.mark.parametrize("is_asked", [False, True])
async def test_a_partition_that_moves_meanwhile(autojump_clock: MockClock, is_asked: bool) -> None:
    """A subscription is made at the next server of the partition; then the top is asked for."""
    async with a_bus() as (bus, engine, _):
        engine.is_moving = not is_asked
        held = bus.hold("c")
        assert isinstance(held, Receipt)
        await wait_all_tasks_blocked()
        if is_asked:
            engine.heads.pop()[1](Lost("moved"))
        engine.is_moving = False
        engine.confirm()
        engine.tell_tops(Place(4, "e", b"uid-0004"))
        assert held.settled


async def test_a_partition_that_is_not_there_at_the_start(autojump_clock: MockClock) -> None:
    """Whoever waits for its channels is told after a second or two, though others are there."""

    class Parts(FakeEngine):
        def partition_of(self, channel: str) -> int:
            return 1

        def why(self, partition: int) -> str:
            return "gone" if partition else ""

    bus = Bus(Parts())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run, Intake(1, 1, 1))
        held = bus.hold("c")
        bus.up([0])
        with trio.fail_after(2), pytest.raises(BrokerError, match="gone"):
            await settled(held)
        nursery.cancel_scope.cancel()


async def test_a_top_that_is_refused_is_read(autojump_clock: MockClock) -> None:
    """If the top cannot be told by the bus, the stream is read, and then the channel is held."""
    async with a_bus() as (bus, engine, _):
        held = bus.hold("c")
        assert isinstance(held, Receipt)
        await wait_all_tasks_blocked()
        engine.confirm()
        engine.heads.pop()[1](BrokerError("the slot moves"))
        await wait_all_tasks_blocked()
        assert not held.settled
        engine.looks.pop()[1].settle(Read(Place(4, "e", b"uid-0004")))
        await wait_all_tasks_blocked()
        assert held.settled


async def test_all_tops_are_asked_for_within_a_check(autojump_clock: MockClock) -> None:
    """In 10 s each channel's top is asked for once, in many small parts."""
    channels = [f"c{number}" for number in range(1_000)]
    async with a_bus(*channels) as (_, engine, _intake):
        most, seen = 0, list[str]()
        end = trio.current_time() + CHECK
        while trio.current_time() < end - 0.01:
            await trio.sleep(0.05)
            most = max(most, len(engine.heads))
            seen += [channel for channel, _ in engine.heads]
            engine.tell_tops(Place(4, "e", b"uid-0004"))
        assert sorted(seen) == sorted(channels)
        assert most < 100


async def test_nothing_is_asked_while_the_bus_is_not_read(autojump_clock: MockClock) -> None:
    """The answers would gather with the server, as long as fan-out has no room."""
    async with a_bus("c") as (_, engine, intake):
        for offset in range(5, 106):
            engine.takes["c"](payload(offset, b"uid-%04d" % offset))
        await trio.sleep(5 * CHECK)
        assert engine.heads == []
        assert len(await intake.take_batch()) == 100
        await trio.sleep(1)
        assert [channel for channel, _ in engine.heads] == ["c"]


async def test_strangers_do_not_fill_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """All that is not ours is counted, and what comes within a second is one line."""
    async with a_bus("c") as (bus, engine, _):
        for _ in range(1_000):
            engine.takes["c"](b"?")
        assert bus.statistics().foreign == 1_000
        assert len([one for one in caplog.records if "not ours" in one.getMessage()]) == 1


async def test_holds_end_with_the_bus(autojump_clock: MockClock) -> None:
    """Whoever waits at the end is told, and so is whoever asks later."""
    engine = FakeEngine()
    bus = Bus(engine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run, Intake(1, 1, 1))
        bus.up([0])
        await wait_all_tasks_blocked()
        held = bus.hold("c")
        nursery.cancel_scope.cancel()
    with pytest.raises(BrokerError, match="ended"):
        await settled(held)
    with pytest.raises(BrokerError, match="ended"):
        bus.hold("d")


async def test_an_old_refusal_does_not_end_a_new_hold(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that was let go and is held again waits for its own subscription."""
    monkeypatch.setattr(holds, "LINGERING", 0)
    async with a_bus() as (bus, engine, _):
        bus.hold("c")
        await wait_all_tasks_blocked()
        bus.release("c")
        assert engine.unsubscribed == ["c"]
        held = bus.hold("c")
        assert isinstance(held, Receipt)
        await wait_all_tasks_blocked()
        engine.told.pop(0)(Lost("cut"))
        assert not held.settled
        engine.confirm()
        engine.tell_tops(Place(4, "e", b"uid-0004"))
        assert held.settled


async def test_events_behind_a_closed_intake_are_dropped(autojump_clock: MockClock) -> None:
    """When the node shuts down, what is late goes nowhere, and nobody waits for it."""
    intake, outlet = Intake(1, 1_000, 1_000), Outlet()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outlet.run, intake)
        await wait_all_tasks_blocked()
        outlet.put(Publication("c", b"1"))
        outlet.put(Publication("c", b"2"))
        assert len(outlet) == 1
        nursery.start_soon(outlet.wait_empty)
        await wait_all_tasks_blocked()
        intake.close()
        await wait_all_tasks_blocked()
        assert len(outlet) == 0
        outlet.put(Publication("c", b"3"))
        assert len(outlet) == 0
        nursery.cancel_scope.cancel()
