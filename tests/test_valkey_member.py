"""A primary of a cluster that comes back, whose server is the test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from repeater.valkey.dial import Greeting
from repeater.valkey.member import Cluster, Member
from repeater.valkey.partition import Partition, Router
from repeater.valkey.pipe import Pipe, Refused, Tell
from repeater.valkey.primary import Primary
from repeater.valkey.url import Address

HERE, THERE = Address("host", 1), Address("host", 2)


class FakePipe:
    """Keeps who waits for an answer."""

    def __init__(self) -> None:
        self.tells: list[Tell] = []

    def ask(self, command: bytes, tell: Tell) -> None:
        self.tells.append(tell)

    order = ask


class FakeCluster:
    """Has two partitions, and keeps what is told of them."""

    def __init__(self) -> None:
        router = cast("Router", None)  # No command is asked.
        self.all = [Partition(number, "x", b"{x}alive", router) for number in range(2)]
        self.moves: list[tuple[Partition, Address]] = []

    def partitions_at(self, primary: Primary) -> list[Partition]:
        return [one for one in self.all if one.primary is primary]

    def moved(self, partition: Partition, address: Address) -> None:
        self.moves.append((partition, address))

    def subscribed(self, partitions: Sequence[Partition]) -> None:
        for one in partitions:
            one.confirm()


class Bench:
    """A member that has just been connected to, and asks for its two partitions."""

    def __init__(self) -> None:
        self.cluster, self.bus, self.commands = FakeCluster(), FakePipe(), FakePipe()
        self.member = self._member(HERE)
        self.primary, self.other = self.member.primary, self._member(THERE).primary
        self.primary.address, self.other.address = HERE, THERE
        self.primary._bus = cast("Pipe", self.bus)
        self.primary._commands = cast("Pipe", self.commands)
        for one in self.cluster.all:
            one.attach(self.primary)
        self.member.connected(self.primary)

    def _member(self, address: Address) -> Member:
        return Member(address, Greeting(), cast("Cluster", self.cluster), timeout=1)

    def bring_back(self, partition: Partition) -> None:
        partition.attach(self.primary)
        self.member.take([partition])


async def test_a_partition_that_goes_and_comes_back_meanwhile_is_subscribed_to() -> None:
    """It is elsewhere when the server answers for it, and back when the last answer comes."""
    bench = Bench()
    first, second = bench.cluster.all
    first.attach(bench.other)
    for tell in tuple(bench.bus.tells):
        tell(None)
    bench.bring_back(first)
    bench.commands.tells[0](0)
    assert (first.is_up, second.is_up) == (False, True)
    bench.bus.tells[2](None)
    bench.commands.tells[1](0)
    assert first.is_up
    assert len(bench.bus.tells) == 3


async def test_a_late_refusal_says_nothing_of_a_partition_that_is_elsewhere() -> None:
    """Where it is now is known: it is not taken to where the server thinks that it is."""
    bench = Bench()
    first, second = bench.cluster.all
    first.attach(bench.other)
    bench.bus.tells[0](Refused("MOVED 1 host:3"))
    bench.bus.tells[1](Refused("MOVED 1 host:2"))
    bench.commands.tells[0](0)
    assert bench.cluster.moves == [(second, THERE)]
