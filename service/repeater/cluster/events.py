"""Events of a node in a cluster: of its own clients, of channels over all nodes, of lost nodes.

What happens to a client is told by its own node. What only the node could tell is told for it when
it is lost: that it is, which channels nobody holds any more, and what else it had to tell.

A node that was cut off counts as lost, too, and the application has forgotten its clients. When it
is a member again, it begins a new run and tells of all its clients anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from repeater.cluster.occupancy import Occupancy
from repeater.errors import BrokerError, open_service_nursery
from repeater.log import get_logger
from repeater.valkey.pipe import Lost, Refused, ignore, packed
from repeater.valkey.servers import answer_from
from repeater.workers.members import Callers

if TYPE_CHECKING:
    from repeater.access.grants import Caller
    from repeater.backend.contract import EventStatistics
    from repeater.backend.events import EventQueue
    from repeater.brokers.control import Member
    from repeater.cluster.members import Members
    from repeater.errors import Disconnect, Unsubscribed
    from repeater.valkey.pipe import Part
    from repeater.valkey.servers import Servers

_log = get_logger("events")

_PARTITION: Final = 0  # where runs and lost nodes are noted
_KEPT: Final = 86_400_000  # milliseconds for which they are
_AGAIN: Final = 1.0  # seconds before a run is noted once more
_GOODBYE: Final = 2.0  # seconds


class ClusterEvents:
    """Implements `Events`. Made by `open_cluster_events`, which runs `run`.

    <prefix>:{tag}er:<node>  text  the node's run, if it is not the first one, named like the node
    <prefix>:{tag}el:<node>  hash  lost nodes that this node has to tell of: run to name
    """

    def __init__(
        self, queue: EventQueue, servers: Servers, members: Members, *, prefix: str
    ) -> None:
        """Put events into a queue, whose run is the member's id."""
        self._queue = queue
        self._servers = servers
        self._me = members.me
        self._begin = f"{prefix}:{servers.tag(_PARTITION)}"
        self._lives = 1
        self._returned = trio.Event()
        self._callers = Callers(queue)
        channels = queue.wanted & {"channel_occupied", "channel_vacated"}
        self._occupancy = (
            Occupancy(servers, members.me.id, queue, prefix=prefix) if channels else None
        )
        members.at_loss(self._deal_with)
        members.at_return(self._come_back)
        servers.add(self)

    def connected(self, caller: Caller) -> None:
        """See `Events`."""
        self._callers.connected(caller)

    def disconnected(self, caller: Caller, why: Disconnect) -> None:
        """See `Events`."""
        self._callers.disconnected(caller, why)

    def subscribed(self, caller: Caller, channel: str) -> None:
        """See `Events`."""
        self._callers.subscribed(caller, channel)

    def unsubscribed(self, caller: Caller, channel: str, why: Unsubscribed) -> None:
        """See `Events`."""
        self._callers.unsubscribed(caller, channel, why)

    def channel_occupied(self, channel: str) -> None:
        """Tell of it if no other node holds the channel."""
        if self._occupancy is not None:
            self._occupancy.hold(channel)

    def channel_vacated(self, channel: str) -> None:
        """Tell of it if no other node holds the channel."""
        if self._occupancy is not None:
            self._occupancy.release(channel)

    def shut_down_by(self, deadline: float) -> None:
        """See `Events`."""
        self._queue.shut_down_by(deadline)

    def statistics(self) -> EventStatistics:
        """See `Events`."""
        return self._queue.statistics()

    # Nodes that are lost.

    async def _deal_with(self, lost: Member) -> None:
        """Tell what a lost node cannot tell. Can be repeated: each event has its own id.

        Raises:
            BrokerError: the engine is away, or refuses.
        """
        try:
            run = await self._answer("GET", self._key("er", lost.id))
            name = run.decode(errors="replace") if isinstance(run, bytes) else lost.id
            await self._tell_lost(name, lost.name)
            inherited = await self._answer("HGETALL", self._key("el", lost.id))
            for one, node in inherited.items() if isinstance(inherited, dict) else ():
                await self._tell_lost(one.decode(errors="replace"), node.decode(errors="replace"))
            if self._occupancy is not None:
                await self._occupancy.release_all_of(lost.id)
            await self._answer("UNLINK", self._key("er", lost.id), self._key("el", lost.id))
        except (Lost, Refused) as error:
            raise BrokerError(f"the engine: {error}") from None

    async def _tell_lost(self, run: str, node: str) -> None:
        """Tell that a node was lost. The engine knows it until the application has accepted it."""
        await self._note_lost(run, node)
        self._queue_lost(run, node)

    async def _note_lost(self, run: str, node: str) -> None:
        key = self._key("el", self._me.id)
        await self._answer("HSET", key, run, node)
        await self._answer("PEXPIRE", key, _KEPT)

    def _queue_lost(self, run: str, node: str) -> None:
        key = self._key("el", self._me.id)
        self._queue.node_lost(node, run, partial(self._ask, "HDEL", key, run))

    def _key(self, kind: str, node: str) -> bytes:
        return f"{self._begin}{kind}:{node}".encode()

    async def _answer(self, *parts: Part) -> object:
        """Send a command, whose first argument is its key, and return the answer.

        Raises:
            Lost, Refused: the engine is away, or refuses.
        """
        try:
            return await answer_from(self._servers, _PARTITION, *parts)
        except Refused as error:
            if error.code != "WRONGTYPE":
                raise
        await answer_from(self._servers, _PARTITION, "UNLINK", parts[1])  # It is not ours.
        return await answer_from(self._servers, _PARTITION, *parts)

    def _ask(self, *parts: Part) -> None:
        """Ask for what is not needed: at worst an event is told once more, with the same id."""
        try:
            self._servers.ask(_PARTITION, packed(*parts), ignore)
        except Lost:
            return

    # This node, when it was lost and is back.

    def _come_back(self) -> None:
        self._returned.set()

    @property
    def _run(self) -> str:
        return self._me.id if self._lives == 1 else f"{self._me.id}.{self._lives}"

    async def _begin_run(self) -> None:
        """Begin another run, and tell of all clients and channels anew.

        The loss of the run before is told here as well, under the id that it has everywhere. Nobody
        else may have told it; and if this node dies while the application accepts nothing, then
        this loss is told for it beside that of the new run, which the application never heard of.
        """
        before = self._run
        self._lives += 1
        failed = ""
        while True:
            # First of all: whoever tells the loss of this run must know its name, and the other.
            try:
                await self._note_lost(before, self._me.name)
                await self._answer(*self._noted())
                break
            except (Lost, Refused) as error:
                if str(error) != failed:
                    failed = str(error)
                    _log.warning("the engine does not note a run", reason=failed)
                await trio.sleep(_AGAIN)
        self._queue_lost(before, self._me.name)
        self._queue.begin_run(self._run)
        if self._occupancy is not None:
            self._occupancy.say_all()
        await self._callers.tell_again(self._queue.knows, self._queue.wait_room)

    def _noted(self) -> tuple[Part, ...]:
        return "SET", self._key("er", self._me.id), self._run

    def up(self, partitions: Sequence[int]) -> None:
        """Note the run again: the engine may have lost it."""
        if self._lives > 1 and _PARTITION in partitions:
            self._ask(*self._noted())

    def down(self, partitions: Sequence[int]) -> None:
        """Do nothing: whoever waits for an answer is told."""

    async def wait_room(self) -> None:
        """Nothing comes by the bus."""

    async def run(self) -> None:
        """Keep channels alive, and begin runs, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._occupancy is not None:
                nursery.start_soon(self._occupancy.run)
            while True:
                await self._returned.wait()  # No deadline: a node may never be lost.
                self._returned = trio.Event()
                await self._begin_run()

    async def finish(self) -> None:
        """Have the engine know that this node holds nothing. The caller sets the deadline."""
        if self._occupancy is not None:
            self._occupancy.release_all()
            await self._occupancy.wait_settled()
        if self._lives > 1:
            self._ask("UNLINK", self._key("er", self._me.id))


@asynccontextmanager
async def open_cluster_events(
    queue: EventQueue, servers: Servers, members: Members, *, prefix: str = "repeater"
) -> AsyncIterator[ClusterEvents]:
    """Tell an application of one node of a cluster, for as long as the block lasts.

    Opened before the node's control runs, and ended after the node.

    Args:
        queue: Delivers the events. Its `node` is the member's name, its `run` the member's id.
            What is delivered after the block is still forgotten by the engine, if `servers` run.
        servers: The engine. Its owner runs it.
        members: This node's membership.
        prefix: What the names of all keys begin with.
    """
    events = ClusterEvents(queue, servers, members, prefix=prefix)
    async with open_service_nursery() as nursery:
        nursery.start_soon(events.run)
        try:
            yield events
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOODBYE):
                await events.finish()
