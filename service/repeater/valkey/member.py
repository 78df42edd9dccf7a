"""A primary of a cluster, and the partitions that it has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from random import choice
from typing import TYPE_CHECKING, Final, Protocol

import trio

from repeater.valkey.pipe import Lost, Refused, packed
from repeater.valkey.primary import Primary
from repeater.valkey.sentinel import OneAddress

if TYPE_CHECKING:
    from repeater.valkey.dial import Greeting
    from repeater.valkey.partition import Partition
    from repeater.valkey.url import Address


_DOWN: Final = ("CLUSTERDOWN", "NOPERM")  # answers of a server that cannot be used


class Cluster(Protocol):
    """The cluster, as its members see it. No method waits, except for room."""

    def partitions_at(self, primary: Primary) -> list[Partition]:
        """Those that a primary has, as far as is known."""

    def partition_at(self, primary: Primary, channel: bytes) -> Partition | None:
        """The one of a channel, if this primary has it."""

    def moved(self, partition: Partition, address: Address) -> None:
        """A server says that another one has the partition."""

    def subscribed(self, partitions: Sequence[Partition]) -> None:
        """Everything of partitions is subscribed to."""

    def unsubscribed(self, partitions: Sequence[Partition]) -> None:
        """A server hands on no messages of partitions any more, which it may have or not."""

    def disconnected(self, partitions: Sequence[Partition]) -> None:
        """The primary of partitions is not there."""

    async def wait_room(self) -> None:
        """Wait until more can be taken from the bus."""


class Member:
    """Lives inside a cluster, whose nursery runs `run`."""

    def __init__(
        self, address: Address, greeting: Greeting, cluster: Cluster, *, timeout: float
    ) -> None:
        self._cluster = cluster
        self._scope = trio.CancelScope()
        self.primary = Primary(OneAddress(address), greeting, self, timeout=timeout)
        self.used_at = trio.current_time()
        """When something was last to be sent to it, in Trio's time."""

    async def run(self) -> None:
        """Keep the connections until cancelled, or until `end`."""
        with self._scope:
            await self.primary.run()

    def end(self) -> None:
        """Have `run` end: the cluster needs this server no more."""
        self._scope.cancel("the cluster has no partitions there")

    def take(self, partitions: Sequence[Partition]) -> None:
        """Subscribe to everything of partitions that were attached; nothing if it is not there."""
        if not self.primary.why:
            _Round(self.primary, partitions, self._cluster).begin()

    # What the primary tells.

    def connected(self, primary: Primary) -> None:
        """Subscribe to everything of all partitions."""
        partitions = self._cluster.partitions_at(primary)
        _Round(primary, partitions, self._cluster).begin(is_first=True)

    def disconnected(self, primary: Primary) -> None:
        """Tell the cluster."""
        self._cluster.disconnected(self._cluster.partitions_at(primary))

    def probe(self, primary: Primary) -> None:
        """Publish to one of its partitions, and ask whether the server may work at all."""
        partitions = [one for one in self._cluster.partitions_at(primary) if one.is_up]
        if not partitions:
            primary.heard()
            return
        alive = choice(partitions).alive
        primary.commands.ask(packed("SPUBLISH", alive, ""), partial(_told_state, primary))
        primary.commands.ask(packed("EXISTS", alive), partial(_told_state, primary))

    def push(self, message: list[object]) -> None:
        """Give a message to its taker."""
        if len(message) != 3 or type(channel := message[1]) is not bytes:
            return
        kind, payload = message[0], message[2]
        partition = self._cluster.partition_at(self.primary, channel)
        if partition is None:
            return
        taker = partition.subscriptions.takers.get(channel)
        if taker is None:
            return
        if kind == b"smessage" and type(payload) is bytes:
            taker(payload)
        elif kind == b"sunsubscribe" and partition.is_up:
            # Nobody asked for it: the slot has moved. The server knows where to.
            self._cluster.unsubscribed([partition])

    async def wait_room(self) -> None:
        """See `Cluster`."""
        await self._cluster.wait_room()


class _Round:
    """Subscribes to everything of some partitions, and tells of all of them together."""

    def __init__(self, primary: Primary, partitions: Sequence[Partition], cluster: Cluster) -> None:
        self._primary = primary
        self._partitions = partitions
        self._cluster = cluster
        self._is_first = False
        self._left = 0
        self._confirmed: list[Partition] = []

    def begin(self, *, is_first: bool = False) -> None:
        """Ask the server; `is_first` for a new connection."""
        self._left = len(self._partitions) + 1
        self._is_first = is_first
        with suppress(Lost):  # Then the primary tells that it is not there.
            for one in self._partitions:
                one.subscribe_again(partial(self._told, one))
            # A server subscribes also while the cluster is down.
            some = self._partitions[0].alive if self._partitions else None
            command = packed("EXISTS", some) if some else packed("PING")
            self._primary.commands.ask(command, self._told_state)

    def _told_state(self, answer: object) -> None:
        _told_state(self._primary, answer)
        if not _is_down(answer):
            self._count_down()

    def _told(self, partition: Partition, answer: object) -> None:
        if isinstance(answer, Lost):
            return
        if partition.primary is not self._primary:
            pass  # It has moved since then; if it comes back, it is asked for anew.
        elif isinstance(answer, Refused):
            target = partition.target(answer)
            if target is None or target == self._primary.address:
                self._primary.leave("bus", str(answer))
                return
            self._cluster.moved(partition, target)
        else:
            self._confirmed.append(partition)
        self._count_down()

    def _count_down(self) -> None:
        self._left -= 1
        if self._left:
            return
        confirmed = [one for one in self._confirmed if one.primary is self._primary]
        if self._is_first:
            if not self._primary.confirm():
                return
            # What was attached since then, or was away when it was answered.
            late = set(self._cluster.partitions_at(self._primary)).difference(confirmed)
            if late:
                _Round(self._primary, [*late], self._cluster).begin()
        if confirmed:
            self._cluster.subscribed(confirmed)


def _is_down(answer: object) -> bool:
    if isinstance(answer, Refused):
        return answer.code in _DOWN
    return isinstance(answer, Lost)


def _told_state(primary: Primary, answer: object) -> None:
    """Leave a server that says that it serves nothing now; a partition that moves is no reason."""
    if isinstance(answer, Refused) and answer.code in _DOWN:
        primary.leave("commands", str(answer))
