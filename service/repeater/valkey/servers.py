"""Which server has what: one face for one server, for Sentinels, for a cluster, and for shards.

Channels are in partitions, each of which is on one primary. One server is one partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

from repeater.valkey.dial import Waited
from repeater.valkey.pipe import packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.valkey.pipe import Part, Tell
    from repeater.valkey.subscriptions import Taker


class ServersStatistics(msgspec.Struct, frozen=True):
    """How the connections to the servers are."""

    primaries: int
    """Those that are known."""
    up: int
    """Those that are there, with commands and bus."""
    losses: Mapping[str, int]
    """How often one was left, by what was the matter: `commands`, `bus`, or `role`."""


class Listener(Protocol):
    """Who is told what happens to the servers. No method waits, except for room."""

    def up(self, partitions: Sequence[int]) -> None:
        """Partitions are there, and everything of them that was subscribed to is again.

        Messages may have been missed meanwhile.
        """

    def down(self, partitions: Sequence[int]) -> None:
        """No messages of partitions come any more, and nothing is subscribed to elsewhere yet.

        They are not there, or have moved to another primary of a cluster. Commands for a partition
        that moves are held back until it has moved.
        """

    async def wait_room(self) -> None:
        """Wait until more messages can be taken; the bus is not read meanwhile."""


class Servers(Protocol):
    """The servers of an engine. Made by `open_servers`; the engine's nursery runs `run`."""

    publish: bytes
    """The command that publishes: PUBLISH, or SPUBLISH in a cluster."""
    partitions: int
    """How many there are; they are numbered from 0 on."""

    def partition_of(self, channel: str) -> int:
        """The partition of a channel: the same for all nodes and versions."""

    def tag(self, partition: int) -> str:
        """What is in each key of a partition, so that it is there: `{x}`, or nothing."""

    def ask(self, partition: int, command: bytes, tell: Tell) -> None:
        """Send a packed command to the primary of a partition; `tell` gets the answer.

        Commands of one partition are carried out in their order. In a cluster, a partition may move
        while several are under way. Then those that have to be sent again keep their order among
        themselves, and hold back all that is asked later: so whoever needs the order of all has one
        under way at a time.

        Raises:
            Lost: the primary is not there, and nothing was sent.
        """

    def ask_bus(self, partition: int, command: bytes, tell: Tell) -> None:
        """Send a packed command by the bus: its answer comes in its turn among the messages.

        A partition that has moved is not asked again: the answer is a `Refused` then.

        Raises:
            Lost: the primary is not there, and nothing was sent.
        """

    def subscribe(self, partition: int, takers: Mapping[bytes, Taker], tell: Tell) -> None:
        """Have the messages of bus channels given to takers, until `unsubscribe`.

        `tell` gets None when the server has confirmed all of them, else a `Refused` or a `Lost`:
        then none is kept.

        Raises:
            Lost: the primary is not there, and nothing was sent.
        """

    def unsubscribe(self, partition: int, channels: Sequence[bytes]) -> None:
        """Have no more messages of bus channels given to anybody."""

    def add(self, listener: Listener) -> None:
        """Tell a listener from now on. It is told of nothing that is there already."""

    def why(self, partition: int) -> str:
        """Why a partition is not there, in a few words; empty if it is."""

    def outage(self) -> str:
        """Why not all partitions are there, in a few words; empty if they are."""

    def statistics(self) -> ServersStatistics:
        """How the connections are."""

    async def run(self) -> None:
        """Keep the connections until cancelled."""


async def answer_from(servers: Servers, partition: int, *parts: Part) -> object:
    """Ask one thing and wait for the answer: for what is no hot path. The caller sets the deadline.

    Raises:
        Refused: the answer is an error.
        Lost: the primary is not there.
    """
    waited = Waited()
    servers.ask(partition, packed(*parts), waited.tell)
    return await waited.answer()
