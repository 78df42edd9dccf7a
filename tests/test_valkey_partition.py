"""One partition of a cluster, whose servers are the test: what no real server can be made to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from repeater.valkey.partition import Partition
from repeater.valkey.pipe import Lost, Pipe, Refused, Tell
from repeater.valkey.primary import Primary
from repeater.valkey.url import Address


class FakePipe:
    """Keeps who waits for an answer."""

    def __init__(self) -> None:
        self.tells: list[Tell] = []

    def ask(self, command: bytes, tell: Tell) -> None:
        self.tells.append(tell)

    order = ask


class FakePrimary:
    """A server, or none if it says why."""

    def __init__(self, port: int) -> None:
        self.address = Address("host", port)
        self.why = ""
        self.commands = FakePipe()
        self.its_bus = FakePipe()

    @property
    def bus(self) -> FakePipe:
        if self.why:
            raise Lost(self.why)
        return self.its_bus

    def heard(self) -> None:
        pass


class FakeRouter:
    """Keeps what the partition wants of its cluster."""

    def __init__(self) -> None:
        self.moves: list[Address] = []
        self.due: list[Callable[[], None]] = []

    def moved(self, partition: Partition, address: Address) -> None:
        self.moves.append(address)

    def commands_of(self, address: Address) -> Pipe | None:
        return None

    def later(self, pause: float, do: Callable[[], None]) -> None:
        self.due.append(do)


class Moving:
    """A partition that is up at the first of two servers."""

    def __init__(self) -> None:
        self.router = FakeRouter()
        self.first, self.second = FakePrimary(1), FakePrimary(2)
        self.partition = Partition(0, "x", b"{x}alive", self.router)
        self.told: list[object] = []
        self.attach(self.first)

    def attach(self, primary: FakePrimary) -> None:
        self.partition.attach(cast("Primary", primary))
        self.partition.confirm()

    def subscribe(self) -> None:
        self.partition.subscribe({b"{x}channel": lambda _payload: None}, self.told.append)


def test_a_subscription_that_is_refused_late_is_made_where_the_partition_is() -> None:
    """The old server says MOVED when the new one is up already, so nothing else would come."""
    moving = Moving()
    moving.subscribe()
    (late,) = moving.first.its_bus.tells
    moving.attach(moving.second)
    late(Refused("MOVED 1 host:2"))
    assert moving.told == moving.router.moves == []
    (again,) = moving.second.its_bus.tells
    again(None)
    assert moving.told == [None]


def test_a_late_subscription_may_find_nobody() -> None:
    """It is told so."""
    moving = Moving()
    moving.subscribe()
    (late,) = moving.first.its_bus.tells
    moving.attach(moving.second)
    moving.second.why = "it has gone"
    late(Refused("MOVED 1 host:2"))
    assert [str(one) for one in moving.told] == ["it has gone"]


def test_a_subscription_at_a_server_that_names_itself_is_refused() -> None:
    """To follow it would wait for ever: the partition is there already."""
    moving = Moving()
    moving.subscribe()
    (tell,) = moving.first.its_bus.tells
    refused = Refused("MOVED 1 host:1")
    tell(refused)
    assert moving.told == [refused]
    assert moving.router.moves == []


def test_to_unsubscribe_never_fails() -> None:
    """A callback may do it that is told that the connection ends, before the partition is told."""
    moving = Moving()
    moving.first.why = "it has gone"
    moving.partition.unsubscribe([b"{x}alive"])
    assert moving.partition.subscriptions.takers == {}


async def test_what_is_sent_again_is_not_overtaken() -> None:
    """Later commands wait for its answer, also if it is the only one that was held back."""
    moving = Moving()
    partition, commands = moving.partition, moving.first.commands
    partition.ask(b"x", moving.told.append)
    commands.tells[0](Refused("TRYAGAIN"))
    for _ in range(2):
        (retry,) = moving.router.due
        moving.router.due.clear()
        retry()
        partition.ask(b"y", moving.told.append)
        commands.tells[-1](Refused("TRYAGAIN"))
    assert len(commands.tells) == 3
    (retry,) = moving.router.due
    retry()
    commands.tells[3]("first")
    assert len(commands.tells) == 6
    for tell in commands.tells[4:]:
        tell("later")
    assert moving.told == ["first", "later", "later"]


async def test_commands_that_are_held_back_have_one_timer() -> None:
    """However many wait for a slot that moves: each is sent again in its turn."""
    moving = Moving()
    partition, commands = moving.partition, moving.first.commands
    for _ in range(3):
        partition.ask(b"x", moving.told.append)
    for tell in tuple(commands.tells):
        tell(Refused("TRYAGAIN"))
    for _ in range(100):
        partition.ask(b"y", moving.told.append)
    (retry,) = moving.router.due
    moving.first.why = "it has gone"  # Nobody has told the partition so yet.
    moving.router.due.clear()
    retry()
    (retry,) = moving.router.due
    moving.first.why = ""
    moving.router.due.clear()
    retry()
    assert moving.router.due == []
    commands.tells[3]("answer")
    assert len(commands.tells) == 3 + 103
    for tell in commands.tells[4:]:
        tell("answer")
    assert moving.told == 103 * ["answer"]
