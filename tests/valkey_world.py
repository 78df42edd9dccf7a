"""Two nodes on one engine in this process, random faults, and what must hold all the same.

Everything from the broker down to the client's bytes is the real code; the engine and the network
are `tests.memory_network`. A world is made from its seed alone, and is the same each time.

The promise: what a node hands to fan-out of a channel is each publication of one epoch once and in
order, or it says `Rupture`. It never goes on in a stream that lost its end and numbered it again.
And once the faults end, each node is at the stream's top within two position checks.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, ClassVar, Final, TypeVar

import trio

from repeater.brokers.receipts import Receipt
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.brokers.valkey.heads import CHECK
from repeater.errors import BrokerError
from repeater.fanout.intake import Intake
from repeater.options import ChannelOptions
from repeater.publication import (
    Announcement,
    ClientInfo,
    Event,
    Publication,
    Rupture,
    StreamPosition,
)
from tests.memory_network import Fates, Network, open_network
from tests.worlds import run_life

# By channel, how many publications its history keeps: few, so that some are lost for good.
CHANNELS: Final = {"a": 3, "b": 8, "c": 100, "d": 0}
FATES: Final = Fates(lost=0.05, doubled=0.05, late=0.05)
# Seconds: longer than a position check, and longer than a channel without listeners is held.
PAUSES: Final = (*[0.1, 0.5, 1.0, 2.0] * 5, 12.0, 62.0)
_SETTLING: Final = 2.5 * CHECK
_LATEST: Final = 600.0  # seconds after which a world that does not end is given up


class Told:
    """What a node was told of one channel since it holds it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last: Publication | None = None
        self.tail: dict[int, bytes] = {}
        self.ruptures = 0
        self.count = 0

    def take(self, event: Event) -> None:
        self.count += 1
        if isinstance(event, Rupture):
            self.last, self.tail = None, {}
            self.ruptures += 1
        elif isinstance(event, Publication) and event.offset:
            last = self.last
            if last is not None and (event.offset, event.epoch) != (last.offset + 1, last.epoch):
                raise AssertionError(f"{self.name}: {_place(event)} after {_place(last)}")
            self.last = event
            self.tail[event.offset] = event.data


