"""Presence over all nodes: each keeps its own clients in the engine, and reads those of all.

A node keeps a channel alive with one small script, however many clients it has there. A node that
dies is gone from all channels 60 s later, and one that ends says goodbye to them. The node has its
own clients in memory: what the engine loses is there again at the latest after the next renewal.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import random
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from repeater.brokers.receipts import Receipt
from repeater.cluster.presence_entries import Batch, Entries
from repeater.cluster.presence_names import Names
from repeater.cluster.presence_reads import Reads
from repeater.errors import BrokerError, open_service_nursery
from repeater.log import get_logger
from repeater.valkey.pipe import Lost, Refused, ignore, packed
from repeater.valkey.script import packaged_script

if TYPE_CHECKING:
    from repeater.publication import ClientInfo
    from repeater.valkey.servers import Servers

T = TypeVar("T")

_log = get_logger("presence")

PRESENCE: Final = packaged_script(__package__, "presence")

LIFETIME: Final = 60.0
"""Seconds for which a node's clients are kept after its last word."""

_RENEWAL: Final = 25.0  # seconds between two renewals of a channel, at most
_AT_ONCE: Final = 512  # renewals and goodbyes without an answer: about 10 ms of the engine
_GOODBYE: Final = 2.0  # seconds
_START: Final = 1.0  # seconds for the first connection, before calls fail


