"""A node's parts of a cluster, put together on the servers of its engine."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio

from repeater.brokers.control import Member
from repeater.cluster.control import ClusterControl
from repeater.cluster.denials import ClusterDenials
from repeater.cluster.members import Members
from repeater.cluster.places import ClusterPlaces
from repeater.cluster.plane import EnginePlane, Plane
from repeater.errors import open_service_nursery
from repeater.random_id import random_id

if TYPE_CHECKING:
    from repeater.valkey.servers import Servers


class Cluster(NamedTuple):
    """What `open_cluster` opens; the node runs `control` and `denials`."""

    plane: Plane
    members: Members
    control: ClusterControl
    denials: ClusterDenials
    places: ClusterPlaces

    @property
    def foreign(self) -> int:
        """How many messages and denials no node had written."""
        return self.control.foreign.count + self.members.foreign.count + self.denials.foreign.count


@asynccontextmanager
async def open_cluster(
    servers: Servers,
    *,
    prefix: str = "repeater",
    timeout: float = 2.0,
    name: str = "",
    worker: int = 0,
    options: Callable[[], str] = str,
) -> AsyncIterator[Cluster]:
    """Open a node's parts for as long as the block lasts; the node lives inside it.

    Args:
        servers: Servers that nothing else uses: in a flood, the bus of events is not read.
        prefix: What the names of keys and channels begin with; the same for all nodes.
        timeout: Seconds in which the engine has to answer.
        name: How the node is called; by default as its host.
        worker: Its number among the workers of this machine, from 1 on; 0 without workers.
        options: Gives a digest of what all nodes should have in common (`Members`).
    """
    plane = EnginePlane(servers, prefix=prefix, timeout=timeout)
    own = random_id()
    members = Members(plane, Member(own, name or platform.node(), own, worker), options=options)
    control = ClusterControl(plane, members)
    denials = ClusterDenials(plane, control)
    places = ClusterPlaces(plane, members)
    # A cancelled block still says goodbye, so its end ends the connections, and nothing before.
    lasting = trio.CancelScope(shield=True)

    async def last() -> None:
        with lasting:
            await plane.run()

    async with open_service_nursery() as nursery:
        nursery.start_soon(last)
        try:
            async with open_service_nursery() as inner:
                inner.start_soon(places.run)
                yield Cluster(plane, members, control, denials, places)
        finally:
            lasting.cancel("the node has ended")