class SimulatedNode:
    """A broker with the intake behind it. Lives inside `World`."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.broker = ValkeyBroker(world.network.servers(name))
        self.intake = Intake(6, 1_000_000, 1_000_000)
        self.told: dict[str, Told] = {}
        self.reads = trio.Event()
        self.reads.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.broker.run, self.intake)
            await self._fan_out()

    async def _fan_out(self) -> None:
        while True:
            await self.reads.wait()
            for event in await self.intake.take_batch():
                told = self.told.get(event.channel)
                if told is not None:
                    told.take(event)

    def hold(self, channel: str) -> None:
        """Listen to a channel from now on."""
        if channel not in self.told:
            self.told[channel] = Told(f"{self.name}, channel {channel}")
            with suppress(BrokerError):  # It is held as soon as the engine is back.
                self.broker.hold(channel)

    def release(self, channel: str) -> None:
        """Listen no more, unless fan-out has events to take: they would come to the next one."""
        if self.reads.is_set() and not len(self.intake):
            self.world.count(self.told.pop(channel))
            self.broker.release(channel)


class World:
    """One life of two nodes and an engine, from a seed."""

    make_node: ClassVar[type[SimulatedNode]] = SimulatedNode

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rnd = random.Random(seed)
        self.network: Network
        self.nodes: list[SimulatedNode] = []
        self.published = 0
        self.handed_on = 0
        self.ruptures = 0
        self.forks = 0
        self.foreign = 0
        self.reads = 0
        self._submitted: defaultdict[tuple[str, str], list[bytes]] = defaultdict(list)
        self._receipts: list[tuple[str, bytes, Receipt[StreamPosition | None]]] = []

    def count(self, told: Told) -> None:
        """Add what a node was told of a channel to the sums."""
        self.handed_on += told.count
        self.ruptures += told.ruptures

    async def run(self) -> None:
        """Live, and check the promise; raises an `AssertionError` where it is broken."""
        with trio.fail_after(_LATEST):
            async with open_network(self.rnd) as self.network, trio.open_nursery() as nursery:
                self.nodes = [self.make_node(self, name) for name in ("one", "two")]
                for node in self.nodes:
                    nursery.start_soon(node.run)
                    for channel in CHANNELS:
                        node.hold(channel)
                self.start(nursery)
                await trio.sleep(self.rnd.choice((0.0, 2.0)))
                self.network.fates = FATES
                for _ in range(self.rnd.randrange(10, 70)):
                    await self._act()
                    await trio.sleep(self.rnd.choice((0.0, 0.001, 0.02, 0.1)))
                self._end_faults()
                await trio.sleep(_SETTLING)
                self.check()
                nursery.cancel_scope.cancel()

    def start(self, nursery: trio.Nursery) -> None:
        """Begin what else the world consists of: here nothing."""

    async def _act(self) -> None:
        rnd, network = self.rnd, self.network
        pick = rnd.random()
        if pick < 0.70:
            for _ in range(rnd.choice((1, 1, 1, 2, 9))):
                self._publish()
        elif pick < 0.74:
            network.cut(rnd.choice(self.nodes).name)
        elif pick < 0.79:
            network.fail_over(rnd.choice((0, 1, 1, 2, 3, 5, 20)))
            if rnd.random() < 0.5:
                await self._storm()
        elif pick < 0.81:
            network.go_down()
            if rnd.random() < 0.5:
                network.valkey.promote(rnd.choice((0, 1, 2, 5)))
            await trio.sleep(rnd.uniform(0, 2))
            network.come_back()
            await self._storm()
        elif pick < 0.82:
            network.pause()
            await trio.sleep(rnd.uniform(0, 4))
            network.resume()
        elif pick < 0.88:
            rnd.choice((self._evict, self._evict, self._spoil_key, self._spoil_bus))()
        elif pick < 0.90:
            rnd.choice((self._refuse, network.valkey.flush_scripts, self._remove))()
        elif pick < 0.92:
            self._stall()
        elif pick < 0.94:
            self.come_and_go()
        else:
            await trio.sleep(rnd.choice(PAUSES))

    def come_and_go(self) -> None:
        """A node holds a channel, or holds it no longer."""
        node, channel = self.rnd.choice(self.nodes), self.rnd.choice([*CHANNELS])
        (node.release if channel in node.told else node.hold)(channel)

    async def _storm(self) -> None:
        """Publish into one channel while the nodes come back."""
        channel = self.rnd.choice([*CHANNELS])
        for _ in range(25):
            self._publish(channel)
            await trio.sleep(self.rnd.choice((0.001, 0.004, 0.02)))

    def _publish(self, channel: str = "") -> None:
        rnd = self.rnd
        node, channel = rnd.choice(self.nodes), channel or rnd.choice([*CHANNELS])
        self.published += 1
        data = b"%d" % self.published
        options = ChannelOptions(
            history_size=CHANNELS[channel], history_ttl=1e6, history_meta_ttl=1e6
        )
        try:
            if rnd.random() < 0.05:
                info = ClientInfo("u", data.decode())
                node.broker.announce(Announcement(channel, info, joined=True))
                return
            receipt = node.broker.submit(
                Publication(channel, data), options, skip_history=rnd.random() < 0.05
            )
        except (BrokerError, trio.WouldBlock):
            return
        assert isinstance(receipt, Receipt)
        self._receipts.append((channel, data, receipt))
        self._submitted[node.name, channel].append(data)

    def _keys(self, channel: str) -> tuple[bytes, bytes]:
        return f"repeater:m:{channel}".encode(), f"repeater:s:{channel}".encode()

    def _evict(self) -> None:
        keys = self._keys(self.rnd.choice([*CHANNELS]))
        for key in self.rnd.choice((keys, keys[:1], keys[1:])):
            self.network.valkey.evict(key)

    def _spoil_key(self) -> None:
        meta, stream = self._keys(self.rnd.choice([*CHANNELS]))
        key, value = self.rnd.choice(
            (
                (meta, b"text"),
                (meta, {b"e": b"\xff", b"o": b"x", b"u": b"1"}),
                (meta, {b"e": b"stranger", b"o": b"7"}),
                (stream, b"text"),
                (stream, [(1, 5, [b"d", b"???"])]),
                (stream, [(2**62, 5, [b"x", b"y"])]),
            )
        )
        self.network.valkey.put(key, value)

    def _spoil_bus(self) -> None:
        payload = self.rnd.choice((b"", b"\n", b"0\n", b"1 e 2\nuiduiduud{", b"\xff" * 30))
        channel = self.rnd.choice([*CHANNELS])
        self.network.publish(f"repeater:c:{channel}".encode(), payload)

    def _refuse(self) -> None:
        valkey = self.network.valkey
        valkey.refusing = "" if valkey.refusing else "OOM command not allowed"

    def _remove(self) -> None:
        with suppress(BrokerError):
            self.rnd.choice(self.nodes).broker.remove_history(self.rnd.choice([*CHANNELS]))

    def _stall(self) -> None:
        node = self.rnd.choice(self.nodes)
        if node.reads.is_set():
            node.reads = trio.Event()
        else:
            node.reads.set()

    def _end_faults(self) -> None:
        self.network.fates = Fates()
        self.network.valkey.refusing = ""
        for node in self.nodes:
            node.reads.set()

    def check(self) -> None:
        """Check the promise, after the faults."""
        for node in self.nodes:
            found = node.broker._bus.statistics()
            assert (found.in_doubt, found.late, found.kept_bytes) == (0, 0, 0), found
            self.forks += found.forks
            self.foreign += found.foreign
            self.reads += found.reads
            for channel, told in node.told.items():
                self._check_told(channel, told)
                self.count(told)
        self._check_answers()

    def _check_told(self, channel: str, told: Told) -> None:
        """A node is at the top of the stream that the engine has, and was told this stream."""
        top, entries = self.stream(channel)
        last = told.last
        if last is not None:
            assert (last.offset, last.epoch) == top, (
                f"{told.name}: {_place(last)}, the top is {top}"
            )
        for offset, data in told.tail.items():
            kept = entries.get(offset, data)
            assert kept == data, f"{told.name}: {offset} was {data!r}, and is {kept!r}"

    def _check_answers(self) -> None:
        """Each submission was answered, and truly; those of one node are in their order."""
        carried_out: defaultdict[str, dict[bytes, str]] = defaultdict(dict)
        for bus, payload in self.network.log:
            head, _, envelope = payload.partition(b"\n")
            if envelope[8:9] == b"d":
                carried_out[bus.decode()[-1]][envelope[9:]] = head.decode()
        for channel, data, receipt in self._receipts:
            assert receipt.settled, f"no answer for {data!r} in {channel}"
            if receipt.succeeded:
                at, found = receipt.result(), carried_out[channel][data]
                said = "0" if at is None else f"{at.offset} {at.epoch}"
                assert found.startswith(said), f"{data!r} in {channel} is at {found}, not {said}"
        for (name, channel), submitted in self._submitted.items():
            known = set(submitted)
            order = [data for data in carried_out[channel] if data in known]
            wanted = [data for data in submitted if data in carried_out[channel]]
            assert order == wanted, f"{name}, {channel}: {wanted} became {order}"

    def stream(self, channel: str) -> tuple[tuple[int, str], dict[int, bytes]]:
        """The top of a channel's stream, and its publications."""
        meta, stream = self._keys(channel)
        found: Any = self.network.valkey.data.get(meta)
        if not isinstance(found, dict):
            return (0, ""), {}
        if not found.get(b"o", b"0").isdigit():
            return (0, ""), {}  # A stranger's.
        entries: Any = self.network.valkey.data.get(stream)
        offset, epoch = int(found.get(b"o", b"0")), found.get(b"e", b"").decode()
        if not isinstance(entries, list):
            return (offset, epoch), {}
        ours = ((first, fields[1]) for first, _, fields in entries if fields[1][8:9] == b"d")
        return (offset, epoch), {number: envelope[9:] for number, envelope in ours}


AnyWorld = TypeVar("AnyWorld", bound=World)


def _place(publication: Publication) -> tuple[int, str]:
    return publication.offset, publication.epoch


def run_world(seed: int) -> World:
    """Let a world live; raises an `AssertionError` if the promise is broken."""
    return live(World(seed))


def live(world: AnyWorld) -> AnyWorld:
    """The same, for a world of any kind."""
    run_life(world.run, world.seed)
    return world


def sums(worlds: Iterable[World]) -> dict[str, int]:
    """What happened in some worlds, in all."""
    of: defaultdict[str, int] = defaultdict(int)
    for world in worlds:
        of["worlds"] += 1
        of["publications"] += world.published
        of["events handed on"] += world.handed_on
        of["reads of streams"] += world.reads
        of["ruptures"] += world.ruptures
        of["forks"] += world.forks
        of["foreign messages and entries"] += world.foreign
    return dict(of)


def first_failure(seeds: range, run: Callable[[int], World] = run_world) -> tuple[int, str] | None:
    """The first of some worlds in which the promise is broken, and how; None if it holds."""
    for seed in seeds:
        try:
            run(seed)
        except AssertionError as error:
            return seed, str(error)
    return None