class ClusterPresence:
    """Implements `PresenceStore` for one node of a cluster. Made by `open_cluster_presence`.

    A change of a node that is away from the engine is carried out when it has come back, unless
    it was refused.
    """

    def __init__(self, servers: Servers, node: str, *, prefix: str) -> None:
        """Keep the clients of a node under its id, in keys that begin with a prefix."""
        self._servers = servers
        self._node = node.encode()
        self._prefix = prefix
        self._channels: dict[str, Entries] = {}
        self._reads = Reads(servers)
        self._number = 0
        self._free = trio.Semaphore(_AT_ONCE)
        self._is_back = trio.Event()
        self.was_up = trio.Event()
        """Set when the engine has been there."""
        self._refusal = ""
        self._under_way = 0
        self._idle = trio.lowlevel.ParkingLot()
        self._ended = False
        servers.add(self)

    def add(self, channel: str, info: ClientInfo) -> Receipt[None]:
        """Note that a client is in the channel, or is still there.

        Raises:
            BrokerError: the engine is away. Nothing was noted, except for a client that is there.
        """
        entries = self._channels.get(channel)
        if entries is None:
            names = self._names(channel)
            self._check(names)
            entries = self._channels[channel] = Entries(names)
        elif info.client not in entries:
            self._check(entries.names)
        receipt = entries.add(info)
        self._send(channel, entries)
        try:
            self._check(entries.names)
        except BrokerError as error:  # However often it is added, nothing waits for the engine.
            for do in entries.fail(error):
                do()
            raise
        return receipt

    def remove(self, channel: str, client: str) -> Receipt[None] | None:
        """Note that this connection is not in the channel any more. Idempotent."""
        entries = self._channels.get(channel)
        receipt = None if entries is None else entries.remove(client)
        if entries is None or receipt is None:
            return None
        self._send(channel, entries)
        return None if self._servers.why(entries.names.partition) else receipt

    def members(self, channel: str) -> Receipt[Mapping[str, ClientInfo]]:
        """All clients in the channel, of all nodes.

        Raises:
            BrokerError: the engine is away.
        """
        return self._read(channel, self._reads.members)

    def count(self, channel: str) -> Receipt[tuple[int, int]]:
        """How many connections and users are in the channel, over all nodes.

        Raises:
            BrokerError: the engine is away.
        """
        return self._read(channel, self._reads.count)

    def _read(self, channel: str, make: Callable[[Names, Receipt[T]], None]) -> Receipt[T]:
        """Read behind this node's own changes."""
        receipt: Receipt[T] = Receipt()
        entries = self._channels.get(channel)
        names = self._names(channel) if entries is None else entries.names
        self._check(names)
        read = partial(make, names, receipt)
        if entries is None:
            read()
        else:
            entries.after_changes(read)
        return receipt

    def _names(self, channel: str) -> Names:
        return Names(self._servers, self._prefix, channel)

    def _check(self, names: Names) -> None:
        if self._ended:
            raise BrokerError("presence has ended")
        if why := self._servers.why(names.partition):
            raise BrokerError(f"the engine: {why}")

    @property
    def foreign(self) -> int:
        """How many rows and keys no node had written."""
        return self._reads.foreign

    # Changes on their way.

    def _send(self, channel: str, entries: Entries, then: Callable[[], None] | None = None) -> bool:
        """Send what waits, unless something is under way: then it goes behind that.

        With `then` it is sent also if nothing waits, to renew the channel, and `then` is called
        behind the answer. Returns whether something was sent.
        """
        names = entries.names
        if entries.under_way or self._ended or self._servers.why(names.partition):
            return False
        if then is not None:
            entries.after_next(then)
        elif not entries.waits:
            return False
        self._number += 1
        self._under_way += 1
        batch = entries.take(self._number)
        keys = (names.nodes, names.infos(self._node), names.users(self._node))
        arguments = (self._node, int(LIFETIME * 1_000), *batch.arguments)
        tell = partial(self._answered, channel, entries, batch)
        try:
            PRESENCE.ask(partial(self._servers.ask, names.partition), keys, arguments, tell)
        except Lost as error:
            tell(error)
        return True

    def _answered(self, channel: str, entries: Entries, batch: Batch, answer: object) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.unpark_all()
        then = entries.answered(batch, answer, trio.current_time())
        if isinstance(answer, Refused):
            self._note_refusal(str(answer))
        if not isinstance(answer, Exception):
            self._send(channel, entries)
        for do in then:
            do()
        if entries.is_over and self._channels.get(channel) is entries:
            del self._channels[channel]

    def _note_refusal(self, refusal: str) -> None:
        if refusal != self._refusal:
            _log.warning("the engine does not keep presence", reason=refusal)
        self._refusal = refusal

    # House-keeping.

    def up(self, _partitions: Sequence[int]) -> None:
        """Look at all channels soon: the engine may have lost some."""
        self._is_back.set()
        if not self._servers.outage():  # Primaries of a cluster come one after the other.
            self.was_up.set()

    def down(self, partitions: Sequence[int]) -> None:
        """Do nothing: whatever was under way has been told."""

    async def wait_room(self) -> None:
        """Nothing comes by the bus."""

    async def run(self) -> None:
        """Keep everything alive until cancelled; see `open_cluster_presence`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reads.run)
            while True:
                with trio.move_on_after(_RENEWAL * (0.8 + 0.2 * random())):
                    await self._is_back.wait()
                is_back, self._is_back = self._is_back.is_set(), trio.Event()
                await self._renew(trio.current_time() - (0 if is_back else _RENEWAL / 2))

    async def _renew(self, since: float) -> None:
        """Renew the channels that were not since then; a script with changes renews as well."""
        for channel, entries in tuple(self._channels.items()):
            # Those that are over have ended since this round began.
            if entries.under_way or entries.renewed > since or entries.is_over:
                continue
            await self._free.acquire()
            if not self._send(channel, entries, self._free.release):
                self._free.release()

    async def say_goodbye(self) -> None:
        """Take this node out of all channels; what is asked from now on fails."""
        self._ended = True
        while self._under_way:  # A script may be sent a second time, behind what is sent now.
            await self._idle.park()
        for entries in self._channels.values():
            names = entries.names
            await self._take_room()
            leave = packed(b"ZREM", names.nodes, self._node)
            forget = packed(b"UNLINK", names.infos(self._node), names.users(self._node))
            try:
                self._servers.ask(names.partition, forget, ignore)
                self._servers.ask(names.partition, leave, self._freed)
            except Lost:
                self._free.release()
        for _ in range(_AT_ONCE):
            await self._take_room()

    async def _take_room(self) -> None:
        """Take the place of one request, without a pass of the loop where there is one.

        A node that ends is busy, and a pass for each channel would take longer than it has.
        """
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            await self._free.acquire()  # The caller sets the deadline.

    def end(self) -> None:
        """Tell whoever still waits for a change that presence has ended."""
        for entries in self._channels.values():
            for do in entries.fail(BrokerError("presence has ended")):
                do()

    def _freed(self, _answer: object) -> None:
        self._free.release()


@asynccontextmanager
async def open_cluster_presence(
    servers: Servers, node: str, *, prefix: str = "repeater"
) -> AsyncIterator[ClusterPresence]:
    """Keep presence for as long as the block lasts, then take the node out of all channels.

    Args:
        servers: The engine, which is run here, for the block too. Not the broker's: that ends while
            clients are still leaving.
        node: The node's id, which no other node ever has.
        prefix: What the names of all keys begin with.
    """
    presence = ClusterPresence(servers, node, prefix=prefix)
    lasting = trio.CancelScope(shield=True)

    async def last() -> None:
        with lasting:
            await servers.run()

    async with open_service_nursery() as nursery:
        nursery.start_soon(last)
        nursery.start_soon(presence.run)
        try:
            with trio.move_on_after(_START):
                await presence.was_up.wait()
            yield presence
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOODBYE):
                await presence.say_goodbye()
            presence.end()
            lasting.cancel("the node has ended")
