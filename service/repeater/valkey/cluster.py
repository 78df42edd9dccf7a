"""A cluster: which primary has which partition, and what follows when that changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import random
from typing import TYPE_CHECKING, Final

import trio

from repeater.log import get_logger
from repeater.valkey.layout import Layout
from repeater.valkey.member import Member
from repeater.valkey.partition import PAUSE, Partition
from repeater.valkey.pipe import Lost
from repeater.valkey.servers import ServersStatistics
from repeater.valkey.slots import PARTITIONS, partition_of, tags
from repeater.valkey.subscriptions import alive_channel

if TYPE_CHECKING:
    from repeater.valkey.dial import Greeting
    from repeater.valkey.layout import Owners
    from repeater.valkey.pipe import Pipe, Tell
    from repeater.valkey.primary import Primary
    from repeater.valkey.servers import Listener
    from repeater.valkey.subscriptions import Taker
    from repeater.valkey.url import Address

_log = get_logger("engine")

_LAYOUT: Final = 30.0  # seconds between two looks at the layout, while all is well
_LAYOUT_WANTED: Final = 0.5  # the same, about, while a partition is not there
_LAYOUT_UNKNOWN: Final = 2.0  # the same, at most, while nobody tells it
_TRUSTED: Final = 2.0  # seconds for which a MOVED counts more than the layout of another server
_UNUSED: Final = 60.0  # seconds after which a server without partitions is forgotten
_MEMBERS: Final = 1_024  # servers: the most nodes of a cluster are about 1,000


class Cluster:
    """The `Servers` of a cluster. Made by `open_servers`; the engine's nursery runs `run`."""

    publish = b"SPUBLISH"

    def __init__(
        self,
        seeds: Sequence[Address],
        greeting: Greeting,
        *,
        prefix: str,
        timeout: float,
        partitions: int = PARTITIONS,
    ) -> None:
        """Find the layout by any of `seeds`; connect to the servers of the first partitions."""
        self.partitions = partitions
        self._greeting = greeting
        self._timeout = timeout
        self._layout = Layout(seeds, greeting)
        self._all = [
            Partition(number, tag, alive_channel(prefix, f"{{{tag}}}"), self)
            for number, tag in enumerate(tags()[:partitions])
        ]
        self._by_tag = {partition.tag.encode(): partition for partition in self._all}
        self._members: dict[Address, Member] = {}
        self._losses: Counter[str] = Counter()  # of members that are forgotten
        self._listeners: list[Listener] = []
        self._nursery: trio.Nursery | None = None
        self._wanted = trio.Event()
        self._why = "not connected yet"

    def partition_of(self, channel: str) -> int:
        """See `Servers`."""
        return partition_of(channel)

    def tag(self, partition: int) -> str:
        """See `Servers`."""
        return f"{{{self._all[partition].tag}}}"

    def ask(self, partition: int, command: bytes, tell: Tell) -> None:
        """See `Servers`."""
        self._all[partition].ask(command, tell)

    def ask_bus(self, partition: int, command: bytes, tell: Tell) -> None:
        """See `Servers`."""
        self._all[partition].ask_bus(command, tell)

    def subscribe(self, partition: int, takers: Mapping[bytes, Taker], tell: Tell) -> None:
        """See `Servers`."""
        self._all[partition].subscribe(takers, tell)

    def unsubscribe(self, partition: int, channels: Sequence[bytes]) -> None:
        """See `Servers`."""
        self._all[partition].unsubscribe(channels)

    def add(self, listener: Listener) -> None:
        """See `Servers`."""
        self._listeners.append(listener)

    def why(self, partition: int) -> str:
        """See `Servers`."""
        one = self._all[partition]
        return one.why if one.primary is not None else self._why or one.why

    def outage(self) -> str:
        """See `Servers`."""
        down = [why for number in range(self.partitions) if (why := self.why(number))]
        if not down or len(down) == self.partitions:
            return down[0] if down else ""
        return f"{len(down)} of {self.partitions} partitions: {down[0]}"

    def statistics(self) -> ServersStatistics:
        """See `Servers`."""
        losses = self._losses.copy()
        for member in self._members.values():
            losses += member.primary.losses
        primaries = {one.primary for one in self._all if one.primary is not None}
        up = sum(not primary.why for primary in primaries)
        return ServersStatistics(len(primaries), up, dict(losses))

    async def run(self) -> None:
        """See `Servers`."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self._keep_layout()
        finally:
            # Whoever is told may ask at another partition: none waits for a server any more.
            for partition in self._all:
                partition.is_moving = False
            for partition in self._all:
                partition.lose()

    async def _keep_layout(self) -> None:
        """Look at the layout, often as long as something is not there."""
        pause = _LAYOUT_WANTED
        while True:
            self._wanted = trio.Event()
            # One without partitions may be out of the cluster, and know it as it was.
            used = {one.primary for one in self._all}
            connected = [
                (address, member.primary.commands)
                for address, member in self._members.items()
                if not member.primary.why and member.primary in used
            ]
            try:
                self._apply(await self._layout.read(connected, self._members))
                self._why, pause = "", _LAYOUT_WANTED
            except Lost as error:
                self._note(str(error))
                pause = min(_LAYOUT_UNKNOWN, 2 * pause)
            await trio.sleep(pause * (0.5 + random() / 2))
            if not self.outage():
                with trio.move_on_after(_LAYOUT - _LAYOUT_WANTED):
                    await self._wanted.wait()

    def _note(self, why: str) -> None:
        if why != self._why:
            part = {"part": self._greeting.part} if self._greeting.part else {}
            _log.warning("the layout of the cluster is not known", **part, reason=why)
        self._why = why

    def _apply(self, owners: Owners) -> None:
        now = trio.current_time()
        pairs = [
            (partition, None if owner is None else self._member(owner))
            for partition, owner in zip(self._all, owners[: self.partitions], strict=True)
            if now - partition.moved_at > _TRUSTED
        ]
        self._attach(pairs)
        used = {one.primary for one in self._all}
        for address, member in list(self._members.items()):
            if member.primary not in used and now - member.used_at > _UNUSED:
                member.end()
                self._losses += member.primary.losses
                del self._members[address]

    def _attach(self, pairs: Sequence[tuple[Partition, Member | None]]) -> None:
        """Have partitions served by other members than before, where they are others."""
        changed = [
            (partition, member)
            for partition, member in pairs
            if partition.primary is not (None if member is None else member.primary)
        ]
        down = [
            partition
            for partition, member in changed
            if partition.attach(None if member is None else member.primary)
        ]
        self._tell_down(down)
        for member in {member for _partition, member in changed if member is not None}:
            taken = [partition for partition, its in changed if its is member]
            member.take(taken)
            self.later(2 * self._timeout, partial(self._give_up, taken, member))

    def _give_up(self, partitions: Sequence[Partition], member: Member) -> None:
        """A move to a server that cannot be reached is an outage."""
        late = [one for one in partitions if one.is_moving and one.primary is member.primary]
        if late:
            self.disconnected(late)

    def _member(self, address: Address) -> Member | None:
        """The server at an address, from now on; None if there are too many already."""
        member = self._members.get(address)
        if member is None:
            if len(self._members) >= _MEMBERS:
                return None
            member = Member(address, self._greeting, self, timeout=self._timeout)
            self._members[address] = member
            assert self._nursery is not None
            self._nursery.start_soon(member.run)
        member.used_at = trio.current_time()
        return member

    def _tell_down(self, partitions: Sequence[Partition]) -> None:
        if partitions:
            for listener in self._listeners:
                listener.down([partition.number for partition in partitions])

    # What partitions tell, and need.

    def moved(self, partition: Partition, address: Address) -> None:
        """A server says that another one has the partition: it knows best."""
        now = trio.current_time()
        # Servers that name each other are asked in turns until they agree.
        pause = PAUSE if now - partition.moved_at < PAUSE else 0.0
        partition.moved_at = now
        self.later(pause, partial(self._attach, [(partition, self._member(address))]))
        self._wanted.set()

    def commands_of(self, address: Address) -> Pipe | None:
        """The connection for commands to a server; None if it is not there yet."""
        member = self._member(address)
        return None if member is None or member.primary.why else member.primary.commands

    def later(self, pause: float, do: Callable[[], None]) -> None:
        """Have something done in so many seconds."""
        assert self._nursery is not None
        self._nursery.start_soon(_do_later, pause, do)

    # What members tell, and need.

    def partitions_at(self, primary: Primary) -> list[Partition]:
        """Those that a primary has, as far as is known."""
        return [one for one in self._all if one.primary is primary]

    def partition_at(self, primary: Primary, channel: bytes) -> Partition | None:
        """The one of a channel, if this primary has it."""
        partition = self._by_tag.get(channel.partition(b"}")[0].rpartition(b"{")[2])
        return partition if partition is not None and partition.primary is primary else None

    def subscribed(self, partitions: Sequence[Partition]) -> None:
        """Everything of partitions is subscribed to."""
        for partition in partitions:
            partition.confirm()
        for listener in self._listeners:
            listener.up([partition.number for partition in partitions])

    def unsubscribed(self, partitions: Sequence[Partition]) -> None:
        """A server hands on no messages of partitions any more: it says where they are now."""
        for partition in partitions:
            primary = partition.primary
            assert primary is not None
            assert primary.address is not None
            if partition.attach(primary):
                self._tell_down([partition])
            self._members[primary.address].take([partition])

    def disconnected(self, partitions: Sequence[Partition]) -> None:
        """The primary of partitions is not there."""
        self._tell_down([partition for partition in partitions if partition.lose()])
        self._wanted.set()

    async def wait_room(self) -> None:
        """Wait for all listeners, one after the other: no deadline, fan-out sets the pace."""
        for listener in self._listeners:
            await listener.wait_room()


async def _do_later(pause: float, do: Callable[[], None]) -> None:
    await trio.sleep(pause)
    do()
